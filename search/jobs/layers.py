"""The job file's `layers`: which levels single layers may have, and which layers decide
together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal, TypeVar

from pydantic import Field, field_validator

from apportion.compressors.errors import ApportionError, ConfigurationError, UnknownNameError
from apportion.compressors.layers import LayerSpec
from apportion.compressors.levels import DENSE, Level, expand_levels, parse_level
from apportion.compressors.obs import fits
from apportion.db.documents.section import Section

AUTO = "auto"
"""`tie` by what the model itself says."""
_FLOAT_BITS = 32
_T = TypeVar("_T")


class LayersConfig(Section):
    """Exceptions from `database.levels`. Patterns are layer names with * and ?; of several that
    match, the last one holds."""

    skip: tuple[str, ...] = Field((), description="Layers that stay dense.")
    levels: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="Pattern -> levels, instead of database.levels (dense is always built).",
    )
    first: str | None = Field(None, description="The one level of the model's first layer.")
    last: str | None = Field(None, description="The one level of the model's last layer.")
    sparsity: dict[str, tuple[float, float]] = Field(
        default_factory=dict,
        description="Pattern -> least and greatest share of weights that a level may remove.",
    )
    bits: dict[str, tuple[int, int]] = Field(
        default_factory=dict,
        description="Pattern -> least and greatest bits of a level's weights (32 where they are "
        "not quantized).",
    )
    tie: Literal["auto"] | tuple[tuple[str, ...], ...] = Field(
        (),
        description="Sets of layers that share a level. A name ties layers of the same parent: "
        "[q_proj, k_proj] in every block. auto: linear layers of one module that read the same "
        "tensor, which runtimes fuse.",
    )

    @field_validator("levels")
    @classmethod
    def _levels(cls, levels: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for texts in levels.values():
            _explained(texts)
        return levels

    @field_validator("tie", mode="before")
    @classmethod
    def _tie(cls, given: object) -> object:
        """One message, where a choice of types would have one for each."""
        sets = isinstance(given, (list, tuple)) and all(
            isinstance(one, (list, tuple)) and all(isinstance(name, str) for name in one)
            for one in given
        )
        if given != AUTO and not sets:
            raise ValueError(f"expected {AUTO}, or sets of names: [[q_proj, k_proj, v_proj]]")
        return given

    @field_validator("first", "last")
    @classmethod
    def _level(cls, text: str | None) -> str | None:
        if text is not None:
            _explained((text,))
        return text

    @field_validator("sparsity", "bits")
    @classmethod
    def _ranges(cls, ranges: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        for pattern, (low, high) in ranges.items():
            if not 0 <= low <= high:
                raise ValueError(
                    f"{pattern!r}: a range is written [least, greatest], got [{low}, {high}]"
                )
        return ranges

    def own_levels(self) -> list[Level]:
        """All levels that are named here."""
        fixed = [text for text in (self.first, self.last) if text is not None]
        named = [level for texts in self.levels.values() for level in expand_levels(texts)]
        return [*map(parse_level, fixed), *named]

    def built(
        self, layers: Sequence[LayerSpec], default: Sequence[Level], dense: Collection[str] = ()
    ) -> dict[str, list[Level]]:
        """Layer -> the levels that its database entry holds, dense among them. `dense`: modules and
        parameters that are no layers, as they stay dense anyway: `skip` may name them. Raises
        UnknownNameError for a pattern that matches no layer, ConfigurationError for a fixed level
        that does not fit its layer."""
        names = [layer.name for layer in layers]
        for pattern in self.skip:
            if not any(fnmatchcase(name, pattern) for name in (*names, *dense)):
                raise UnknownNameError("layer", pattern, names, "layers")
        for pattern in (*self.levels, *self.sparsity, *self.bits):
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UnknownNameError("layer", pattern, names, "layers")
        found = {}
        for layer in layers:
            own = _last(self.levels, layer.name)
            levels = list(default) if own is None else expand_levels(own)
            if any(fnmatchcase(layer.name, pattern) for pattern in self.skip):
                levels = [DENSE]
            if fixed := self._fixed(layer.name, names):
                if not fits(layer, fixed):
                    raise ConfigurationError(
                        f"layers: level {str(fixed)!r} does not fit layer {layer.name!r} of "
                        f"{layer.columns} columns"
                    )
                levels = [fixed]
            found[layer.name] = list(
                dict.fromkeys([*([] if DENSE in levels else [DENSE]), *levels])
            )
        return found

    def allowed(self, levels: Mapping[str, Sequence[str]]) -> list[list[int]]:
        """Per layer of a database (layer -> its levels): the indices of those that a search may
        choose. Raises ConfigurationError where none is left."""
        names = list(levels)
        result = []
        for name, texts in levels.items():
            own, fixed = _last(self.levels, name), self._fixed(name, names)
            kept = []
            for index, level in enumerate(map(parse_level, texts)):
                bits = level.quantization.weight_bits if level.quantization else None
                fine = _inside(_last(self.sparsity, name), level.fraction_removed)
                fine &= _inside(_last(self.bits, name), bits or _FLOAT_BITS)
                if own is not None and level.is_dense:
                    fine &= DENSE in expand_levels(own)
                if fixed is not None:
                    fine = level == fixed
                if fine:
                    kept.append(index)
            if not kept:
                raise ConfigurationError(
                    f"layers: none of the levels of layer {name!r} is inside its ranges (it has "
                    f"{', '.join(texts)})"
                )
            result.append(kept)
        return result

    def tied(self, names: Sequence[str], partners: Sequence[Sequence[str]] = ()) -> list[list[int]]:
        """Layer indices, grouped into what is decided together, in the order of each group's first
        layer. `partners`: the sets that `auto` stands for. Raises UnknownNameError,
        ConfigurationError for a layer that is in two sets."""
        group_of: dict[int, tuple[int, str]] = {}
        for number, patterns in enumerate(partners if self.tie == AUTO else self.tie):
            for pattern in patterns:
                matched = [
                    (i, parent)
                    for i, name in enumerate(names)
                    if (parent := _parent(name, pattern)) is not None
                ]
                if not matched:
                    raise UnknownNameError("layer", pattern, names, "layers.tie")
                for i, parent in matched:
                    if group_of.setdefault(i, (number, parent)) != (number, parent):
                        raise ConfigurationError(f"layers.tie: layer {names[i]!r} is in two sets")
        groups: dict[object, list[int]] = {}
        for i in range(len(names)):
            groups.setdefault(group_of.get(i, i), []).append(i)
        return list(groups.values())

    def _fixed(self, name: str, names: Sequence[str]) -> Level | None:
        if self.first is not None and name == names[0]:
            return parse_level(self.first)
        return parse_level(self.last) if self.last is not None and name == names[-1] else None


def _explained(texts: tuple[str, ...]) -> None:
    try:
        expand_levels(texts)
    except ApportionError as error:
        raise ValueError(str(error)) from error


def _last(values: dict[str, _T], name: str) -> _T | None:
    """What the last pattern that matches `name` says."""
    return next(
        (value for pattern, value in reversed(values.items()) if fnmatchcase(name, pattern)), None
    )


def _inside(bounds: tuple[float, float] | None, value: float) -> bool:
    return bounds is None or bounds[0] - 1e-9 <= value <= bounds[1] + 1e-9


def _parent(name: str, pattern: str) -> str | None:
    """What stands before `pattern` in a name that ends with it; '' for a whole name or a match of *
    and ?; None for no match."""
    if name == pattern or fnmatchcase(name, pattern):
        return ""
    return name.removesuffix(pattern) if name.endswith("." + pattern) else None
