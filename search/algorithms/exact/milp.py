"""milp: the proven optimum of the additive table under any number of budgets. It asks for that
profile, and is finished."""

from __future__ import annotations

from apportion.search.algorithms.base import Algorithm, Trial
from apportion.search.algorithms.registry import register
from apportion.search.space.additive import optimum


@register("milp")
class Milp(Algorithm):
    """Mixed-integer program, one binary variable per layer and level, solved by HiGHS through
    scipy. Bound and gap: `search.additive.milp`, and the league's report."""

    def propose(self) -> list[Trial]:
        candidate = optimum(self.space)
        return [] if candidate in self.known else [Trial(candidate)]
