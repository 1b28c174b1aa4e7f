"""Measured additive tables beside the weights: what every level of every layer costs in fitness
when it stands alone.

A table is kept layer by layer, so that a measurement that was stopped goes on with the first layer
that is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from apportion.compressors.errors import DatabaseCorruptError, DocumentError, first_line
from apportion.db.documents.json_reader import read_json
from apportion.db.files import write_json
from apportion.db.layers import format

_MOST = 1 << 28


class AnyDatabase(Protocol):
    """A layer database, or one of channel levels: what decides, with its levels."""

    @property
    def path(self) -> Path: ...

    @property
    def fingerprint(self) -> str: ...

    def levels(self) -> dict[str, list[str]]: ...


class MeasuredTable:
    """One table in a database's folder. `key` says what was measured (fitness, batch-norm mode,
    data); tables of different keys stand side by side."""

    def __init__(self, database: AnyDatabase, key: Mapping[str, Any]) -> None:
        self._key = {"database": database.fingerprint, **key}
        self._counts = {name: len(levels) for name, levels in database.levels().items()}
        self.path: Path = database.path / format.TABLES / f"{format.digest(self._key)[:16]}.json"
        self._rows: dict[str, list[float]] = self._read()

    @property
    def rows(self) -> dict[str, list[float]]:
        """Layer -> rise of the fitness over the dense model, one number per level; layers not yet
        measured are absent."""
        return self._rows

    def add(self, layer: str, rises: list[float]) -> None:
        """Keep a layer's row; on the disk when this returns. Raises OutputError."""
        self._rows = {**self._rows, layer: rises}
        content = {
            "key": self._key,
            "rows": {n: [None if math.isinf(v) else v for v in r] for n, r in self._rows.items()},
        }
        write_json(self.path, {**content, "checksum": format.digest(content)})

    def _read(self) -> dict[str, list[float]]:
        if not self.path.is_file():
            return {}
        try:
            content = read_json(self.path, _MOST)
            checksum = content.pop("checksum")
            rows = {
                n: [math.inf if v is None else float(v) for v in r]
                for n, r in content["rows"].items()
            }
        except (
            DocumentError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
        ) as error:
            raise DatabaseCorruptError(
                self.path.parent.parent,
                f"table {self.path.name} cannot be read ({first_line(error)}); remove it",
            ) from error
        if checksum != format.digest(content) or any(
            len(r) != self._counts.get(n) for n, r in rows.items()
        ):
            raise DatabaseCorruptError(
                self.path.parent.parent, f"table {self.path.name} was altered (checksum); remove it"
            )
        return rows
