"""ChannelDatabase: a layer database of channel levels, by what the search decides."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from apportion.compressors.activations import InputGrid
from apportion.compressors.errors import DatabaseCorruptError, first_line
from apportion.compressors.grids import Grid
from apportion.compressors.groups.ladder import Reader
from apportion.compressors.groups.readers import first_of, gone_from
from apportion.compressors.levels import DENSE, DROP, Level, parse_level
from apportion.db.channels.content import Content, Decision
from apportion.db.channels.sizes import SizeRules
from apportion.db.layers import codec, format
from apportion.db.layers.database import LayerDatabase
from apportion.db.layers.tables import AnyDatabase


def stored_name(layer: str, kept: int | None) -> str:
    """What the database calls the weights of a layer that reads so many channels of its group;
    None: it reads no group."""
    return layer if kept is None else f"{layer}@{kept}"


def of_layers(level: Level) -> Level:
    """What a group's level says of the layers that read it, channels apart."""
    return Level(level.sparsity, level.quantization)


class ChannelDatabase:
    """Reads `database`, which must have channels. Raises DatabaseCorruptError where what it says of
    them is not as it was written."""

    def __init__(self, database: LayerDatabase) -> None:
        if database.channels is None:
            raise ValueError(f"{database.path} has no channel levels")
        self.database = database
        self.fingerprint, self.path = database.fingerprint, database.path
        file = database.path / format.CHANNELS
        try:
            tensors = load_file(file)
            if codec.checksum(tensors) != database.channels["checksum"]:
                raise ValueError("it was altered (checksum)")
            self.content = Content.read(database.channels, tensors)
        except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
            reason = f"{format.CHANNELS}: {first_line(error)}"
            raise DatabaseCorruptError(database.path, reason) from error

    @cached_property
    def decisions(self) -> Mapping[str, Decision]:
        return {decision.name: decision for decision in self.content.decisions}

    def levels(self) -> dict[str, list[str]]:
        """Decision -> the names of its levels."""
        return {name: list(decision.levels) for name, decision in self.decisions.items()}

    def uniform(self, level: Level, rules: SizeRules) -> dict[str, Level]:
        """Every decision at the level. A group is at its level with as many channels, whatever
        that is called there (two levels that leave as many are one), in floats where its layers
        cannot have the rest of it; what has neither stays dense. `rules`: the database's."""
        own = of_layers(level)
        groups = {group.name: group for group in self.content.grouped.groups}
        made = {}
        for name, decision in self.decisions.items():
            levels = [parse_level(text) for text in decision.levels]
            if decision.group is None:
                made[name] = own if own in levels else DENSE
                continue
            group = groups[decision.group]
            fits = level.unit == group.unit or not level.channels or level == DROP
            kept = rules.kept(group, level) if fits else group.size
            there = dict(zip(zip(decision.kept, map(of_layers, levels), strict=True), levels,
                             strict=True))  # fmt: skip
            made[name] = there.get((kept, own)) or there.get((kept, DENSE)) or DENSE
        return made

    def sizes(self, profile: Mapping[str, Level]) -> dict[str, int]:
        """Group -> how many of its channels stay."""
        return {
            decision.group: decision.kept[decision.levels.index(str(profile[name]))]
            for name, decision in self.decisions.items()
            if decision.group is not None
        }

    def kept(self, profile: Mapping[str, Level]) -> dict[str, np.ndarray]:
        """Group -> bool [its channels], which stay."""
        return first_of(self.content.orders, self.sizes(profile))

    def level_of(self, layer: str, profile: Mapping[str, Level]) -> tuple[int | None, Level]:
        """What became of a layer that reads one group, or is a decision of its own: how many
        channels it reads (None: it reads no group), and its level apart from that."""
        name, kept = self._deciding[layer]
        level = profile[name]
        decision = self.decisions[name]
        return (decision.kept[decision.levels.index(str(level))] if kept else None), of_layers(
            level
        )

    @cached_property
    def _deciding(self) -> dict[str, tuple[str, bool]]:
        """Layer -> the decision over it, and whether that is a group's."""
        groups = {group.name: group for group in self.content.grouped.groups}
        made: dict[str, tuple[str, bool]] = {}
        for name, decision in self.decisions.items():
            if decision.layer is not None:
                made[decision.layer] = name, False
            else:
                assert decision.group is not None
                readers = groups[decision.group].readers
                made |= {n: (name, True) for n in readers if not self.content.shared(n)}
        return made

    def deciding(self, layer: str) -> str:
        """The decision over a decided layer."""
        return self._deciding[layer][0]

    @property
    def decided(self) -> list[str]:
        """The layers whose weights the database holds."""
        return list(self._deciding)

    def columns(self, layer: str, kept: Mapping[str, np.ndarray]) -> np.ndarray:
        """Which columns of a layer are left, bool [groups, columns]."""
        spec = self.content.layers[layer]
        gone = gone_from(self.content.grouped, layer, kept)
        return np.ones((spec.groups, spec.columns), bool) if gone is None else ~gone

    def weight(self, layer: str, profile: Mapping[str, Level]) -> Tensor:
        """Of a decided layer: all its rows, and the columns that are left, in its shape. Raises
        DatabaseCorruptError."""
        kept, level = self.level_of(layer, profile)
        return self.database.weight(stored_name(layer, kept), level)

    def grid(self, layer: str, profile: Mapping[str, Level]) -> Grid | None:
        """Of a decided layer's weight, all its rows."""
        kept, level = self.level_of(layer, profile)
        return None if level.is_dense else self.database.grid(stored_name(layer, kept), level)

    def activation(self, layer: str, profile: Mapping[str, Level]) -> InputGrid | None:
        kept, level = self.level_of(layer, profile)
        if level.is_dense:
            return None
        return self.database.entry(stored_name(layer, kept), level).activation

    def reader(self, layer: str, weight: Tensor) -> Reader:
        """A layer that reads several groups, whose dense weight is [rows, columns]."""
        spec, content = self.content.layers[layer], self.content
        split = weight.double().reshape(spec.groups, -1, spec.columns)
        return Reader(spec, split, content.hinv[layer], content.means[layer], 0.0)


def by_decision(database: LayerDatabase) -> AnyDatabase:
    """The database by what a search decides."""
    return database if database.channels is None else ChannelDatabase(database)
