"""The weights between the removals of a ladder are the optimum of those that are left."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apportion.compressors.elimination import ladder
from apportion.compressors.elimination.dispatch import Limits
from tests.compressors.problems import problem


@pytest.mark.usefixtures("each_form")
@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 260), st.data())
def test_what_is_left_is_at_its_optimum(seed: int, rows: int, d: int, data: st.DataObject) -> None:
    weight, hessian = problem(seed, rows, d)
    hinv = torch.linalg.inv(hessian)
    order = torch.stack(
        [torch.randperm(d, generator=torch.Generator().manual_seed(seed + r)) for r in range(rows)]
    )
    levels = data.draw(st.integers(1, 4))
    counts = torch.tensor(
        data.draw(
            st.lists(
                st.lists(st.integers(0, d), min_size=levels, max_size=levels),
                min_size=rows,
                max_size=rows,
            )
        )
    )
    made = ladder._weights(weight, hinv, order, 1, counts, Limits(1 << 24, 2))
    for r in range(rows):
        for level, count in enumerate(counts[r]):
            gone = order[r, :count]
            # min over dw of dw H dw / 2 with w + dw = 0 where gone: paper, eq. 2 for a set of
            # weights.
            expected = weight[r] - hinv[:, gone] @ torch.linalg.solve(
                hinv[gone][:, gone], weight[r, gone]
            )
            expected[gone] = 0
            torch.testing.assert_close(made[level, r].double(), expected, rtol=1e-4, atol=1e-4)
            assert (made[level, r, gone] == 0).all()


@pytest.mark.usefixtures("each_form")
def test_single_precision_that_breaks_down_is_doubled() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 60, generator=generator, dtype=torch.float64)
    hessian = x.T @ x / 30 + 1e-7 * torch.eye(60)  # its inverse's condition is beyond float32
    hinv = torch.linalg.inv(hessian)
    weight = torch.randn(3, 60, generator=generator, dtype=torch.float64)
    order, counts = torch.arange(60).repeat(3, 1), torch.tensor([[59], [30], [60]])
    made = ladder._weights(weight.float(), hinv.float(), order, 1, counts, Limits(1 << 24, 1))
    assert torch.isfinite(made).all()
