"""Level: one way to compress a layer. One grammar, one parser (`parse_level`), one printer
(`str(level)`).

    level    := "dense" | "drop" | one or more of channels, sparse, quant, in this order, by "+"
    channels := ("channels-" | "heads-") S       of a channel group, of an attention's heads
    sparse   := ["mag:" | "sparsegpt:"] pattern  by magnitude, or in the order of the columns,
    pattern  := "unstr-" S | "block" B "-" S | N ":" M | "filter-" S     instead of ExactOBS
    quant    := [how] (weights [inputs] | format) | inputs
    inputs   := "a" bits ["-token"]              on one grid, or each token on its own
    how      := "rtn:" | "gptq:" | "gptq-desc:"  instead of ExactOBS: to nearest; in the order of
    weights  := "w" bits ["g" G]                 the columns; from the greatest inputs down
    format   := "fp8" | "mxfp4" | "nvfp4" | "q4_0" | ... | one of a user's own: formats.py

S is the fraction of weights (or filters, or channels) that is removed, 0 < S < 1, kept to six
decimals; `N:M` keeps N weights of every M consecutive ones, 0 < N <= M; B is a block length >= 1;
G is how many consecutive columns of a row share a scale; weight bits are 1..8, activation bits
2..16. `expand_levels` also takes ladders, `unstr-0.10..0.99` or `unstr-0.10..0.99*0.95`: every step
keeps 90 % (95 %) of the weights that are left, and the last step is the upper end itself."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from apportion.compressors import formats
from apportion.compressors.errors import LevelError

_DECIMALS = 6
_FRACTION = r"(0?\.\d+)"
_PATTERN = re.compile(
    rf"(?P<how>mag:|sparsegpt:)?(?:unstr-(?P<unstr>{_FRACTION})|block(?P<block>\d+)-(?P<blockfrac>{_FRACTION})"
    rf"|(?P<n>\d+):(?P<m>\d+)|filter-(?P<filter>{_FRACTION}))"
)
_CHANNELS = re.compile(rf"(channels|heads)-{_FRACTION}")
_QUANT = re.compile(
    r"(?P<how>rtn:|gptq:|gptq-desc:)?"
    r"(?:(?:w(?P<w>\d+)(?:g(?P<g>\d+))?(?:a(?P<a>\d+))?|a(?P<only>\d+))(?P<token>-token)?"
    r"|(?P<format>[a-z][a-z0-9_]*))"
)
Candidate = tuple[int, ...]
"""A profile as level indices, one per layer."""
_LADDER = re.compile(
    rf"(?P<head>(?:(?:mag:|sparsegpt:)?(?:unstr|block\d+|filter)|channels|heads)-){_FRACTION}\.\.{_FRACTION}(?:\*{_FRACTION})?"
)
_SHAPE = (
    "expected dense, drop, unstr-S, blockB-S, N:M, filter-S, channels-S, heads-S, wB, wBgG, wBaA, "
    "wBaA-token, {formats} or a sparse one + a quantized one, such as 2:4+w4a4"
)


@dataclass(frozen=True, slots=True)
class Sparsity:
    """Which weights go. `kind` is unstr, block, nm or filter; `fraction` is the share removed (in
    [0, 1)); `block` the block length; `n` of `m` weights are kept by an N:M pattern; `magnitude`
    marks the data-free baseline, `fixed` an elimination in the order of the columns (SparseGPT)."""

    kind: str
    fraction: float
    block: int = 0
    n: int = 0
    m: int = 0
    magnitude: bool = False
    fixed: bool = False

    def __str__(self) -> str:
        head = "mag:" if self.magnitude else "sparsegpt:" if self.fixed else ""
        if self.kind == "nm":
            return f"{head}{self.n}:{self.m}"
        name = f"block{self.block}" if self.kind == "block" else self.kind
        return f"{head}{name}-{format_fraction(self.fraction)}"

    def removed(self, count: int) -> int:
        """How many of `count` weights, blocks or filters go. Rounded up, as the published code
        does; round() takes off what the fraction's binary form adds."""
        return math.ceil(round(count * self.fraction, 6))


