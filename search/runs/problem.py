"""Problem: what the runs of a job share, whatever scores its candidates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

from apportion.compressors.levels import parse_level
from apportion.db.layers import format
from apportion.db.layers.profile import Profile
from apportion.evaluators.scoring.pool import Pool
from apportion.search.jobs.job import AnyJob
from apportion.search.space.additive import optimum
from apportion.search.space.decisions import Decisions
from apportion.search.space.repair import uniform
from apportion.search.space.space import Candidate, SearchSpace


@dataclass
class _Workers:
    """The pool that scores at present, and what for. The points of a front share them."""

    pool: tuple[str, Pool] | None = None


@dataclass(kw_only=True)
class Problem(ABC):
    """`full_space` is the space of all layers and levels, which candidates index; `space` what
    algorithms see, the `decisions` that the job leaves open. `id` names the job, `key` what a
    fitness depends on; `events` counts what befell the workers (lost, hung), brought up to date
    when they stop. A context: leaving it stops the workers."""

    job: AnyJob
    full_space: SearchSpace
    decisions: Decisions
    key: str
    id: str
    events: Counter[str] = field(default_factory=Counter)
    _shared: _Workers = field(default_factory=_Workers, repr=False)

    @cached_property
    def space(self) -> SearchSpace:
        return (
            self.full_space
            if self.decisions.is_free(self.full_space)
            else self.decisions.reduce(self.full_space)
        )

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What makes the job another one than those with other budgets, decisions or additive
        errors: its id is the digest; JSON."""

    def at(self, job: AnyJob, after: Sequence[str] = ()) -> Self:
        """The same problem within the budgets of `job`, with the same workers. `after`: the ids of
        the tighter points whose runs its own begin from; they make it another job than the same
        budgets alone."""
        dense = self.full_space.dense
        budgets = {own.metric: own.bound(dense[own.metric]) for own in job.bounds()}
        made = replace(self, job=job, full_space=replace(self.full_space, budgets=budgets))
        begun = {"after": list(after), "picks": job.search.picks} if after else {}
        return replace(made, id=format.digest(made.identity() | begun)[:8])

    @abstractmethod
    def start_pool(self) -> Pool:
        """Workers that score the job's fitness."""

    def start_selection_pool(self) -> Pool | None:
        """Workers that score candidates for the final pick; None where the best fitness is the
        pick."""
        return None

    def pool(self) -> Pool:
        """The workers that score; started when first asked for."""
        pool = self._switch("search")
        if pool is None:
            pool = self.start_pool()
            self._shared.pool = "search", pool
        return pool

    def selection_pool(self) -> Pool | None:
        """The workers of the final pick, or None; started when first asked for."""
        pool = self._switch("selection")
        if pool is None and (pool := self.start_selection_pool()) is not None:
            self._shared.pool = "selection", pool
        return pool

    def _switch(self, purpose: str) -> Pool | None:
        """One pool at a time: two would wait for each other's processors."""
        if self._shared.pool is not None and self._shared.pool[0] == purpose:
            return self._shared.pool[1]
        self._stop_pool()
        return None

    @property
    def worker_count(self) -> int:
        """Workers that score at present."""
        return self._shared.pool[1].there if self._shared.pool is not None else 0

    @property
    def replaced(self) -> Counter[str]:
        """What befell the workers so far."""
        return self.events + (
            self._shared.pool[1].events if self._shared.pool is not None else Counter()
        )

    def close(self) -> None:
        """Stop the workers."""
        self._stop_pool()

    def _stop_pool(self) -> None:
        if self._shared.pool is not None:
            self.events += self._shared.pool[1].events
            self._shared.pool[1].close()
            self._shared.pool = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def profile(self, candidate: Candidate) -> Profile:
        """The candidate as layer -> level."""
        names = zip(self.full_space.layers, self.full_space.levels, candidate, strict=True)
        return {layer: parse_level(levels[index]) for layer, levels, index in names}

    def about(self) -> dict[str, Any]:
        """The `task` and its `metric`, with unit and direction, and what is to be said of the
        additive `table`, for reports; empty without."""
        return {}

    def describe(self) -> dict[str, Any]:
        """All that a report needs to know what candidates stand for: layers, their levels, what
        those cost (shares of the dense model), `pairs` included where there are any (metric -> rows
        of two layers' numbers and their table), and their additive errors, the budgets, the uniform
        profile and the additive optimum, and the task."""
        full, dense = self.full_space, self.full_space.dense
        pairs = {
            metric: [[i, j, (table / dense[metric]).tolist()] for (i, j), table in own.items()]
            for metric, own in full.pairs.items()
        }
        return {
            "layers": list(full.layers),
            "levels": [list(levels) for levels in full.levels],
            "costs": {
                m: [(row / dense[m]).tolist() for row in rows] for m, rows in full.costs.items()
            },
            "base": {metric: base / dense[metric] for metric, base in full.base.items()},
            "errors": [row.tolist() for row in full.errors],
            "budgets": self.bounds(),
            "uniform": list(self.decisions.expand(uniform(self.space))),
            "optimum": list(self.decisions.expand(optimum(self.space))),
            **({"pairs": pairs} if any(pairs.values()) else {}),
            **self.about(),
        }

    def ratios(self, candidate: Candidate) -> dict[str, float]:
        """Every metric of the candidate as a fraction of the dense model's."""
        return {
            metric: self.full_space.total(metric, candidate) / self.full_space.dense[metric]
            for metric in self.full_space.costs
        }

    def bounds(self) -> dict[str, float]:
        """The budgets as fractions of the dense model."""
        return {
            metric: bound / self.full_space.dense[metric]
            for metric, bound in self.full_space.budgets.items()
        }
