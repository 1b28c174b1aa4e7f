import copy
from collections.abc import Iterator, Sequence
from functools import partial

import pytest
import torch

from apportion.db.layers.database import LayerDatabase
from apportion.evaluators.scoring.pool import LocalPool, Pool, Request, Score
from apportion.evaluators.scoring.sensitivity import measure_alone
from apportion.evaluators.scoring.stitched import StitchedScorer
from apportion.evaluators.workloads.workload import Workload


class Watched(Pool):
    """A local pool that counts, and may stop after `most` scores."""

    def __init__(
        self, digits: Workload, database: LayerDatabase, most: int = 10**9, fitness: str = "loss"
    ) -> None:
        self.inner = LocalPool(
            partial(StitchedScorer, digits, database, fitness, "running"), threads=1
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
        measure_alone(digits, database, "loss", "running", stopped)
    rest = Watched(digits, database)
    seen: list[tuple[str, int, int]] = []
    table = measure_alone(
        digits, database, "loss", "running", rest, lambda *step: seen.append(step)
    )
    assert rest.count == 1 + 4 * 7
    assert seen[-1] == ("measure single layers, batch-norm running", 70, 70)
    again = Watched(digits, database)
    assert all(
        (a == b).all()
        for a, b in zip(
            measure_alone(digits, database, "loss", "running", again), table, strict=True
        )
    )
    assert again.count == 0

    scorer = StitchedScorer(digits, database, "loss", "running")
    dense = scorer.score((0,) * 14)
    for layer in (0, 5, 13):
        assert table[layer][0] == 0
        for level in (1, 4):
            candidate = tuple(level if i == layer else 0 for i in range(14))
            assert table[layer][level] == pytest.approx(scorer.score(candidate) - dense, abs=1e-12)


def test_kl_of_every_level_alone_without_an_evaluation_of_the_dense_model(
    digits: Workload, database: LayerDatabase
) -> None:
    stopped = Watched(digits, database, 29, "kl")
    with pytest.raises(KeyboardInterrupt):
        measure_alone(digits, database, "kl", "running", stopped)
    rest = Watched(digits, database, fitness="kl")
    table = measure_alone(digits, database, "kl", "running", rest)
    assert rest.count == 4 * 7  # seven layers were kept
    again = Watched(digits, database, 0, "kl")
    found = measure_alone(digits, database, "kl", "running", again)
    assert all((a == b).all() for a, b in zip(found, table, strict=True))

    images, _ = digits.calibration.batch
    dense = copy.deepcopy(digits.model)
    with torch.no_grad():
        expected = dense(images).double().log_softmax(1)
        for layer in (0, 7, 13):
            name = list(database.levels())[layer]
            for index, level in enumerate(database.levels()[name]):
                changed = copy.deepcopy(digits.model)
                changed.get_parameter(f"{name}.weight").copy_(database.weight(name, level))
                got = changed(images).double().log_softmax(1)
                kl = (expected.exp() * (expected - got)).sum(1).mean()
                assert table[layer][index] == pytest.approx(float(kl), rel=1e-4, abs=1e-9)
            assert (table[layer] >= 0).all()
            assert table[layer][0] == 0
