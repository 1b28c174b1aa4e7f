"""The project's own readers of data: importing this registers them."""

from __future__ import annotations

from apportion.evaluators.data import digits, readers
from apportion.evaluators.data.config import DataConfig
from apportion.evaluators.data.dataset import Splits
from apportion.evaluators.data.registry import Context, read
from apportion.evaluators.data.text import files, squad, tables
from apportion.evaluators.data.vision import boxes, listed, masks

__all__ = [
    "boxes",
    "digits",
    "files",
    "listed",
    "load_splits",
    "masks",
    "readers",
    "squad",
    "tables",
]


def load_splits(config: DataConfig, context: Context | None = None) -> Splits:
    """What `workload.data` names. Raises DataError, naming the file, folder or function and what
    would be valid; ConfigurationError for a function that cannot be imported."""
    return read(config, context or Context())
