"""Whether budgets can be met at all, and what holds them back."""

from __future__ import annotations

import numpy as np

from apportion.compressors.errors import InfeasibleBudgetError
from apportion.search.space.milp import least_stretch
from apportion.search.space.space import ROUNDING, SearchSpace


def check_budgets(space: SearchSpace) -> None:
    """Raise InfeasibleBudgetError when no profile meets all budgets."""
    for b, (metric, bound) in enumerate(space.budgets.items()):
        least = np.array([float(row.min()) for row in space.costs[metric]])
        if space.load_table[b].min(1).sum() <= space.limits[b] + ROUNDING:
            continue
        reachable = (space.base[metric] + float(least.sum())) / space.dense[metric]
        heaviest = int(least.argmax())
        layer = space.layers[heaviest]
        share = float(least[heaviest]) / space.dense[metric]
        reason = (
            f"cannot be met: {bound / space.dense[metric]:.4g} of the dense model is asked, the "
            "levels reach "
            f"{reachable:.4g} at the least; layer {layer!r} alone takes {share:.4g} at its "
            "cheapest level"
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
