"""greedy: from the least compressed profile down, always the change with the least additive error
per cost."""

from __future__ import annotations

from apportion.search.algorithms.base import Algorithm, Trial
from apportion.search.algorithms.registry import register
from apportion.search.space.repair import repair


@register("greedy")
class Greedy(Algorithm):
    """NetAdapt's rule (Yang et al. 2018) on the additive table: until all budgets hold, the change
    with the least error per violation removed. It asks for that profile, and is finished."""

    def propose(self) -> list[Trial]:
        start = tuple(int(order[0]) for order in self.space.order)
        candidate = repair(self.space, start)
        return [] if candidate in self.known else [Trial(candidate)]
