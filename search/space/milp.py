"""The proven optimum of an additive error under any number of budgets, by HiGHS's MILP; costs may
couple layers in pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from apportion.compressors.errors import SpaceError
from apportion.search.space.decisions import Decisions
from apportion.search.space.polytope import Polytope
from apportion.search.space.space import Candidate, SearchSpace

_NODES = 200_000
"""Branch-and-bound nodes before HiGHS gives up with the best it has: a limit of time would make
results depend on the machine."""
_COUPLED_COLUMNS = 20_000_000
"""The same where layers are coupled: of all nodes together, as each linear program may be large."""
_COLUMNS = 100_000
"""Pairs of levels of coupled layers beyond which not all levels are looked at together ..."""
_SOME = 30_000
_ROUNDS = 4
"""... but so many pairs, so often at most."""
_MARGINS = (0.0, 1e-7, 1e-5)
"""HiGHS holds constraints to 1e-6: step back where that shows ..."""
_TIGHTENED = 8
"""... and with pairs, whose costs are those of real channels, by twice what was too much, so often
at most."""


@dataclass(frozen=True, slots=True)
class Solution:
    """A feasible candidate, its additive error, and a `bound` below which no feasible candidate's
    error lies (-inf: unknown)."""

    candidate: Candidate
    error: float
    bound: float = -np.inf

    @property
    def gap(self) -> float:
        """By which share of the error it may lie above the optimum; 0: it is proven to be that."""
        above = self.error - self.bound
        return above / max(abs(self.error), 1e-300) if above > 1e-9 * abs(self.error) else 0.0


def milp(space: SearchSpace, errors: np.ndarray | None = None) -> Solution:
    """The optimum under all budgets, with the solver's proven bound; of very many coupled levels a
    good candidate without a bound. Raises SpaceError when there is none."""
    table = space.error_table if errors is None else errors
    if _columns(space, int(space.counts.max())) > _COLUMNS:
        return _refined(space, table)
    return _solve(space, table)


def _solve(space: SearchSpace, table: np.ndarray) -> Solution:
    layers = np.arange(len(space.layers))
    program = Polytope(space)
    scale = _scale(space, table)
    bound, over = -np.inf, np.zeros(len(space.budgets))
    for attempt, margin in enumerate(_MARGINS if space.coupling is None else [0.0] * _TIGHTENED):
        result = program.least(
            program.errors(table) / scale,
            space.limits - margin - over,
            node_limit=_nodes(space, program),
            mip_rel_gap=1e-9,
        )
        if result.x is None:
            break
        if not attempt:
            bound = float(result.mip_dual_bound) * scale
        candidate = program.chosen(result.x)
        if space.feasible(candidate):
            return Solution(candidate, float(table[layers, list(candidate)].sum()), bound)
        if space.coupling is not None:
            over += 2 * np.maximum(space.loads(candidate) - space.limits, 0.0)
    cheapest = space.cheapest()
    if space.feasible(
        cheapest
    ):  # a budget that the cheapest profile alone meets, within HiGHS's tolerance of none
        return Solution(cheapest, float(table[layers, list(cheapest)].sum()))
    raise SpaceError("no candidate meets all budgets; check_budgets says which one is in the way")


def _columns(space: SearchSpace, most: int) -> int:
    """How many variables the pairs need, with `most` levels per layer."""
    if space.coupling is None:
        return 0
    return int(np.minimum(space.counts, most)[space.coupling.edges].prod(1).sum())


def _refined(space: SearchSpace, table: np.ndarray) -> Solution:
    """The optimum among some levels of every layer, evenly chosen; then among as many that lie
    around it, until that is no better."""
    most = int(space.counts.max())
    while most > 4 and _columns(space, most) > _SOME:
        most = most * 3 // 4
    best: Solution | None = None
    about = space.cheapest()
    for _ in range(_ROUNDS):
        choices = []
        for layer, (order, level) in enumerate(zip(space.order, about, strict=True)):
            if best is None:
                chosen = np.linspace(0, len(order) - 1, min(most, len(order))).astype(int)
            else:
                first = int(space.position[layer, level]) - most // 2
                first = max(0, min(first, len(order) - most))
                chosen = np.arange(first, min(first + most, len(order)))
            choices.append(sorted({level, *order[chosen].tolist()}))
        decisions = Decisions(
            tuple((layer,) for layer in range(len(choices))),
            tuple(tuple((level,) for level in own) for own in choices),
        )
        small = decisions.reduce(space)
        own_errors = small.pad([table[layer, own] for layer, own in enumerate(choices)])
        found = _solve(small, own_errors)
        if best is not None and found.error >= best.error:
            break
        about = decisions.expand(found.candidate)
        best = Solution(about, found.error)
    assert best is not None
    return best


def solved(space: SearchSpace) -> Candidate:
    """`milp` for the space's own errors; it keeps the answer."""
    if "milp" not in space.solved:
        space.solved["milp"] = milp(space).candidate
    return space.solved["milp"]


def least_stretch(space: SearchSpace) -> float:
    """The least factor by which all budgets' room must grow so that they can be met together; at
    most 1 when they can."""
    program = Polytope(space)
    result = program.stretched(space.limits, node_limit=_nodes(space, program))
    if result.x is None:
        return np.inf
    # Nodes that did not suffice: what is proven, so that no budget is refused that can be met.
    return float(result.fun if result.status == 0 else result.mip_dual_bound)


def least_profile(space: SearchSpace, budget: int) -> Candidate:
    """The profile with the least load under one budget (its number in `space.budgets`)."""
    chosen = space.load_table[budget].argmin(1)
    if (pairs := space.coupling) is None:
        return tuple(int(i) for i in chosen)
    # Nothing lies below the sum of all minima: products have it, at the smallest of everything.
    table = np.where(pairs.there, pairs.tables[budget], np.inf)
    chosen = (space.load_table[budget] + pairs.minima(table)).argmin(1)
    lowest = space.load_table[budget].min(1).sum() + table.min((1, 2)).sum()
    if space.loads(chosen)[budget] <= lowest + 1e-12:
        return tuple(int(i) for i in chosen)
    program = Polytope(space)
    result = program.least(program.loads[budget], node_limit=_nodes(space, program))
    return space.cheapest() if result.x is None else program.chosen(result.x)


def _nodes(space: SearchSpace, program: Polytope) -> int:
    return _NODES if space.coupling is None else max(20, _COUPLED_COLUMNS // program.width)


def _scale(space: SearchSpace, errors: np.ndarray) -> float:
    """Unit of the objective: HiGHS stops within 1e-6 of an optimum, and losses of channel groups
    may be as small."""
    if space.coupling is None:
        return 1.0
    largest = np.where(np.isfinite(errors), np.abs(errors), 0.0).max(1)
    return float(np.median(largest[largest > 0])) if largest.any() else 1.0
