"""The final pick of a run, on data that neither the database nor the search saw.

A search presses the calibration fitness down beyond what holds elsewhere: near its best, the
fitness no longer tells which profile has the better metric, while the divergence from the dense
model on unseen data still does (docs/JOBS.md, picks)."""

from __future__ import annotations

from dataclasses import replace

from apportion.compressors.progress import Progress, silent
from apportion.db.runs.store import RunStore, StoredTrial
from apportion.evaluators.scoring.pool import Pool
from apportion.search.runs.loop import RunResult
from apportion.search.runs.warm import tighter_pick

_WITHIN = 0.02
"""Share of the best fitness by which a pick may be worse."""


def select(
    result: RunResult, count: int, pool: Pool, store: RunStore, progress: Progress = silent
) -> RunResult:
    """Pick among a run's best candidates the one with the lowest score. Scores are kept in a store
    that is not opened for reading alone: stopped at any point, the same call goes on.

    Args:
        result: the finished run.
        count: candidates to choose among.
        pool: scores them, on data that the run did not see; lower is better.
        store: keeps the scores.
        progress: told of candidates.

    Returns:
        The run with its pick, and its score.

    Raises:
        EvaluationError, StoreError.
    """
    chosen = [trial.candidate for trial in shortlist(result, count)]
    if (before := tighter_pick(result)) is not None and before not in chosen:
        chosen.append(before)  # so that no looser point of a front ends with a worse pick
    scores = store.selection(result.run.id)
    missing = [candidate for candidate in chosen if candidate not in scores]
    for candidate, score in zip(missing, pool.evaluate([(c, 1.0) for c in missing]), strict=True):
        scores[candidate] = score.fitness
        if not store.reading:
            store.add_selection(result.run.id, candidate, score.fitness)
        progress(f"pick {result.run.algorithm} seed {result.run.seed}", len(scores), len(chosen))
    picked = min(
        chosen, key=scores.__getitem__
    )  # of equal scores the one with the better fitness: it comes first
    return replace(
        result,
        pick=next(t for t in result.trials if t.candidate == picked and t.fidelity == 1.0),
        score=scores[picked],
    )


def shortlist(result: RunResult, count: int) -> list[StoredTrial]:
    """`count` different candidates, best first: the best one, and the others spread evenly over the
    ranks of all whose fitness is within 2 % of it. Neighbours in rank are often near twins, so that
    the first `count` would hardly differ."""
    limit = result.best.fitness + _WITHIN * abs(result.best.fitness)
    near: dict[tuple[int, ...], StoredTrial] = {}
    for trial in sorted(
        (t for t in result.trials if t.fidelity == 1.0 and t.fitness <= limit),
        key=lambda t: t.fitness,
    ):
        near.setdefault(trial.candidate, trial)
    ranked = list(near.values())
    if len(ranked) <= count:
        return ranked
    return [ranked[i * (len(ranked) - 1) // max(1, count - 1)] for i in range(count)]
