"""Fair comparison of algorithms over common seeds: anytime curves, rank tests. Fitnesses
throughout: lower is better."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Anytime:
    """Best fitness so far of one run: `best[i]` after `spent[i]` full-evaluation equivalents, of
    `evaluations` allowed."""

    spent: np.ndarray
    best: np.ndarray
    evaluations: float

    @classmethod
    def of(cls, trials: Sequence[tuple[float, float]], evaluations: float) -> Anytime:
        """`trials`: (fidelity, fitness) in asked order. Partial trials cost what they cost, and are
        no result."""
        fidelity = np.array([trial[0] for trial in trials])
        fitness = np.array([trial[1] for trial in trials])
        full = fidelity == 1.0
        return cls(np.cumsum(fidelity)[full], np.minimum.accumulate(fitness[full]), evaluations)

    @property
    def area(self) -> float:
        """Mean of the best fitness so far over the evaluations from the first result to the last
        one allowed."""
        end = max(self.evaluations, float(self.spent[-1]))
        widths = np.diff(np.append(self.spent, end))
        return (
            float((self.best * widths).sum() / widths.sum())
            if widths.sum() > 0
            else float(self.best[-1])
        )

    def reached(self, target: float) -> float | None:
        """Full-evaluation equivalents until the fitness was `target` or better; None: never."""
        hits = np.flatnonzero(self.best <= target)
        return float(self.spent[hits[0]]) if len(hits) else None


def pairwise(finals: Mapping[str, Sequence[float]]) -> dict[tuple[str, str], float]:
    """p of Wilcoxon's signed-rank test (two-sided) for every pair of algorithms, each with one
    final fitness per common seed, corrected for their number after Holm (1979). 1 where all are
    equal. With fewer than six seeds no p can lie below 0.05."""
    from scipy.stats import wilcoxon  # scipy.stats takes most of a second to import

    raw = {}
    for a, b in itertools.combinations(finals, 2):
        difference = np.asarray(finals[a], dtype=float) - np.asarray(finals[b], dtype=float)
        raw[a, b] = float(wilcoxon(difference).pvalue) if np.any(difference) else 1.0
    corrected: dict[tuple[str, str], float] = {}
    highest = 0.0
    for rank, pair in enumerate(sorted(raw, key=raw.__getitem__)):
        highest = max(highest, min(1.0, (len(raw) - rank) * raw[pair]))
        corrected[pair] = highest
    return {pair: corrected[pair] for pair in raw}


def better_of(one: Sequence[float], other: Sequence[float]) -> int:
    """0 where the fitnesses of `one` are the lower ones, pair by pair, 1 where those of `other`
    are: by the signed ranks that the test goes by. (Where most pairs are equal, the median of the
    differences is 0.)"""
    from scipy.stats import rankdata

    difference = np.asarray(one, dtype=float) - np.asarray(other, dtype=float)
    difference = difference[difference != 0]
    return int((np.sign(difference) * rankdata(np.abs(difference))).sum() > 0)


def mean_ranks(finals: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Mean rank of each algorithm over the seeds; 1 is best, equal fitnesses share their ranks."""
    from scipy.stats import rankdata

    table = np.array(list(finals.values()), dtype=float)
    return dict(zip(finals, rankdata(table, axis=0).mean(1).tolist(), strict=True))


def critical_difference(algorithms: int, seeds: int, alpha: float = 0.05) -> float:
    """Mean ranks that differ by more are different at `alpha` (Nemenyi's test; Demsar 2006, section
    3.2.2)."""
    if algorithms < 2:
        return 0.0
    from scipy.stats import studentized_range

    quantile = float(studentized_range.ppf(1 - alpha, algorithms, np.inf)) / math.sqrt(2)
    return quantile * math.sqrt(algorithms * (algorithms + 1) / (6 * seeds))
