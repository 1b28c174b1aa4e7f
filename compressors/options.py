"""How the weights of a database are made."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from apportion.compressors.grids import GridOptions


@dataclass(frozen=True, slots=True)
class CompressionOptions:
    """`damping`: share of the mean diagonal added to each Hessian's diagonal. `grid`: of quantized
    weights. `sequential`: every level is made on what reaches the layer when all earlier ones are
    at that level too. `memory`: bytes that the work on a layer may take besides its inputs and
    results (None: a quarter of what is free); it changes no weight."""

    damping: float = 0.0
    grid: GridOptions = field(default_factory=GridOptions)
    sequential: bool = False
    memory: int | None = None

    def to_json(self) -> dict[str, Any]:
        """What decides the weights. Options at their defaults are left out: a database that was
        built before they existed is still the same."""
        grid = asdict(self.grid) if self.grid != GridOptions() else {}
        if self.grid.scale == "free":
            grid.pop("scale", None)
        return {
            "damping": self.damping,
            **({"grid": grid} if grid else {}),
            **({"sequential": True} if self.sequential else {}),
        }