@dataclass(frozen=True, slots=True)
class Quantization:
    """Bits of weights and of activations (None: left in floating point); `nearest` marks round to
    nearest, `fixed` an elimination in one order for all rows (GPTQ), that of the columns or from
    the greatest diagonal of H down (`descending`). `format`: the weights' where that is another
    than a grid per row or tensor, such as w4g128 or mxfp4. `token`: each token's activations have
    a scale of their own, found as they come."""

    weight_bits: int | None
    activation_bits: int | None = None
    nearest: bool = False
    fixed: bool = False
    format: str = ""
    descending: bool = False
    token: bool = False

    @property
    def how(self) -> str:
        """The prefix of its level; empty for ExactOBS."""
        if self.fixed:
            return "gptq-desc:" if self.descending else "gptq:"
        return "rtn:" if self.nearest else ""

    @property
    def weights(self) -> str:
        """How levels write what becomes of the weights; empty where they stay as they are."""
        return self.format or (f"w{self.weight_bits}" if self.weight_bits is not None else "")

    def __str__(self) -> str:
        activation = f"a{self.activation_bits}" if self.activation_bits is not None else ""
        return f"{self.how}{self.weights}{activation}{'-token' if self.token else ''}"


@dataclass(frozen=True, slots=True)
class Level:
    """A level; `Level()` is dense. Equal levels print equally, and `parse_level(str(level)) ==
    level`. `channels`: the share of a group's channels that goes, 0 for none, 1 for all (drop);
    `unit`: what these are, channels or heads."""

    sparsity: Sparsity | None = None
    quantization: Quantization | None = None
    channels: float = 0.0
    unit: str = "channels"

    @property
    def is_dense(self) -> bool:
        return self.sparsity is None and self.quantization is None and not self.channels

    @property
    def activation_bits(self) -> int | None:
        """Bits of the layer's inputs; None where they stay in floating point."""
        return self.quantization.activation_bits if self.quantization else None

    @property
    def static_bits(self) -> int | None:
        """The same where they have one grid, which calibration data give."""
        return None if self.quantization and self.quantization.token else self.activation_bits

    @property
    def fraction_removed(self) -> float:
        """The share of weights that the level promises to set to zero, in [0, 1)."""
        own = self.sparsity.fraction if self.sparsity else 0.0
        return own if not self.channels else 1 - (1 - own) * (1 - self.channels)

    def __str__(self) -> str:
        if self.channels == 1:
            return "drop"
        channels = f"{self.unit}-{format_fraction(self.channels)}" if self.channels else None
        parts = (channels, self.sparsity, self.quantization)
        return "+".join(str(part) for part in parts if part is not None) or "dense"


DENSE = Level()
DROP = Level(channels=1.0)
"""All channels of a group: what reads them puts out a constant."""


def format_fraction(fraction: float) -> str:
    """At least two decimals and no more than needed: 0.5 -> '0.50', 0.468559 -> '0.468559'."""
    text = f"{fraction:.{_DECIMALS}f}".rstrip("0")
    whole, _, decimals = text.partition(".")
    return f"{whole}.{decimals:0<2}"


def parse_level(text: str) -> Level:
    """Read one level. Raises LevelError, which says what is wrong with `text`."""
    parts = text.strip().split("+")
    if parts == ["dense"]:
        return DENSE
    if parts == ["drop"]:
        return DROP
    sparsity: Sparsity | None = None
    quantization: Quantization | None = None
    channels, unit = 0.0, "channels"
    for number, part in enumerate(parts):
        if match := _CHANNELS.fullmatch(part):
            if number:
                raise LevelError(text, "channels come first, and only once")
            channels, unit = _removed(text, match[2]), match[1]
        elif match := _PATTERN.fullmatch(part):
            if sparsity or quantization:
                raise LevelError(text, "a sparse part comes first, and only once")
            sparsity = _sparsity(text, match)
        elif (match := _QUANT.fullmatch(part)) and (
            not match["format"] or formats.find(match["format"])
        ):
            if quantization:
                raise LevelError(text, "only one quantized part")
            quantization = _quantization(text, match)
        else:
            raise LevelError(text, _SHAPE.format(formats=", ".join(formats.names())))
    return Level(sparsity, quantization, channels, unit)


