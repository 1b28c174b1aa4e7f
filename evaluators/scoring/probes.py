"""Layer errors as KL, by a few true evaluations a layer: what an error is worth differs from layer
to layer far more than its course over a layer's levels does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apportion.compressors.progress import Progress, silent
from apportion.db.layers.tables import AnyDatabase, MeasuredTable
from apportion.evaluators.scoring.pool import Pool
from apportion.evaluators.scoring.sensitivity import UNUSABLE
from apportion.evaluators.workloads.workload import Workload, data_fingerprint

_PLACES = (0.4, 0.85)
"""Where on a layer's ladder, from the least error to the largest, its probes are."""
_EXPONENTS = (0.25, 4.0)
"""Between which a fitted exponent may lie: two noisy probes can say anything."""


@dataclass(frozen=True)
class Probed:
    """A table fitted to probes.

    rows: per layer float64 [levels], nats, lower is better, 0 for dense.
    evaluations: how many probes there are.
    before, after: Spearman's rank correlation, over all probes, of their true KL with the layer
        error, and with what is predicted for each from its layer's other probe alone (None with
        fewer than two layers that have two).
    """

    rows: tuple[np.ndarray, ...]
    evaluations: int
    before: float | None
    after: float | None


def probe(
    workload: Workload,
    database: AnyDatabase,
    errors: Sequence[np.ndarray],
    pool: Pool,
    progress: Progress = silent,
    corrections: Sequence[str] = (),
) -> Probed:
    """The table KL ~ a error^b, a and b of each layer by the true KL of two of its levels alone,
    which are kept in the database's folder.

    Args:
        workload: whose calibration data are scored.
        database: gives layers and levels.
        errors: the layer errors, float [levels] per layer, 0 for dense.
        pool: scores `kl` with running statistics.
        progress: told of evaluations.
        corrections: made for every candidate by `pool`.

    Returns:
        The table, and how well errors order the probes before and after.

    Raises:
        EvaluationError, OutputError, DatabaseCorruptError.
    """
    key = {
        "what": f"KL to the dense model of probes at {_PLACES} of the ladders",
        "calibration": data_fingerprint(workload.calibration),
        **workload.task.key(),
        **({"corrections": " ".join(corrections)} if corrections else {}),
    }
    table = MeasuredTable(database, key)
    levels = database.levels()
    dense = tuple(names.index("dense") for names in levels.values())
    places = [_places(np.asarray(row)) for row in errors]
    total = sum(map(len, places))
    done = sum(len(places[i]) for i, name in enumerate(levels) if name in table.rows)
    for layer, name in enumerate(levels):
        if name in table.rows:
            continue
        candidates = [(*dense[:layer], i, *dense[layer + 1 :]) for i in places[layer]]
        row = [np.inf] * len(levels[name])  # not looked at
        for i, score in zip(
            places[layer], pool.evaluate([(c, 1.0) for c in candidates]), strict=True
        ):
            row[i] = score.fitness
            done += 1
            progress("probe layers", done, total)
        table.add(name, row)
    found = [np.array(table.rows[name])[own] for name, own in zip(levels, places, strict=True)]
    return fitted(errors, places, found)


def fitted(
    errors: Sequence[np.ndarray], places: Sequence[Sequence[int]], found: Sequence[np.ndarray]
) -> Probed:
    """A power law for each layer, through its two probes; through their middle with the layers'
    median exponent where they do not rise, and through the one where there is one.

    Args:
        errors: per layer, float [levels], 0 for dense.
        places: per layer, the levels that were probed, of rising error.
        found: per layer, their true KL; not finite or not above 0: of no use.

    Returns:
        The table.
    """
    points = [
        _logs(np.asarray(row)[list(own)], kl)
        for row, own, kl in zip(errors, places, found, strict=True)
    ]
    slopes = [_slope(own) for own in points]
    usual = float(np.median([s for s in slopes if s is not None] or [1.0]))
    middles = [own.mean(0) for own in points if len(own)]
    typical = np.mean(middles, 0) if middles else np.zeros(2)
    rows = []
    for row, own, slope, at, kl in zip(errors, points, slopes, places, found, strict=True):
        x, y = own.mean(0) if len(own) else typical
        rows.append(_power(np.asarray(row), x, y, usual if slope is None else slope))
        good = np.isfinite(kl)
        rows[-1][np.asarray(at, dtype=int)[good]] = kl[good]
        rows[-1][np.asarray(at, dtype=int)[~good]] = UNUSABLE
    both = [own for own in points if len(own) == 2]
    before = after = None
    if len(both) > 1:
        true = np.concatenate([own[:, 1] for own in both])
        before = _rank(np.concatenate([own[:, 0] for own in both]), true)
        others = np.concatenate([own[::-1, 1] + usual * (own[:, 0] - own[::-1, 0]) for own in both])
        after = _rank(others, true)
    return Probed(tuple(rows), sum(map(len, places)), before, after)


def _places(errors: np.ndarray) -> list[int]:
    """The levels to probe, of rising error: those with an error at all."""
    order = [int(i) for i in np.argsort(errors, kind="stable") if errors[i] > 0]
    last = len(order) - 1
    return list(dict.fromkeys(order[round(place * last)] for place in _PLACES)) if order else []


def _logs(errors: np.ndarray, kl: np.ndarray) -> np.ndarray:
    """[points, 2]: logarithms of the error and of KL, of those that have one."""
    good = np.isfinite(kl) & (kl > 0)
    return np.log(np.stack([errors[good], kl[good]], 1))


def _slope(points: np.ndarray) -> float | None:
    """The exponent that two points tell; None where they tell none."""
    if len(points) < 2:
        return None
    dx, dy = points[1] - points[0]
    return float(np.clip(dy / dx, *_EXPONENTS)) if dx > 0 and dy > 0 else None


def _power(errors: np.ndarray, x: float, y: float, exponent: float) -> np.ndarray:
    """exp(y) (error / exp(x))^exponent, 0 where there is no error."""
    there = errors > 0
    logs = np.log(np.where(there, errors, 1.0))
    return np.where(there, np.exp(np.minimum(y + exponent * (logs - x), np.log(UNUSABLE))), 0.0)


def _rank(one: np.ndarray, other: np.ndarray) -> float:
    from scipy.stats import spearmanr  # takes most of a second to import

    return float(spearmanr(one, other).statistic)
