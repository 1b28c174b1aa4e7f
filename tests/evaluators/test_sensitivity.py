from collections.abc import Iterator, Sequence
from functools import partial

import pytest

from apportion.db.layers.database import LayerDatabase
from apportion.evaluators.scoring.pool import LocalPool, Pool, Request, Score
from apportion.evaluators.scoring.sensitivity import measure_losses
from apportion.evaluators.scoring.stitched import StitchedScorer
from apportion.evaluators.workloads.workload import Workload


class Watched(Pool):
    """A local pool that counts, and may stop after `most` scores."""

    def __init__(self, digits: Workload, database: LayerDatabase, most: int = 10**9) -> None:
        self.inner = LocalPool(
            partial(StitchedScorer, digits, database, "loss", "running"), threads=1
        )
        self.most, self.count = most, 0

    def evaluate(self, requests: Sequence[Request]) -> Iterator[Score]:
        for score in self.inner.evaluate(requests):
            self.count += 1
            if self.count > self.most:
                raise KeyboardInterrupt
            yield score

    def close(self) -> None:
        self.inner.close()


def test_every_level_alone_measured_once_and_resumable(
    digits: Workload, database: LayerDatabase
) -> None:
    stopped = Watched(
        digits, database, most=30
    )  # the dense model, and seven layers of four levels each
    with pytest.raises(KeyboardInterrupt):
        measure_losses(digits, database, "running", stopped)
    rest = Watched(digits, database)
    seen: list[tuple[str, int, int]] = []
    table = measure_losses(digits, database, "running", rest, lambda *step: seen.append(step))
    assert rest.count == 1 + 4 * 7
    assert seen[-1] == ("measure single layers, batch-norm running", 70, 70)
    again = Watched(digits, database)
    assert all(
        (a == b).all()
        for a, b in zip(measure_losses(digits, database, "running", again), table, strict=True)
    )
    assert again.count == 0

    scorer = StitchedScorer(digits, database, "loss", "running")
    dense = scorer.score((0,) * 14)
    for layer in (0, 5, 13):
        assert table[layer][0] == 0
        for level in (1, 4):
            candidate = tuple(level if i == layer else 0 for i in range(14))
            assert table[layer][level] == pytest.approx(scorer.score(candidate) - dense, abs=1e-12)
