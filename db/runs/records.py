"""What a run store gives and takes: runs and scored candidates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Run:
    """One algorithm x seed of a job. `state` is running, finished, failed or cancelled; `spent` the
    seconds that its sessions took. Of its trials: the number `told`, how many were `scored` for it,
    the evaluations `asked`, and the `best` fitness at full fidelity (None before the first). Of the
    algorithm: the seconds that it `thought` between scores (None before its end), and what it
    `notes` of itself."""

    id: str
    job: str
    algorithm: str
    parameters: dict[str, Any]
    seed: int
    evaluations: float
    state: str = "running"
    created: float = 0.0
    spent: float = 0.0
    told: int = 0
    scored: int = 0
    asked: float = 0.0
    best: float | None = None
    thought: float | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """As lists of runs show it."""
        return {
            "run": self.id,
            "job": self.job,
            "algorithm": self.algorithm,
            "seed": self.seed,
            "state": self.state,
            "asked": self.asked,
            "evaluations": self.evaluations,
            "trials": self.told,
            "scored": self.scored,
            "best": self.best,
            "seconds": self.spent,
        }


@dataclass(frozen=True, slots=True)
class StoredTrial:
    """A scored candidate. `fitness`: lower is better; `evaluated` is False where the score came
    from another trial; `seconds` is what scoring took."""

    candidate: tuple[int, ...]
    fidelity: float
    fitness: float
    evaluated: bool
    seconds: float
