"""Layer errors that a few true evaluations turn into KL."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from apportion.db.layers.database import LayerDatabase
from apportion.evaluators.scoring.pool import Pool, Request, Score
from apportion.evaluators.scoring.probes import fitted, probe
from apportion.evaluators.scoring.sensitivity import UNUSABLE
from apportion.evaluators.workloads.workload import Workload


class Lawful(Pool):
    """KL of layer l at level i is (l + 1)^3 error^b, of no more than `most` requests."""

    def __init__(self, errors: Sequence[np.ndarray], exponent: float, most: int = 10**9) -> None:
        super().__init__()
        self.errors, self.exponent, self.most, self.asked = errors, exponent, most, 0

    def kl(self, layer: int) -> np.ndarray:
        return np.array((layer + 1) ** 3 * self.errors[layer] ** self.exponent)

    def evaluate(self, requests: Sequence[Request]) -> Iterator[Score]:
        for candidate, *_ in requests:
            self.asked += 1
            if self.asked > self.most:
                raise KeyboardInterrupt
            (layer,) = [i for i, level in enumerate(candidate) if level]
            yield Score(float(self.kl(layer)[candidate[layer]]), 0.0)

    def close(self) -> None:
        pass


def test_power_laws_are_found_from_two_levels_a_layer(
    digits: Workload, database_path: Path, database: LayerDatabase, tmp_path: Path
) -> None:
    shutil.copytree(database_path, tmp_path / "own")
    database = LayerDatabase.open(tmp_path / "own")
    rng = np.random.default_rng(0)
    errors = [np.array([0.0, *np.sort(rng.uniform(0.01, 1, 4))]) for _ in range(14)]
    pool = Lawful(errors, 1.3)
    with pytest.raises(KeyboardInterrupt):
        probe(digits, database, errors, Lawful(errors, 1.3, most=9))
    seen: list[tuple[str, int, int]] = []
    found = probe(digits, database, errors, pool, lambda *step: seen.append(step))
    assert pool.asked == 2 * 14 - 8  # four layers were kept
    assert seen[0] == ("probe layers", 9, 28)
    assert seen[-1] == ("probe layers", 28, 28)
    for layer, row in enumerate(found.rows):
        np.testing.assert_allclose(row, pool.kl(layer), rtol=1e-9)
    assert found.evaluations == 28
    assert found.before is not None
    assert found.after is not None
    assert found.before < 0.9
    assert found.after == pytest.approx(1)
    again = Lawful(errors, 1.3, most=0)
    kept = probe(digits, database, errors, again)
    assert all((a == b).all() for a, b in zip(kept.rows, found.rows, strict=True))


def test_layers_with_few_levels_and_probes_that_say_nothing() -> None:
    errors = [
        np.array([0.0, 0.1, 0.2]),  # KL = 4 e^2
        np.array([0.3, 0.0]),  # one level, which is measured
        np.array([0.0, 0.1, 0.4]),  # falls where the error rises: noise
        np.array([0.0]),  # dense alone
        np.array([0.0, 0.0, 0.5]),  # a level without an error
        np.array([0.0, 0.1, 0.2]),  # the second probe is no number
        np.array([0.0, 0.1, 0.2]),  # neither is
    ]
    places = [[1, 2], [0], [1, 2], [], [2], [1, 2], [1, 2]]
    kl = [[0.04, 0.16], [0.7], [0.2, 0.1], [], [0.3], [0.01, np.inf], [np.nan, np.inf]]
    rows = fitted(errors, places, [np.array(own) for own in kl]).rows
    np.testing.assert_allclose(rows[0], [0, 0.04, 0.16])
    np.testing.assert_allclose(rows[1], [0.7, 0])
    np.testing.assert_allclose(rows[2], [0, 0.2, 0.1])
    np.testing.assert_array_equal(rows[3], [0])
    np.testing.assert_allclose(rows[4], [0, 0, 0.3])
    np.testing.assert_allclose(rows[5], [0, 0.01, UNUSABLE])
    np.testing.assert_array_equal(rows[6], [0, UNUSABLE, UNUSABLE])
