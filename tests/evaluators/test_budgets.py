import pytest

from apportion.compressors.errors import BudgetError, UnknownNameError
from apportion.evaluators.costs.budgets import Budget, parse_budget


@pytest.mark.parametrize(
    ("name", "value", "bound"),
    [
        ("flops", 0.25, 20.0),
        ("flops", 1, 80.0),
        ("params", "4x", 20.0),
        ("bits", "25 %", 20.0),
        ("bits", "2B", 16.0),
        ("bits", "1.5KiB", 12288.0),
        ("bits", "64bit", 64.0),
        ("latency", "2.5ms", 0.0025),
        ("latency", 0.5, 40.0),
        ("speedup", "4x", 20.0),
        ("speedup", 2, 40.0),
        ("flops", "40M", 40e6),
        ("bops", "1.5G", 1.5e9),
        ("bops-linear", "1e3 K", 1e6),
    ],
)
def test_bounds_of_a_model_that_costs_eighty(name: str, value: float | str, bound: float) -> None:
    assert parse_budget(name, value).bound(80.0) == pytest.approx(bound)


def test_a_speedup_bounds_latency() -> None:
    assert parse_budget("speedup", "3x") == Budget("latency", 1 / 3)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("flops", 0, "above 0 and at most 1; got 0"),
        ("flops", 1.5, "above 0 and at most 1; got 1.5"),
        ("flops", "0.5x", "must be 1x or more"),
        ("speedup", "0", "must be 1x or more"),
        ("latency", "3 parsec", "unknown unit 'parsec'; valid: x, %, s, ms, us"),
        ("latency", "0ms", "must be above 0"),
        ("flops", "3ms", "unknown unit 'ms'"),
        ("flops", "many", "expected a share"),
        ("flops", "1.2.3", "expected a share"),
        ("flops", float("nan"), "expected a share"),
        ("flops", -0.5, "expected a share"),
    ],
)
def test_what_is_no_budget(name: str, value: float | str, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        parse_budget(name, value)


def test_an_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'speedup'"):
        parse_budget("spedup", "3x")
