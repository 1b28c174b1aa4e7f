"""dp: the optimum of the additive table by dynamic programming. It asks for that profile, and is
finished."""

from __future__ import annotations

from apportion.search.algorithms.base import Algorithm, Trial
from apportion.search.algorithms.registry import register
from apportion.search.space.additive import solve


@register("dp")
class DynamicProgram(Algorithm):
    """Exact up to buckets for one budget (Frantar & Alistarh 2022, algorithm 1; costs rounded up);
    for several, the best of the optima under each one, repaired: `milp` is exact there."""

    def propose(self) -> list[Trial]:
        candidate = solve(self.space)
        return [] if candidate in self.known else [Trial(candidate)]
