"""surrogate: a model of the fitness, learnt from all trials, that knows which layers interact."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular

from apportion.search.algorithms.base import Algorithm, Trial
from apportion.search.algorithms.parameters import Count, Several, Times
from apportion.search.algorithms.registry import register
from apportion.search.space.additive import optimum
from apportion.search.space.moves import begin, step, steps
from apportion.search.space.repair import fill
from apportion.search.space.space import Candidate, SearchSpace

_MIXTURES = ((1.0, 0.1, 0.1), (1.0, 1.0, 0.1), (0.1, 1.0, 0.1), (1.0, 1.0, 1.0), (0.1, 0.1, 1.0))
"""Shares of the kernel's parts: per layer, pairs of layers, distance. The likeliest is taken."""
_NOISES = (1e-4, 1e-2, 1e-1)
_PARENTS = 8
_BOLDNESS = (0.0, 0.5, 1.0, 2.0)
"""Standard deviations by which a batch's candidates are judged better than their mean, in turn."""


@register("surrogate")
class Surrogate(Algorithm):
    """Ours. A Gaussian process over the additive table: its mean is a + b (additive error), and its
    kernel adds corrections of every layer's errors (ridge regression on x_l = e_l), of their
    pairwise products, and of what near profiles have in common. After `warm` trials near the best,
    batches of `batch` are those of least lower confidence bound (Srinivas et al. 2010) among two
    generations of `pool` mutants, at most sixteen per layer, of the best profiles. It learns from
    the `most` best trials."""

    def __init__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        evaluations: float,
        *,
        cold: bool = False,
        warm: Times = 12,
        batch: Count = 4,
        pool: Count = 128,
        most: Several = 250,
    ) -> None:
        super().__init__(space, rng, evaluations, cold=cold)
        self._warm, self._batch, self._most = warm, batch, most
        self._pool = min(pool, 16 * len(space.layers))
        self._features = _Features(space)
        self._likeliest: list[tuple[tuple[float, float, float], float]] = []
        self._judged = 0

    def propose(self) -> list[Trial]:
        asked: dict[Candidate, None] = {}
        if len(self.known) < max(3, self._warm):
            for _ in range(self._batch):
                # Without a first profile at random; then half near the best one, half anywhere.
                make = (
                    self._mutant
                    if self.known and len(asked) % 2 == 0
                    else lambda: begin(self.space, self.rng)
                )
                if (candidate := self.fresh(make, asked)) is not None:
                    asked[candidate] = None
            return [Trial(candidate) for candidate in asked]
        best = self._best_known()
        model, parents = self._fit(best), best[:_PARENTS]
        every: list[Candidate] = []
        mean = deviation = np.empty(0)
        for _ in range(2):
            if fresh := self._mutants(parents, every):
                news = model.predict(self._features(fresh))
                mean, deviation = np.append(mean, news[0]), np.append(deviation, news[1])
                every += fresh
            parents = [
                every[k] for k in np.argsort(mean - deviation, kind="stable")[:_PARENTS]
            ] or parents
        for turn in range(min(self._batch, len(every))):
            bound = mean - _BOLDNESS[turn % len(_BOLDNESS)] * deviation
            chosen = next(
                every[k] for k in np.argsort(bound, kind="stable") if every[k] not in asked
            )
            filled = fill(self.space, chosen)  # what the budgets leave, spent
            asked[chosen if filled in self.known or filled in asked else filled] = None
        if not asked:  # a small space, all but exhausted
            for _ in range(self._batch):
                if (candidate := self.fresh(self._mutant, asked)) is not None:
                    asked[candidate] = None
        return [Trial(candidate) for candidate in asked]

    def _mutant(self) -> Candidate:
        return step(self.space, self.rng, self.best(), int(self.rng.integers(1, 4, 2).min()))

    def _mutants(
        self, parents: Sequence[Candidate], others: Sequence[Candidate]
    ) -> list[Candidate]:
        """Feasible, each once, neither known nor among `others`."""
        made = steps(
            self.space, self.rng, np.resize(np.array(parents), (self._pool, len(self.space.layers)))
        )
        unwanted = set(others)
        return [
            c
            for c in dict.fromkeys(map(tuple, made.tolist()))
            if c not in self.known and c not in unwanted
        ]

    def _best_known(self) -> list[Candidate]:
        """The best ones that it learns from, best first."""
        known = list(self.known)
        order = np.argsort(np.fromiter(self.known.values(), float, len(known)), kind="stable")
        return [known[k] for k in order[: self._most]]

    def _fit(self, kept: Sequence[Candidate]) -> _Process:
        fitness = np.array([self.known[candidate] for candidate in kept])
        finite = fitness[np.isfinite(fitness)]
        if len(finite):  # the worst ones say little of the best; unusable ones are as bad as those
            highest = max(np.quantile(finite, 0.9), finite[0] + 3 * (np.median(finite) - finite[0]))
            fitness = np.minimum(fitness, highest)
        else:
            fitness = np.zeros(len(kept))
        every = [(mixture, noise) for mixture in _MIXTURES for noise in _NOISES]
        if len(self.known) >= 1.2 * self._judged:  # else the last choice will still do
            self._judged, self._likeliest = len(self.known), every
        model = _Process.fit(self._features(kept), fitness, self._likeliest)
        self._likeliest = [(model.mixture, model.noise)]
        return model


