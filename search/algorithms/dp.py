"""dp: the optimum of the additive table. It asks for that profile and the uniform one, and is finished."""

from __future__ import annotations

from search.algorithms.base import Algorithm, Trial, register


@register("dp")
class DynamicProgram(Algorithm):
    """Exact for an additive error (Frantar & Alistarh 2022, algorithm 1): dynamic program, checked by MILP."""

    def propose(self) -> list[Trial]:
        candidate = self.space.optimum
        return [] if candidate in self.known else [Trial(candidate)]
