"""What a database of channel levels is built from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apportion.compressors.levels import Level
from apportion.compressors.options import CompressionOptions
from apportion.db.channels.sizes import SizeRules
from apportion.db.layers import format

DAMPING = 1e-3
"""Where the job names none: channels that say the same make Hessians singular."""


@dataclass(frozen=True)
class ChannelPlan:
    """Two builds with equal plans give equal databases.

    Args:
        model: its fingerprint.
        calibration: fingerprint of the data.
        levels: of groups and layers; dense among them.
        options: of the compressor.
        rules: how many channels stay.
        orders: what decides in which order channels go, for JSON.
        outputs: what the model gives for a few inputs (db/layers/outputs.py), or None.
    """

    model: str
    calibration: str
    levels: tuple[Level, ...]
    options: CompressionOptions
    rules: SizeRules
    orders: Mapping[str, Any]
    outputs: tuple[float, ...] | None = None

    @property
    def damping(self) -> float:
        return self.options.damping or DAMPING

    def to_json(self) -> dict[str, Any]:
        content = {
            "format": "apportion-layer-database",
            "version": format.VERSION,
            "model": self.model,
            "calibration": self.calibration,
            "levels": list(map(str, self.levels)),
            "options": self.options.to_json(),
            "channel_rules": {**self.rules.to_json(), **self.orders},
        }
        return content if self.outputs is None else {**content, "outputs": list(self.outputs)}
