"""A layer database on its way to a node that does not see its folder: through Ray's object store,
once per node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from apportion.db.files import write_atomically, write_bytes
from apportion.db.layers import format
from apportion.db.layers.database import LayerDatabase


@dataclass(frozen=True)
class ShippedDatabase:
    """`files`: the database's files, relative to its folder, as references to uint8 arrays in the
    object store; the manifest is the last of them."""

    fingerprint: str
    files: dict[str, Any]

    @classmethod
    def of(cls, database: LayerDatabase, put: Callable[[np.ndarray], Any]) -> ShippedDatabase:
        """`put` a finished database."""
        names = [*database.files(), format.MANIFEST]
        return cls(
            database.fingerprint,
            {name: put(np.fromfile(database.path / name, np.uint8)) for name in names},
        )

    def open(self, folder: Path, get: Callable[[Any], np.ndarray]) -> LayerDatabase:
        """Unpack it in `folder`, where that was not done before, and open it. Several processes may
        do so at once. Raises OutputError, DatabaseError."""
        target = folder / self.fingerprint
        for name, reference in self.files.items():
            if not (target / name).is_file():
                write_atomically(target / name, partial(_write, content=get(reference)))
        return LayerDatabase.open(target)


def _write(path: Path, content: np.ndarray) -> None:
    write_bytes(path, content.tobytes())
