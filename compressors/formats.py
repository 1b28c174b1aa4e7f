"""Weight formats by name: what levels, databases and grids know of one another. No torch here, so
that levels are read fast.

A format is one module with three functions, found by the module's name (`where`):

    fit(format, weight, options, like) -> Grid
        of weight [rows, columns]; `like`: None, or that of a whole layer of which these are some
        columns
    store(format, grid) -> parts
        name -> tensor; what they take is what scales cost
    read(format, parts, rows) -> Grid
        the inverse, to the bit

How weights are rounded is the grid's: scale (code - zero), to which a base may be added, or scale
times the value that a codebook has for the code. A user registers a format in a file of their own
(CONTRIBUTING.md)."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Format:
    """`name`: as levels write it. `bits`: of one weight's code, 1 to 8. `block`: consecutive
    columns of a row that share a scale (0: all of them); a layer whose columns it does not divide
    does not have the level. `where`: the module of its functions."""

    name: str
    bits: int
    block: int
    where: str

    @property
    def module(self) -> Any:
        return importlib.import_module(self.where)


_FLOATS = "apportion.compressors.grids.floats"
_GGML = "apportion.compressors.grids.ggml"
_NAMED = {
    one.name: one
    for one in (
        Format("fp8", 8, 0, _FLOATS),
        Format("mxfp4", 4, 32, _FLOATS),
        Format("mxfp6", 6, 32, _FLOATS),
        Format("mxfp8", 8, 32, _FLOATS),
        Format("nvfp4", 4, 16, _FLOATS),
        Format("q8_0", 8, 32, _GGML),
        Format("q5_0", 5, 32, _GGML),
        Format("q5_1", 5, 32, _GGML),
        Format("q4_0", 4, 32, _GGML),
        Format("q4_1", 4, 32, _GGML),
        Format("tq2_0", 2, 256, _GGML),
    )
}
_GROUP = re.compile(r"w([1-8])g([1-9]\d*)")


def register(one: Format) -> None:
    """Make a format known. Raises ValueError for a name that levels could read as something else,
    or that another format has, and for bits that codes cannot have."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", one.name) or re.match(r"[wa]\d|drop$|dense$", one.name):
        raise ValueError(
            f"a format's name is of letters, digits and _, and no other level's; got {one.name!r}"
        )
    if _NAMED.get(one.name, one) != one:
        raise ValueError(f"there is a format {one.name!r} already")
    if not 1 <= one.bits <= 8 or one.block < 0:
        raise ValueError(f"format {one.name!r}: codes have 1 to 8 bits, and a block 0 or more")
    _NAMED[one.name] = one


def find(name: str) -> Format | None:
    """The format of that name, `w4g128` and the like included; None where there is none."""
    if match := _GROUP.fullmatch(name):
        return Format(name, int(match[1]), int(match[2]), "apportion.compressors.grids.group")
    return _NAMED.get(name)


def names() -> list[str]:
    """Of the formats that have one of their own."""
    return list(_NAMED)
