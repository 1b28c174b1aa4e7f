"""Additive costs in the place of pairs', about a candidate, for solvers that need a sum over
layers: never below the true ones, or to first order."""

from __future__ import annotations

import numpy as np

from apportion.search.space.space import Candidate, SearchSpace


def majorant(space: SearchSpace, budget: int, about: Candidate) -> np.ndarray:
    """Loads [layers, most levels] under one budget (its number in `space.budgets`) whose sum is
    never below a candidate's true load, pairs included, and equal to it at `about`. A product's is
    split as a b <= (a^2 b0 / a0 + b^2 a0 / b0) / 2, any other table P by u_a + v_b >= P_ab, tight
    in both."""
    pairs = space.coupling
    own = space.load_table[budget]
    if pairs is None:
        return own
    tables = np.where(pairs.there, pairs.tables[budget], -np.inf)
    (i, j), numbers, at = pairs.edges.T, np.arange(len(pairs)), np.array(about)
    row = pairs.tables[budget][numbers, at[i]]
    centre = row[numbers, at[j]][:, None]
    # Any v and the least u beside it are a bound. Equal to P at (a0, b0) are these two: v_b =
    # P_a0b^2 / 2 P_a0b0, a product's half, and P_a0b - P_a0b0, where that would be divided by 0.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        half = row * (row / centre) / 2
    v = np.where((centre > 0) & np.isfinite(half), half, row - centre)
    u = _largest(tables - v[:, None, :], 2)
    v = _largest(tables - u[:, :, None], 1)
    made = np.zeros_like(own)
    np.add.at(made, i, u)
    np.add.at(made, j, v)
    return own + made


def linearised(space: SearchSpace, budget: int, about: Candidate) -> np.ndarray:
    """Loads [layers, most levels] under one budget whose sum is a candidate's true load where it
    differs from `about` in one layer at most: a b is a0 b + a b0 - a0 b0."""
    if space.coupling is None:
        return space.load_table[budget]
    twice = float(space.coupling.loads(np.array([about]))[budget, 0])
    return space.loads_beside(about)[budget] - twice / len(space.layers)


def _largest(tables: np.ndarray, axis: int) -> np.ndarray:
    """Along an axis; 0 where there is no such level."""
    most = tables.max(axis)
    return np.where(np.isfinite(most), most, 0.0)