class _Features:
    """n candidates -> [2, n, layers]: each layer's additive error, in units in which the additive
    optimum's layers are 1 on the average; and its position, in units of a fifth of the ladder."""

    def __init__(self, space: SearchSpace) -> None:
        self._layers = np.arange(len(space.layers))
        error = np.maximum(np.where(np.isfinite(space.error_table), space.error_table, 0.0), 0.0)
        scale = float(error[self._layers, list(optimum(space))].mean())
        # A table of hopeless levels (1e9) must not dwarf the rest.
        self._error = np.minimum(error / (scale if scale > 0 else 1.0), 20.0)
        self._position = 5.0 * space.position / np.maximum(space.counts - 1, 1)[:, None]

    def __call__(self, candidates: Sequence[Candidate]) -> np.ndarray:
        flat = np.fromiter(
            itertools.chain.from_iterable(candidates), np.int64
        )  # twice as fast as np.array
        levels = flat.reshape(-1, len(self._layers))
        return np.stack([self._error[self._layers, levels], self._position[self._layers, levels]])


@dataclass(frozen=True)
class _Process:
    """A fitted Gaussian process (Rasmussen & Williams 2006, algorithm 2.1)."""

    x: np.ndarray
    mixture: tuple[float, float, float]
    noise: float
    norms: tuple[float, float, float]
    factor: np.ndarray
    alpha: np.ndarray
    variance: float
    line: np.ndarray

    @classmethod
    def fit(
        cls,
        x: np.ndarray,
        y: np.ndarray,
        choices: Sequence[tuple[tuple[float, float, float], float]],
    ) -> _Process:
        """x [2, n, layers], y [n]; the likeliest of the `choices` of mixture and noise."""
        total = x[0].sum(1)
        line = np.polyfit(total, y, 1) if np.ptp(total) > 0 else np.array([0.0, y.mean()])
        rest = y - np.polyval(line, total)
        parts = _parts(x, x)
        norms = tuple(float(max(np.diag(part).mean(), 1e-12)) for part in parts)
        best: tuple[float, _Process] | None = None
        for mixture, noise in choices:
            kernel = sum(
                share * part / norm for share, part, norm in zip(mixture, parts, norms, strict=True)
            )
            factor = cholesky(kernel + noise * np.eye(len(y)), lower=True, check_finite=False)
            alpha = cho_solve((factor, True), rest, check_finite=False)
            variance = max(float(rest @ alpha) / len(y), 1e-300)
            unlikely = len(y) * np.log(variance) / 2 + np.log(np.diag(factor)).sum()
            if best is None or unlikely < best[0]:
                best = unlikely, cls(x, mixture, noise, norms, factor, alpha, variance, line)  # type: ignore[arg-type]
        assert best is not None
        return best[1]

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the fitness at x [2, m, layers]."""
        kernel = self._mixed(_parts(x, self.x))
        mean = np.polyval(self.line, x[0].sum(1)) + kernel @ self.alpha
        own = self._mixed([part[:, 0] for part in _diagonals(x)])
        reduced = solve_triangular(self.factor, kernel.T, lower=True, check_finite=False)
        return mean, np.sqrt(self.variance * np.maximum(own - (reduced**2).sum(0), 0.0))

    def _mixed(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.sum(
            [s * p / n for s, p, n in zip(self.mixture, parts, self.norms, strict=True)], axis=0
        )


def _parts(a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    """Kernels between a [2, n, layers] and b [2, m, layers], each [n, m]: sum_l x_l x'_l; its
    square without the squares of single layers, which leaves the pairs; exp(-|p - p'|^2 / 2 layers
    * 8)."""
    linear = a[0] @ b[0].T
    pairs = linear**2 - a[0] ** 2 @ (b[0] ** 2).T
    distance = (a[1] ** 2).sum(1)[:, None] + (b[1] ** 2).sum(1)[None] - 2 * a[1] @ b[1].T
    return [linear, pairs, np.exp(-np.maximum(distance, 0.0) * 4 / a.shape[2])]


def _diagonals(a: np.ndarray) -> list[np.ndarray]:
    """The kernels of each row with itself, [n, 1]."""
    linear = (a[0] ** 2).sum(1, keepdims=True)
    return [linear, linear**2 - (a[0] ** 4).sum(1, keepdims=True), np.ones_like(linear)]
