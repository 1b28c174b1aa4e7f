"""What a search decides: one level per layer or set of tied layers, among those that the job
allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apportion.compressors.errors import ConfigurationError
from apportion.search.space.pairs import PairTables
from apportion.search.space.space import Candidate, SearchSpace


@dataclass(frozen=True)
class Decisions:
    """`members[k]`: the layers of decision k; `choices[k][i]`: the level index of each of them
    under its i-th choice."""

    members: tuple[tuple[int, ...], ...]
    choices: tuple[tuple[tuple[int, ...], ...], ...]

    @classmethod
    def make(
        cls, space: SearchSpace, allowed: Sequence[Sequence[int]], groups: Sequence[Sequence[int]]
    ) -> Decisions:
        """Tied layers (`groups`, indices) choose among the level names that all of them are
        `allowed` (indices per layer). Raises ConfigurationError where they have none in common."""
        choices = []
        for group in groups:
            by_name = [{space.levels[layer][i]: i for i in allowed[layer]} for layer in group]
            names = [name for name in by_name[0] if all(name in other for other in by_name)]
            if not names:
                tied = ", ".join(repr(space.layers[layer]) for layer in group)
                raise ConfigurationError(f"layers.tie: {tied} have no level in common")
            choices.append(tuple(tuple(levels[name] for levels in by_name) for name in names))
        return cls(tuple(tuple(group) for group in groups), tuple(choices))

    @classmethod
    def free(cls, space: SearchSpace) -> Decisions:
        """Every layer decides alone among all of its levels."""
        return cls.make(
            space,
            [range(count) for count in space.counts],
            [[layer] for layer in range(len(space.layers))],
        )

    def expand(self, candidate: Candidate) -> Candidate:
        """Choice indices, one per decision -> level indices, one per layer."""
        levels = [0] * sum(map(len, self.members))
        for members, choices, index in zip(self.members, self.choices, candidate, strict=True):
            for layer, level in zip(members, choices[index], strict=True):
                levels[layer] = level
        return tuple(levels)

    def condense(self, candidate: Candidate) -> Candidate:
        """The other way, for a candidate that `expand` made."""
        return tuple(
            choices.index(tuple(candidate[layer] for layer in members))
            for members, choices in zip(self.members, self.choices, strict=True)
        )

    def is_free(self, space: SearchSpace) -> bool:
        """Whether every layer decides alone among all of its levels."""
        return [len(c) for c in self.choices] == space.counts.tolist()

    def reduce(self, space: SearchSpace) -> SearchSpace:
        """The space of the decisions: costs and errors of tied layers add up, what pairs of them
        cost included. A layer that has no choice stays a decision with one level."""

        def added(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
            return tuple(
                np.array(
                    [
                        sum(
                            rows[layer][level] for layer, level in zip(members, choice, strict=True)
                        )
                        for choice in choices
                    ]
                )
                for members, choices in zip(self.members, self.choices, strict=True)
            )

        costs = {metric: added(rows) for metric, rows in space.costs.items()}
        pairs = {
            metric: self._pairs(tables, costs[metric]) for metric, tables in space.pairs.items()
        }
        return SearchSpace(
            layers=tuple(
                "+".join(space.layers[layer] for layer in members) for members in self.members
            ),
            levels=tuple(
                tuple(space.levels[members[0]][choice[0]] for choice in choices)
                for members, choices in zip(self.members, self.choices, strict=True)
            ),
            costs=costs,
            base=space.base,
            dense=space.dense,
            budgets=space.budgets,
            errors=added(space.errors),
            pairs=pairs,
        )

    def _pairs(
        self, tables: PairTables, costs: Sequence[np.ndarray]
    ) -> dict[tuple[int, int], np.ndarray]:
        """What decisions cost in pairs, by their numbers; what pairs within a decision cost is
        added to its `costs`."""
        made: dict[tuple[int, int], np.ndarray] = {}
        place = {layer: (k, n) for k, own in enumerate(self.members) for n, layer in enumerate(own)}
        for (i, j), table in tables.items():
            (first, m), (second, n) = place[i], place[j]
            left = [choice[m] for choice in self.choices[first]]
            right = [choice[n] for choice in self.choices[second]]
            if first == second:
                costs[first][:] += table[left, right]
                continue
            own = table[np.ix_(left, right)]
            edge, own = ((first, second), own) if first < second else ((second, first), own.T)
            made[edge] = made[edge] + own if edge in made else own
        return made
