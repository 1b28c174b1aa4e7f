"""The outputs that a database records of its model: the same weights with another forward are
another model."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apportion.compressors.errors import DatabaseError, DatabaseMismatchError

log = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""By how much they may differ, as a share of the largest. Another processor rounds otherwise: by up
to 1e-6 in ResNets and EfficientNets of 14 to 56 layers, between oneDNN, plain kernels and double
precision."""


def check_outputs(path: Path, recorded: Any, found: Sequence[float] | None) -> None:
    """Compare what the database at `path` recorded with what the model gives now. A database of
    version 0.1.0 recorded none: a warning says that it cannot be checked. Raises
    DatabaseMismatchError where they differ by more than rounding, DatabaseError for a record that
    is none."""
    if found is None:
        return
    if recorded is None:
        log.warning(
            "layer database %s: an earlier version built it, and recorded no outputs of the model; "
            "whether the model's forward is still the same cannot be checked",
            path,
        )
        return
    if not isinstance(recorded, list) or not all(
        isinstance(value, int | float) and math.isfinite(value) for value in recorded
    ):
        raise DatabaseError(path, "build.json: `outputs` is no list of numbers")
    scale = max((abs(value) for value in recorded), default=0.0)
    difference = (
        max((abs(a - b) for a, b in zip(recorded, found, strict=True)), default=0.0)
        if len(recorded) == len(found)
        else math.inf
    )
    if difference > TOLERANCE * scale:
        raise DatabaseMismatchError(
            path,
            "it was built from a model with the same weights and another forward: outputs on "
            f"calibration inputs differ by up to {difference:.3g}, of {scale:.3g}; use the forward "
            "it was built from, or another folder",
        )
