"""What a pool's scorers are made from, in this process or on any node of a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from apportion.compressors.errors import DatabaseError
from apportion.db.channels.database import ChannelDatabase
from apportion.db.layers import format
from apportion.db.layers.database import LayerDatabase
from apportion.evaluators.scoring.channels import ChannelScorer
from apportion.evaluators.scoring.stitched import StitchedScorer
from apportion.evaluators.workloads.workload import Workload


class DatabaseElsewhereError(DatabaseError):
    """This node does not see the database's folder."""


class Shipment(Protocol):
    """A database that travels with the spec."""

    def open(self) -> LayerDatabase:
        """Raises OutputError, DatabaseError."""


@dataclass(frozen=True)
class ScoringSpec:
    """Everything that a scorer is made from, by calling it: a StitchedScorer, or a ChannelScorer
    where the database has channel levels.

    Travels without open files: where it arrives, the database is opened by its path. Where that
    path is not seen, a call raises DatabaseElsewhereError, unless a `shipment` came along.

    Args:
        workload: whose calibration data are scored.
        path: folder of the layer database.
        fingerprint: of that database: another one in its place does not count as seen.
        fitness: name of the fitness (evaluators/scoring/fitness.py).
        batchnorm: name of the batch-norm mode (evaluators/scoring/batchnorm.py).
        corrections: made for every candidate (compressors/corrections.py).
        device: where torch computes.
        precision: float32 or bf16.
        shipment: the database for nodes that do not see its folder.
    """

    workload: Workload
    path: Path
    fingerprint: str
    fitness: str
    batchnorm: str
    corrections: Sequence[str] = ()
    device: str = "cpu"
    precision: str = "float32"
    shipment: Shipment | None = None

    def __call__(self) -> StitchedScorer | ChannelScorer:
        database = self._database()
        if database.channels is not None:
            return ChannelScorer(
                self.workload,
                ChannelDatabase(database),
                self.fitness,
                self.batchnorm,
                corrections=self.corrections,
                device=self.device,
                precision=self.precision,
            )
        return StitchedScorer(
            self.workload,
            database,
            self.fitness,
            self.batchnorm,
            corrections=self.corrections,
            device=self.device,
            precision=self.precision,
        )

    def sees_database(self) -> bool:
        """Whether the database's folder is seen here."""
        return (self.path / format.MANIFEST).is_file()

    def _database(self) -> LayerDatabase:
        if self.sees_database():
            database = LayerDatabase.open(self.path)
            if database.fingerprint == self.fingerprint:
                return database
        if self.shipment is None:
            raise DatabaseElsewhereError(self.path, "this node does not see it")
        return self.shipment.open()
