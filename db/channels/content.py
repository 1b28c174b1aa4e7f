"""What a database of channel levels holds beside the layers' weights: the groups, in which order
their channels go, what the search decides, and what is needed to make up for channels of several
groups at once. One part is JSON, in the manifest; the arrays lie in channels.safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apportion.compressors.groups.find import ChannelGroup, Grouped, Slice
from apportion.compressors.kinds.uses import Found
from apportion.compressors.layers import LayerSpec
from apportion.db.layers.format import LayerRecord


@dataclass(frozen=True)
class Decision:
    """What the search chooses a level for.

    name: of the decision.
    levels: its levels' names, dense first.
    errors: additive error of each: over the layers that a level changes, what their outputs lose,
        each as a share of its own; lower is better.
    group: the channel group whose readers get the level, or
    layer: the layer that gets it, which reads no group.
    kept: of a group, how many channels stay at each level.
    """

    name: str
    levels: tuple[str, ...]
    errors: tuple[float, ...]
    group: str | None = None
    layer: str | None = None
    kept: tuple[int, ...] = ()


@dataclass(frozen=True)
class Content:
    """grouped: the channel groups; orders: group -> [channels], which goes first; layers: the
    model's, by name; macs: their multiply-accumulates for a sample; base: those of no layer, of
    which `activations` are products of activations with each other; means: layer -> mean of what it
    reads [groups, columns]; hinv: of layers that read several groups, H^-1 [groups, columns,
    columns]; float64."""

    grouped: Grouped
    orders: Mapping[str, np.ndarray]
    decisions: tuple[Decision, ...]
    layers: Mapping[str, LayerSpec]
    macs: Mapping[str, int]
    base: int
    activations: int
    means: Mapping[str, Tensor]
    hinv: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def found(self) -> Found:
        """The model's layers, as `find_layers` gave them."""
        return Found(tuple(self.layers.values()), {}, self.macs, self.base, self.activations)

    def shared(self, layer: str) -> bool:
        """Whether the layer reads several groups."""
        return layer in self.hinv

    def to_json(self) -> dict[str, Any]:
        own = self.grouped
        return {
            "groups": [
                {
                    "name": group.name,
                    "size": group.size,
                    "unit": group.unit,
                    "share": [group.share.numerator, group.share.denominator],
                    "makers": list(group.makers),
                    "readers": list(group.readers),
                    "slices": [[part.name, part.dim] for part in group.slices],
                }
                for group in own.groups
            ],
            "kept": dict(own.kept),
            "norms": dict(own.norms),
            "biases": dict(own.biases),
            "layers": [
                LayerRecord.of(spec, self.macs[name], ()).to_json()
                for name, spec in self.layers.items()
            ],
            "by_module": [spec.by_module for spec in self.layers.values()],
            "base": self.base,
            "activations": self.activations,
            "means": list(self.means),
            "hinv": list(self.hinv),
            "decisions": [asdict(decision) for decision in self.decisions],
        }

    def tensors(self) -> dict[str, Tensor]:
        """By what they are, and their numbers in the JSON part."""
        made: dict[str, Tensor] = {}
        for i, group in enumerate(self.grouped.groups):
            made[f"order.{i}"] = torch.from_numpy(np.ascontiguousarray(self.orders[group.name]))
            parts = [part.channel for part in group.slices]
            for what, arrays in (
                ("maker", group.makers.values()),
                ("reader", group.readers.values()),
                ("slice", parts),
            ):
                for j, array in enumerate(arrays):
                    made[f"{what}.{i}.{j}"] = torch.from_numpy(np.ascontiguousarray(array))
        made |= {f"mean.{i}": mean.contiguous() for i, mean in enumerate(self.means.values())}
        made |= {f"hinv.{i}": own.contiguous() for i, own in enumerate(self.hinv.values())}
        return made

    @classmethod
    def read(cls, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Content:
        """The inverse of both. Raises KeyError, TypeError, ValueError for what no build writes."""
        groups, orders = [], {}
        for i, own in enumerate(content["groups"]):

            def arrays(what: str, count: int, i: int = i) -> list[np.ndarray]:
                return [tensors[f"{what}.{i}.{j}"].numpy() for j in range(count)]

            made = dict(zip(own["makers"], arrays("maker", len(own["makers"])), strict=True))
            read = dict(zip(own["readers"], arrays("reader", len(own["readers"])), strict=True))
            cut = zip(own["slices"], arrays("slice", len(own["slices"])), strict=True)
            slices = tuple(Slice(name, dim, channel) for (name, dim), channel in cut)
            groups.append(
                ChannelGroup(
                    own["name"], own["size"], made, read, slices, own["unit"],
                    Fraction(*own["share"]),
                )
            )  # fmt: skip
            orders[own["name"]] = tensors[f"order.{i}"].numpy()
        return cls(
            Grouped(tuple(groups), content["kept"], content["norms"], content["biases"]),
            orders,
            tuple(map(_decision, content["decisions"])),
            {spec.name: spec for spec in map(_spec, content["layers"], content["by_module"])},
            {own["name"]: own["macs"] for own in content["layers"]},
            content["base"],
            content["activations"],
            {name: tensors[f"mean.{i}"] for i, name in enumerate(content["means"])},
            {name: tensors[f"hinv.{i}"] for i, name in enumerate(content["hinv"])},
        )


def _spec(content: Mapping[str, Any], by_module: bool) -> LayerSpec:
    record = LayerRecord.from_json(dict(content))
    return LayerSpec(
        name=record.name,
        kind=record.kind,
        shape=record.shape,
        groups=record.groups,
        rows=record.shape[0],
        columns=int(np.prod(record.shape[1:])),
        aliases=record.aliases,
        place=record.place,
        by_module=by_module,
    )


def _decision(content: Mapping[str, Any]) -> Decision:
    own: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
    return Decision(**own)
