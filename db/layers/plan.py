"""What a layer database is built from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apportion.compressors.layers import LayerSpec
from apportion.compressors.levels import Level
from apportion.compressors.obs import fits
from apportion.compressors.options import CompressionOptions
from apportion.db.layers import format


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What a database is built from. Two builds with equal plans give equal databases. `model` and
    `calibration` are fingerprints, `levels` all levels wanted (a layer lacks those that do not fit
    it), `exceptions` layers that want others, `outputs` what the model gives for a few inputs
    (db/layers/outputs.py), or None."""

    model: str
    calibration: str
    levels: tuple[Level, ...]
    options: CompressionOptions
    exceptions: Mapping[str, Sequence[Level]]
    outputs: tuple[float, ...] | None = None

    def of(self, layer: LayerSpec) -> tuple[Level, ...]:
        """The levels that the layer gets."""
        return tuple(
            level for level in self.exceptions.get(layer.name, self.levels) if fits(layer, level)
        )

    def to_json(self, layers: Sequence[LayerSpec]) -> dict[str, Any]:
        content = {
            "format": "apportion-layer-database",
            "version": format.VERSION,
            "model": self.model,
            "calibration": self.calibration,
            "levels": list(map(str, self.levels)),
            "options": self.options.to_json(),
            "layers": [layer.name for layer in layers],
        }
        if self.exceptions:
            content["exceptions"] = {
                name: list(map(str, levels)) for name, levels in self.exceptions.items()
            }
        if self.outputs is not None:
            content["outputs"] = list(self.outputs)
        return content
