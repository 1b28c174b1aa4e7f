"""The parts of text data: calibration, test and train."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from apportion.evaluators.data.dataset import Dataset, Splits
from apportion.evaluators.data.text.config import TextSection


def locations(config: TextSection) -> dict[str, str]:
    """Part -> file or URL; without `train` where there is none of its own."""
    found = {"calibration": config.calibration, "test": config.test, "train": config.train}
    return {part: location for part, location in found.items() if location is not None}


def each_part(config: TextSection, read: Callable[[str, str], Dataset]) -> Splits:
    """`read(part, location)` of each."""
    return splits({part: read(part, location) for part, location in locations(config).items()})


def splits(parts: Mapping[str, Dataset]) -> Splits:
    return Splits(parts["calibration"], parts["test"], parts.get("train"))
