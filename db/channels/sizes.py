"""How many channels stay at a level of a group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from apportion.compressors.errors import UnknownNameError
from apportion.compressors.groups.find import CHANNELS, ChannelGroup
from apportion.compressors.levels import DROP, Level


@dataclass(frozen=True)
class SizeRules:
    """multiple: pattern of layers -> what the channels that such layers make are left in multiples
    of (heads are not); the last pattern that matches holds. least: channels or heads that stay,
    unless all are dropped. skip: patterns of layers whose channels all stay."""

    multiple: Mapping[str, int]
    least: int = 1
    skip: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        return {"multiple": dict(self.multiple), "least": self.least, "skip": list(self.skip)}

    def check(self, groups: Sequence[ChannelGroup]) -> None:
        """Raises UnknownNameError for a pattern that matches no layer that makes channels."""
        names = [name for group in groups for name in group.makers]
        for pattern in (*self.multiple, *self.skip):
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UnknownNameError("layer", pattern, names, "database.channels")

    def skips(self, group: ChannelGroup) -> bool:
        return any(fnmatchcase(name, pattern) for name in group.makers for pattern in self.skip)

    def kept(self, group: ChannelGroup, level: Level) -> int:
        """Channels or heads that stay: the share that the level leaves, rounded up to a multiple;
        all, where that is no less."""
        if level == DROP:
            return 0
        own = [
            multiple
            for pattern, multiple in self.multiple.items()
            if any(fnmatchcase(name, pattern) for name in group.makers)
        ]
        step = own[-1] if own and group.unit == CHANNELS else 1
        share = round(group.size * (1 - level.channels), 6)
        left = max(step * math.ceil(share / step), step * math.ceil(self.least / step))
        return min(left, group.size)
