import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wilcoxon

from apportion.search.report.statistics import (
    Anytime,
    better_of,
    critical_difference,
    mean_ranks,
    pairwise,
)


def test_the_anytime_curve_counts_what_partial_trials_cost() -> None:
    curve = Anytime.of([(1.0, 5.0), (0.25, 0.1), (0.25, 9.0), (1.0, 6.0), (1.0, 2.0)], 10)
    assert curve.spent.tolist() == [1.0, 2.5, 3.5]
    assert curve.best.tolist() == [5.0, 5.0, 2.0]
    assert curve.area == pytest.approx((2.5 * 5 + 6.5 * 2) / 9)
    assert (curve.reached(5.0), curve.reached(2.5), curve.reached(1.0)) == (1.0, 3.5, None)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_the_area_lies_between_first_and_best(fitness: list[float]) -> None:
    curve = Anytime.of([(1.0, f) for f in fitness], len(fitness))
    assert min(fitness) - 1e-12 <= curve.area <= fitness[0] + 1e-12


def test_holm_multiplies_the_least_p_by_the_number_of_pairs() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(10)
    drawn = {"a": base, "b": base + 1 + rng.random(10), "c": base + 0.01 * rng.standard_normal(10)}
    finals: dict[str, list[float]] = {name: row.tolist() for name, row in drawn.items()}
    found = pairwise(finals)
    raw = {
        (x, y): wilcoxon(np.subtract(finals[x], finals[y])).pvalue
        for x, y in itertools.combinations("abc", 2)
    }
    assert found["a", "b"] == pytest.approx(3 * raw["a", "b"])
    assert found["a", "c"] == pytest.approx(raw["a", "c"])
    assert all(found[pair] >= p for pair, p in raw.items())
    assert pairwise({"a": [1, 2], "b": [1, 2]})["a", "b"] == 1.0


def test_the_better_one_is_the_one_that_the_test_says() -> None:
    # most pairs are equal, so that the median of the differences is 0
    one, other = [2.0] * 7 + [3, 4, 5, 6, 7, 8], [2.0] * 7 + [1, 1, 1, 1, 1, 1]
    assert pairwise({"one": one, "other": other})["one", "other"] < 0.05
    assert better_of(one, other) == 1
    assert better_of(other, one) == 0


def test_ranks_are_shared_by_equals() -> None:
    assert mean_ranks({"a": [1, 1], "b": [2, 1], "c": [3, 3]}) == {"a": 1.25, "b": 1.75, "c": 3.0}


def test_the_critical_difference_is_demsars() -> None:
    # Demsar 2006, section 3.2.3: four classifiers on 14 data sets, q = 2.569, CD = 1.25
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert critical_difference(1, 5) == 0.0
