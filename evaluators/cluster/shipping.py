"""A layer database in Ray's object store, for workers on nodes that do not see its folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apportion.compressors.folders import cache_folder
from apportion.db.layers.database import LayerDatabase
from apportion.db.layers.shipping import ShippedDatabase
from apportion.evaluators.cluster.connection import import_ray


@dataclass(frozen=True)
class RayShipment:
    """A scorer's Shipment (evaluators/scoring/spec.py)."""

    database: ShippedDatabase

    @classmethod
    def of(cls, path: Path, put: Callable[[Any], Any]) -> RayShipment:
        """`put` the finished database at `path` into the object store."""
        return cls(ShippedDatabase.of(LayerDatabase.open(path), put))

    def open(self) -> LayerDatabase:
        """Unpack it in this node's cache folder, once, and open it there. Raises OutputError,
        DatabaseError."""
        return self.database.open(cache_folder() / "databases", import_ray().get)