def expand_levels(texts: Iterable[str]) -> list[Level]:
    """Levels in the order given, ladders expanded, repetitions dropped. Raises LevelError."""
    levels: dict[Level, None] = {}
    for text in texts:
        if ".." not in text:
            levels[parse_level(text)] = None
            continue
        head, _, suffix = text.partition("+")
        for step in _ladder(text, head.strip()):
            levels[parse_level(f"{step}+{suffix}" if suffix else step)] = None
    return list(levels)


def _ladder(text: str, head: str) -> list[str]:
    match = _LADDER.fullmatch(head)
    if not match:
        raise LevelError(
            text,
            "a ladder is written KIND-LOW..HIGH or KIND-LOW..HIGH*KEEP, such as "
            "unstr-0.10..0.99*0.9",
        )
    low, high, keep = float(match[2]), float(match[3]), float(match[4] or 0.9)
    if not 0 < low <= high < 1:
        raise LevelError(text, f"a ladder needs 0 < low <= high < 1, got {low} and {high}")
    if not 0 < keep < 1:
        raise LevelError(text, f"the share kept at each step must lie between 0 and 1, got {keep}")
    steps, left = [], 1 - low
    while round(1 - left, _DECIMALS) < high:
        steps.append(1 - left)
        if len(steps) > 1000:
            raise LevelError(
                text,
                "a ladder of more than 1,000 steps; choose a smaller share to keep at each step",
            )
        left *= keep
    return [f"{match['head']}{format_fraction(s)}" for s in [*steps, high]]


def _sparsity(text: str, match: re.Match[str]) -> Sparsity:
    magnitude, fixed = match["how"] == "mag:", match["how"] == "sparsegpt:"
    if match["n"]:
        n, m = int(match["n"]), int(match["m"])
        if not 0 < n <= m:
            raise LevelError(text, f"an N:M pattern keeps N of M weights, 0 < N <= M; got {n}:{m}")
        share = round(1 - n / m, _DECIMALS)
        return Sparsity("nm", share, n=n, m=m, magnitude=magnitude, fixed=fixed)
    kind = "unstr" if match["unstr"] else "block" if match["block"] else "filter"
    fraction = _removed(text, match["unstr"] or match["blockfrac"] or match["filter"])
    block = int(match["block"] or 0)
    if kind == "block" and block < 1:
        raise LevelError(text, "a block holds at least one weight")
    if fixed and kind != "unstr":
        raise LevelError(text, "sparsegpt: prunes by unstr-S or N:M")
    return Sparsity(kind, fraction, block=block, magnitude=magnitude, fixed=fixed)


def _removed(text: str, digits: str) -> float:
    fraction = round(float(digits), _DECIMALS)
    if not 0 < fraction < 1:
        raise LevelError(
            text, f"the fraction removed must lie between 0 and 1 (to {_DECIMALS} decimals)"
        )
    return fraction


def _quantization(text: str, match: re.Match[str]) -> Quantization:
    weight = int(match["w"]) if match["w"] else None
    activation = match["a"] or match["only"]
    bits = int(activation) if activation else None
    if weight is not None and not 1 <= weight <= 8:
        raise LevelError(text, f"weight bits must be 1 to 8, got {weight}")
    if bits is not None and not 2 <= bits <= 16:
        raise LevelError(text, f"activation bits must be 2 to 16, got {bits}")
    name = match["format"] or ""
    if weight is not None and match["g"]:
        if int(match["g"]) < 1:
            raise LevelError(text, "a group holds at least one column")
        name = f"w{weight}g{int(match['g'])}"
    if found := formats.find(name):
        weight = found.bits
    if match["how"] and weight is None:
        doing = "rounds" if match["how"] == "rtn:" else "quantizes"
        raise LevelError(text, f"{match['how']} {doing} weights, and this level has no weight bits")
    how, token = match["how"] or "", match["token"] is not None
    if token and (bits is None or bits > 8):
        raise LevelError(text, "-token stands after activation bits, 2 to 8, such as w8a8-token")
    return Quantization(
        weight, bits, how == "rtn:", how.startswith("gptq"), name, how == "gptq-desc:", token
    )
