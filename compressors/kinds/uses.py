"""The uses of weights that traced passes saw, and what they say of the model: its layers, and what
stays dense, with the reasons."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import nn

from apportion.compressors.errors import ModelError
from apportion.compressors.kinds.naming import Names
from apportion.compressors.kinds.regions import Matrix, Part
from apportion.compressors.layers import LayerSpec
from apportion.compressors.place import Place

log = logging.getLogger(__name__)
_SHOWN = 5
"""Weights that a warning names."""
_NO_PRODUCT = frozenset({"add", "add_", "sub", "rsub"})
"""Operations of parameters that multiply nothing, as tables of positions: not worth a warning."""


@dataclass(frozen=True)
class Found:
    """layers: in the order of the model's parameters. dense: parameter -> why it stays as it is, or
    a part of it. macs: layer -> multiply-accumulates per sample. base: those per sample that no
    level reduces: activations by each other (of which there are `activations`), and weights that
    stay dense."""

    layers: tuple[LayerSpec, ...]
    dense: Mapping[str, str]
    macs: Mapping[str, int]
    base: int
    activations: int = 0


@dataclass
class _Use:
    """One weight in all its products. live: whether an input depended on the data; by_module:
    whether each product was a plain module's own."""

    kind: str
    place: Place
    groups: int
    shape: tuple[int, ...]
    macs: float = 0.0
    live: bool = False
    by_module: bool = True


