"""Problem: what the runs of a job share, whatever scores its candidates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

from compressors.levels import parse_level
from db.profile import Profile
from evaluators.pool import Pool
from search.decisions import Decisions
from search.job import AnyJob
from search.space import Candidate, SearchSpace


@dataclass(kw_only=True)
class Problem(ABC):
    """`whole` is the space of all layers and levels, which candidates index; `space` what algorithms see, the `decisions` that
    the job leaves open. `id` names the job, `key` what a fitness depends on; `events` counts what befell the workers (lost,
    hung), brought up to date when they stop. A context: leaving it stops the workers."""

    job: AnyJob
    whole: SearchSpace
    decisions: Decisions
    key: str
    id: str
    events: Counter[str] = field(default_factory=Counter)
    _pool: tuple[str, Pool] | None = field(default=None, repr=False)

    @cached_property
    def space(self) -> SearchSpace:
        return self.whole if self.decisions.is_free(self.whole) else self.decisions.reduce(self.whole)

    @abstractmethod
    def start_pool(self) -> Pool:
        """Workers that score the job's fitness."""

    def start_selection_pool(self) -> Pool | None:
        """Workers that score candidates for the final pick; None where the best fitness is the pick."""
        return None

    def pool(self) -> Pool:
        """The workers that score; started when first asked for."""
        pool = self._switch("search")
        if pool is None:
            pool = self.start_pool()
            self._pool = "search", pool
        return pool

    def selection_pool(self) -> Pool | None:
        """The workers of the final pick, or None; started when first asked for."""
        pool = self._switch("selection")
        if pool is None and (pool := self.start_selection_pool()) is not None:
            self._pool = "selection", pool
        return pool

    def _switch(self, purpose: str) -> Pool | None:
        """One pool at a time: two would wait for each other's processors."""
        if self._pool is not None and self._pool[0] == purpose:
            return self._pool[1]
        self._stop_pool()
        return None

    @property
    def workers(self) -> int:
        """Workers that score at present."""
        return self._pool[1].there if self._pool is not None else 0

    @property
    def replaced(self) -> Counter[str]:
        """What befell the workers so far."""
        return self.events + (self._pool[1].events if self._pool is not None else Counter())

    def close(self) -> None:
        """Stop the workers."""
        self._stop_pool()

    def _stop_pool(self) -> None:
        if self._pool is not None:
            self.events += self._pool[1].events
            self._pool[1].close()
            self._pool = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def profile(self, candidate: Candidate) -> Profile:
        """The candidate as layer -> level."""
        names = zip(self.whole.layers, self.whole.levels, candidate, strict=True)
        return {layer: parse_level(levels[index]) for layer, levels, index in names}

    def describe(self) -> dict[str, Any]:
        """All that a report needs to know what candidates stand for: layers, their levels, what those cost (shares of the dense
        model) and their additive errors, the budgets, and the uniform profile and the additive optimum."""
        whole, dense = self.whole, self.whole.dense
        return {
            "layers": list(whole.layers),
            "levels": [list(levels) for levels in whole.levels],
            "costs": {m: [(row / dense[m]).tolist() for row in rows] for m, rows in whole.costs.items()},
            "base": {metric: base / dense[metric] for metric, base in whole.base.items()},
            "errors": [row.tolist() for row in whole.errors],
            "budgets": self.bounds(),
            "uniform": list(self.decisions.expand(self.space.uniform())),
            "optimum": list(self.decisions.expand(self.space.optimum)),
        }

    def ratios(self, candidate: Candidate) -> dict[str, float]:
        """Every metric of the candidate as a fraction of the dense model's."""
        return {metric: self.whole.total(metric, candidate) / self.whole.dense[metric] for metric in self.whole.costs}

    def bounds(self) -> dict[str, float]:
        """The budgets as fractions of the dense model."""
        return {metric: bound / self.whole.dense[metric] for metric, bound in self.whole.budgets.items()}
