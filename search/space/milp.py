"""The proven optimum of an additive error under any number of budgets, by HiGHS's MILP."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint
from scipy.optimize import milp as highs

from apportion.compressors.errors import SpaceError
from apportion.search.space.space import Candidate, SearchSpace

_NODES = 200_000
"""Branch-and-bound nodes before HiGHS gives up with the best it has: a limit of time would make
results depend on the machine."""


@dataclass(frozen=True, slots=True)
class Solution:
    """A feasible candidate, its additive error, and a `bound` below which no feasible candidate's
    error lies (-inf: unknown)."""

    candidate: Candidate
    error: float
    bound: float = -np.inf


def milp(space: SearchSpace, errors: np.ndarray | None = None) -> Solution:
    """The optimum under all budgets, with the solver's proven bound. Raises SpaceError when there
    is none."""
    table = space.error_table if errors is None else errors
    present = np.isfinite(space.error_table)
    layer_of, _ = np.nonzero(present)
    weights = np.clip(table[present], -1e12, 1e12)
    one_each = sparse.csr_array((np.ones(len(layer_of)), (layer_of, np.arange(len(layer_of)))))
    for margin in (0.0, 1e-7, 1e-5):  # HiGHS holds constraints to 1e-6: step back where that shows
        constraints = [LinearConstraint(one_each, 1, 1)]
        if space.budgets:
            constraints.append(
                LinearConstraint(space.load_table[:, present], -np.inf, space.limits - margin)
            )
        result = _quietly(
            weights,
            integrality=np.ones(len(weights), dtype=np.int64),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"node_limit": _NODES, "mip_rel_gap": 1e-9},
        )
        if result.x is None:
            break
        candidate = _chosen(present, result.x)
        if space.feasible(candidate):
            error = float(table[np.arange(len(candidate)), list(candidate)].sum())
            return Solution(
                candidate, error, float(result.mip_dual_bound) if margin == 0.0 else -np.inf
            )
    cheapest = space.cheapest()
    if space.feasible(
        cheapest
    ):  # a budget that the cheapest profile alone meets, within HiGHS's tolerance of none
        return Solution(cheapest, float(table[np.arange(len(cheapest)), list(cheapest)].sum()))
    raise SpaceError("no candidate meets all budgets; check_budgets says which one is in the way")


def least_stretch(space: SearchSpace) -> float:
    """The least factor by which all budgets' room must grow so that they can be met together; at
    most 1 when they can."""
    present = np.isfinite(space.error_table)
    layer_of, _ = np.nonzero(present)
    count = len(layer_of)
    one_each = sparse.csr_array(
        (np.ones(count), (layer_of, np.arange(count))), shape=(len(space.layers), count + 1)
    )
    loads = np.hstack([space.load_table[:, present], -space.limits[:, None]])
    result = _quietly(
        np.append(np.zeros(count), 1.0),
        integrality=np.append(np.ones(count, dtype=np.int64), 0),
        bounds=Bounds(0, np.append(np.ones(count), np.inf)),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(loads, -np.inf, 0)],
    )
    return float(result.fun) if result.x is not None else np.inf


def _quietly(*arguments: Any, **options: Any) -> Any:
    """HiGHS, with what it prints sent to stderr: some of its releases leave debugging lines on the
    process's stdout, where they would spoil JSON."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        return highs(*arguments, **options)
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _chosen(present: np.ndarray, x: np.ndarray) -> Candidate:
    table = np.full(present.shape, -1.0)
    table[present] = x
    return tuple(int(i) for i in table.argmax(1))
