"""Making scorers where they are to work: in this process, or on any node of a cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compressors.errors import DatabaseError
from db import format
from db.cluster import import_ray
from db.database import LayerDatabase
from db.shipping import ShippedDatabase
from evaluators.files import cache_folder
from evaluators.stitched import StitchedScorer
from evaluators.workloads import Workload


class DatabaseElsewhereError(DatabaseError):
    """This node does not see the database's folder."""


@dataclass(frozen=True)
class ScorerMaker:
    """Makes StitchedScorers for a pool. Travels without open files: where it arrives, the database is opened by its path. Where
    that path is not seen, a call raises DatabaseElsewhereError, and the `shipped` maker brings the database along."""

    workload: Workload
    path: Path
    fingerprint: str
    options: dict[str, Any]
    shipment: ShippedDatabase | None = None

    def __call__(self) -> StitchedScorer:
        return StitchedScorer(self.workload, self._database(), **self.options)

    def shipped(self, put: Callable[[Any], Any]) -> ScorerMaker:
        """The same with the database in Ray's object store."""
        return replace(self, shipment=ShippedDatabase.of(LayerDatabase.open(self.path), put))

    def sees(self) -> bool:
        """Whether the database's folder is seen here."""
        return (self.path / format.MANIFEST).is_file()

    def _database(self) -> LayerDatabase:
        if self.sees() and (found := LayerDatabase.open(self.path)).fingerprint == self.fingerprint:
            return found
        if self.shipment is None:
            raise DatabaseElsewhereError(self.path, "this node does not see it")
        return self.shipment.open(cache_folder() / "databases", import_ray().get)
