"""Whether a lower precision orders candidates as float32 does."""

from __future__ import annotations

import numpy as np

from apportion.compressors.progress import Progress, silent
from apportion.search.runs.pipeline import ModelProblem
from apportion.search.runs.workers import scoring_spec
from apportion.search.space.moves import draw

_AGREEING = 64
"""Candidates that two precisions are compared on."""


def precision_agrees(problem: ModelProblem, progress: Progress = silent) -> float:
    """Spearman's rank correlation between the fitnesses of 64 random profiles within the budgets in
    the job's precision and in float32. Below 0.99 or so, a lower precision changes which profile is
    found."""
    from scipy.stats import spearmanr  # takes most of a second to import

    rng = np.random.default_rng(0)
    space = problem.space
    drawn = dict.fromkeys(draw(space, rng) for _ in range(8 * _AGREEING))
    requests = [(problem.decisions.expand(candidate), 1.0) for candidate in list(drawn)[:_AGREEING]]
    found = []
    for precision in (problem.job.workers.precision, "float32"):
        job = problem.job.model_copy(
            update={"workers": problem.job.workers.model_copy(update={"precision": precision})}
        )
        with problem.workers.pool(
            scoring_spec(job, problem.workload, problem.database, job.fitness, job.batchnorm)
        ) as pool:
            scores = []
            for done, score in enumerate(pool.evaluate(requests)):
                scores.append(score.fitness)
                progress(f"check ranks, {precision}", done + 1, len(requests))
        found.append(scores)
    return float(spearmanr(found[0], found[1]).statistic)
