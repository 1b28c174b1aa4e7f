"""race: algorithms compete for one evaluation budget by successive halving."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from apportion.compressors.errors import ConfigurationError
from apportion.search.algorithms.base import Algorithm, Trial
from apportion.search.algorithms.registry import create, register
from apportion.search.space.space import SearchSpace

_ENTRANTS = ("surrogate", "evopress", "spdy", "anneal")


@register("race")
class Race(Algorithm):
    """Ours, after Jamieson & Talwalkar 2016: every round spends an equal part of the evaluations,
    shared equally among those still in the race; then the half that lowered the best fitness by
    more goes on. All hear of every profile that is scored in full, so that each goes on from the
    best one. `earned`, in the notes: by how much each algorithm lowered the best fitness."""

    def __init__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        evaluations: float,
        *,
        cold: bool = False,
        algorithms: list[str] = list(_ENTRANTS),  # noqa: B006 - never changed
    ) -> None:
        super().__init__(space, rng, evaluations, cold=cold)
        if not algorithms or "race" in algorithms or len(set(algorithms)) < len(algorithms):
            raise ConfigurationError(
                "algorithm 'race': parameter 'algorithms' must name different ones, and not 'race'"
            )
        self._rivals = {
            name: create(name, space, own, evaluations / len(algorithms), {"cold": True})
            for name, own in zip(algorithms, rng.spawn(len(algorithms)), strict=True)
        }
        self.earned = dict.fromkeys(self._rivals, 0.0)
        self._own_best = dict.fromkeys(self._rivals, np.inf)
        self._running = list(self._rivals)
        self._round = evaluations / (1 + math.ceil(math.log2(len(self._rivals))))
        self._share: dict[str, float] = {}
        self._turn: str | None = None
        self._lowest = np.inf
        self._deal()

    def propose(self) -> list[Trial]:
        while self._running:
            self._turn = max(self._running, key=lambda name: self._share[name])
            if self._share[self._turn] <= 0:
                self._halve()
                continue
            if asked := self._rivals[self._turn].ask():
                return asked
            self._running.remove(self._turn)  # it has nothing left to ask
        return []

    def learn(self, trials: Sequence[Trial]) -> None:
        for name, rival in self._rivals.items():
            if name == self._turn:
                rival.tell(trials)
                continue
            for trial in trials:
                if trial.fidelity == 1.0 and math.isfinite(
                    self.known[trial.candidate]
                ):  # inf may mean: above its bound
                    rival.inform(trial.candidate, self.known[trial.candidate])
        found = min((self.known[t.candidate] for t in trials if t.fidelity == 1.0), default=np.inf)
        before, self._lowest = self._lowest, min(self._lowest, found)
        if self._turn is None:
            return  # the starting profiles
        self._share[self._turn] -= sum(trial.fidelity for trial in trials)
        self._own_best[self._turn] = min(self._own_best[self._turn], found)
        if np.isfinite(before):
            self.earned[self._turn] += before - self._lowest

    def notes(self) -> dict[str, Any]:
        return {"earned": self.earned}

    def _halve(self) -> None:
        """The half that lowered the best fitness by more: as all share the best profile, their own
        ones hardly differ, and say little. Own best profiles decide among equals, then the order of
        entry."""
        ranked = sorted(self._running, key=lambda name: (-self.earned[name], self._own_best[name]))
        kept = ranked[: math.ceil(len(self._running) / 2)]
        self._running = [name for name in self._running if name in kept]
        self._deal()

    def _deal(self) -> None:
        self._share = dict.fromkeys(self._running, self._round / max(1, len(self._running)))