class Seen:
    """What the traced passes of `model` have seen so far. `macs`: of products that are no use."""

    def __init__(self, model: nn.Module) -> None:
        self.names = Names(model)
        self.samples = self.batches = 0
        self.refusals: dict[str, str] = {}
        self.operations: dict[str, set[str]] = {}
        self.strangers: dict[str, None] = {}
        self.macs = Counter[str]()
        self._uses: dict[tuple[object, ...], _Use] = {}
        self._order = {n: i for i, (n, _) in enumerate(model.named_parameters())}
        self._matrices = {
            name: p.numel()
            for name, p in model.named_parameters()
            if sum(n > 1 for n in p.shape) > 1
        }

    def add(
        self, kind: str, matrix: Matrix, part: Part, macs: float, live: bool, by_module: bool
    ) -> None:
        """One more product with a part of a matrix.

        Args:
            kind: of the product.
            matrix: the product's weight.
            part: the rows of it that are one layer's.
            macs: multiply-accumulates of the part, over all samples of the batch.
            live: whether an input depended on the data.
            by_module: whether it was a plain module's own product.
        """
        shape = (part.rows, *matrix.shape[1:])
        key = (kind, part.place, matrix.groups, shape)
        use = self._uses.setdefault(key, _Use(kind, part.place, matrix.groups, shape))
        use.macs += macs
        use.live |= live
        use.by_module &= by_module

    def idle(self) -> bool:
        """Whether a part of a matrix has not been used yet, and nothing says why."""
        used = self._covered()
        return any(
            used[name] < count and name not in self.refusals and name not in self.operations
            for name, count in self._matrices.items()
        )

    def report(self) -> Found:
        """Warns of what stays dense. Raises ModelError where nothing else is left."""
        dense = self._refused()
        kept = [
            u for u in self._uses.values() if u.live and dense.keys().isdisjoint(u.place.parameters)
        ]
        last = len(self._order)
        kept.sort(key=lambda u: (self._order.get(u.place.parameters[0], last), u.place.offset))
        layers = _distinctly_named([self._spec(use) for use in kept])
        quiet = self._add_idle(dense)
        if not layers:
            raise ModelError(
                "the model has no weight that a product multiplies with its data, so there is "
                "nothing to compress" + "".join(f"; {name}: {why}" for name, why in dense.items())
            )
        _warn({name: why for name, why in dense.items() if name not in quiet})
        compressed = set(map(id, kept))
        left = [use for use in self._uses.values() if id(use) not in compressed]
        constant = self.macs["constant"] + sum(u.macs for u in left if not u.live)
        scaling: float = self.macs["derived"] + self.macs["activations"]
        scaling += sum(u.macs for u in left if u.live)
        macs = {s.name: self._per_sample(u.macs) for s, u in zip(layers, kept, strict=True)}
        base = self._per_sample(scaling) + round(constant / max(1, self.batches))
        activations = self._per_sample(self.macs["activations"])
        return Found(tuple(layers), dense, macs, base, activations)

    def _refused(self) -> dict[str, str]:
        """Parameters that cannot be compressed although products use them."""
        dense = dict(self.refusals)
        uses: dict[str, list[_Use]] = {}
        for use in self._uses.values():
            for name in use.place.parameters:
                uses.setdefault(name, []).append(use)
        for name, own in uses.items():
            if not any(use.live for use in own):
                dense.setdefault(name, "its inputs do not depend on the data")
            elif _overlap([use.place for use in own if use.live]):
                ways = " and ".join(dict.fromkeys(use.kind for use in own))
                dense.setdefault(name, f"it is used in several ways ({ways})")
        return dense

    def _add_idle(self, dense: dict[str, str]) -> set[str]:
        """Put matrices that no product used into `dense`; gives those that multiply nothing."""
        used, quiet = self._covered(), set()
        for name, count in self._matrices.items():
            if name in dense or used[name] >= count:
                continue
            operations = self.operations.get(name, set())
            if used[name]:
                dense[name] = "a part of it is never used by the calibration data"
            elif operations:
                dense[name] = f"no kind of layer reads {', '.join(sorted(operations))}"
                quiet |= {name} if operations <= _NO_PRODUCT else set()
            else:
                dense[name] = "never used by the calibration data"
        for text in self.strangers:
            dense[f"a tensor that is no parameter ({text})"] = "not one of the model's weights"
        return quiet

    def _covered(self) -> Counter[str]:
        """How many values of each parameter products used."""
        counts = Counter[str]()
        for use in self._uses.values():
            counts.update(dict.fromkeys(use.place.parameters, prod(use.place.sizes)))
        return counts

    def _per_sample(self, macs: float) -> int:
        return round(macs / max(1, self.samples))

    def _spec(self, use: _Use) -> LayerSpec:
        first, *others = (self.names.of(use.place, name) for name in use.place.parameters)
        return LayerSpec(
            first,
            use.kind,
            use.shape,
            use.groups,
            use.shape[0],
            prod(use.shape[1:]),
            tuple(others),
            use.place,
            use.by_module,
        )


def _distinctly_named(layers: list[LayerSpec]) -> list[LayerSpec]:
    """Layers of one name are called by their parameter and their first element in it."""
    count = Counter(layer.name for layer in layers)
    return [
        layer
        if count[layer.name] == 1
        else replace(layer, name=f"{layer.where.parameters[0]}.{layer.where.offset}", aliases=())
        for layer in layers
    ]


def _overlap(places: list[Place]) -> bool:
    """Whether an element stands in two of these places of one parameter."""
    if len(places) < 2:
        return False
    ends = [
        1 + p.offset + sum((n - 1) * s for n, s in zip(p.sizes, p.strides, strict=True))
        for p in places
    ]
    ranges = sorted(zip((p.offset for p in places), ends, strict=True))
    if all(ranges[i][1] <= ranges[i + 1][0] for i in range(len(ranges) - 1)):
        return False
    taken = torch.zeros(max(ends), dtype=torch.bool)
    for place in places:
        part = place.of(taken)
        if bool(part.any()):
            return True
        part.fill_(True)
    return False


def _warn(dense: Mapping[str, str]) -> None:
    """One line for all of them."""
    if dense:
        told = [f"{name} ({reason})" for name, reason in dense.items()]
        rest = f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
        log.warning("%d weights stay dense: %s%s", len(told), "; ".join(told[:_SHOWN]), rest)
