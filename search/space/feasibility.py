"""Whether budgets can be met at all, and what holds them back."""

from __future__ import annotations

import numpy as np

from apportion.compressors.errors import InfeasibleBudgetError
from apportion.search.space.milp import least_profile, least_stretch
from apportion.search.space.space import ROUNDING, Candidate, SearchSpace


def check_budgets(space: SearchSpace) -> None:
    """Raise InfeasibleBudgetError when no profile meets all budgets."""
    for b, (metric, bound) in enumerate(space.budgets.items()):
        cheapest = least_profile(space, b)
        if space.loads(cheapest)[b] <= space.limits[b] + ROUNDING:
            continue
        least = _shares(space, metric, cheapest)
        reachable = space.total(metric, cheapest) / space.dense[metric]
        heaviest = int(least.argmax())
        layer = space.layers[heaviest]
        share = float(least[heaviest]) / space.dense[metric]
        is_coupled = any(heaviest in edge for edge in space.pairs.get(metric, {}))
        reason = (
            f"cannot be met: {bound / space.dense[metric]:.4g} of the dense model is asked, the "
            "levels reach "
            f"{reachable:.4g} at the least; layer {layer!r} "
            f"{'and those it is coupled to take' if is_coupled else 'alone takes'} {share:.4g} at "
            f"{'their' if is_coupled else 'its'} cheapest level"
        )
        if space.base[metric] > least.max():
            reason += f", what is not compressed {space.base[metric] / space.dense[metric]:.4g}"
        raise InfeasibleBudgetError(metric, bound / space.dense[metric], reachable, layer, reason)
    if len(space.budgets) > 1 and not space.feasible(space.cheapest()):
        stretch = least_stretch(space)
        if stretch > 1 + 1e-9:
            names = " and ".join(space.budgets)
            reason = (
                f"each can be met alone, but not together: {names} would have to be "
                f"{stretch:.4g} times as large"
            )
            raise InfeasibleBudgetError(names, 1.0, stretch, None, reason)


def _shares(space: SearchSpace, metric: str, candidate: Candidate) -> np.ndarray:
    """What each layer costs, alone and in its pairs, [layers]."""
    made = np.array([float(r[k]) for r, k in zip(space.costs[metric], candidate, strict=True)])
    for (i, j), table in space.pairs.get(metric, {}).items():
        made[[i, j]] += table[candidate[i], candidate[j]]
    return made
