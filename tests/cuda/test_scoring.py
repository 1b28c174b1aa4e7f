"""Scores on CUDA against those of the CPU."""

import pytest
import torch

from apportion.db.layers.database import LayerDatabase
from apportion.evaluators.scoring.stitched import StitchedScorer
from apportion.evaluators.workloads.workload import Workload
from tests.evaluators.test_stitched import candidates


@pytest.mark.parametrize("mode", ["running", "batch", "recalibrate"])
@pytest.mark.parametrize("fitness", ["loss", "kl", "error"])
def test_float32_is_float32(
    digits: Workload, database: LayerDatabase, fitness: str, mode: str
) -> None:
    """Not TF32; and the same to the bit with prefixes used again, and in any order."""
    cpu = StitchedScorer(digits, database, fitness, mode)
    gpu = StitchedScorer(digits, database, fitness, mode, device="cuda")
    bare = StitchedScorer(digits, database, fitness, mode, device="cuda", prefix_bytes=0)
    asked = candidates(3, 6)
    scores = [gpu.score(one) for one in asked]
    assert scores == pytest.approx([cpu.score(one) for one in asked], rel=2e-4, abs=1e-6)
    assert scores == pytest.approx([bare.score(one) for one in reversed(asked)][::-1], rel=1e-6)


def test_the_same_scores_again(digits: Workload, database: LayerDatabase) -> None:
    asked = candidates(4, 5)
    first, second = (
        [
            StitchedScorer(digits, database, "kl", "running", device="cuda").score(one)
            for one in asked
        ]
        for _ in range(2)
    )
    assert first == second


def test_several_at_once_are_those_of_one_by_one(digits: Workload, database: LayerDatabase) -> None:
    asked = candidates(5, 8)
    gpu = StitchedScorer(digits, database, "kl", "running", device="cuda")
    gpu.width = 1
    alone = gpu.score_many([(one, 1.0) for one in asked])
    stack = StitchedScorer(digits, database, "kl", "running", device="cuda")
    stack.width = 4
    assert stack.score_many([(one, 1.0) for one in asked]) == pytest.approx(alone, rel=1e-4)


def test_bf16_tells_candidates_apart(digits: Workload, database: LayerDatabase) -> None:
    gpu = StitchedScorer(digits, database, "kl", "running", device="cuda", precision="bf16")
    exact = StitchedScorer(digits, database, "kl", "running")
    light, heavy = (1,) * 14, (4,) * 14
    assert gpu.score(light) == pytest.approx(exact.score(light), rel=0.2, abs=5e-3)
    assert gpu.score(light) < gpu.score(heavy)
    assert torch.isfinite(torch.tensor(gpu.score(heavy)))
