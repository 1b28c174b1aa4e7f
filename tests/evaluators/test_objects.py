"""Objects whose tensors workers read where they lie."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from apportion.evaluators.cluster.objects import pack, unpack

pytest.importorskip("ray", reason="apportion[ray] is not installed")

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int8, torch.bool]


@given(
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 4), max_size=3),
    st.integers(0, 100),
    st.booleans(),
)
def test_tensors_come_out_as_they_went_in(
    dtype: torch.dtype, shape: list[int], seed: int, turned: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(shape, generator=generator).mul(9).to(dtype)
    tensor = tensor.T if turned and tensor.dim() == 2 else tensor
    (found,) = unpack(pack([tensor]))
    assert found.dtype == dtype
    assert found.stride() == tensor.stride()
    assert torch.equal(found, tensor)


def model() -> nn.Module:
    torch.manual_seed(0)
    made: Any = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 64))
    made[2].weight = made[0].weight
    made.part = made[0].bias.data[10:20]
    made.number = lambda: 7  # what plain pickle cannot
    return made.eval()


def test_a_model_is_the_same_and_shares_what_it_shared() -> None:
    own = model()
    content, arrays = pack(own)
    for array in arrays:
        array.flags.writeable = False
    found: Any = unpack((content, arrays))
    assert len(content) < 10_000
    assert sum(array.nbytes for array in arrays) < 4 * (64 * 64 + 64 * 6) + 64
    x = torch.randn(5, 64)
    assert torch.equal(found(x), own(x))
    assert found[2].weight is found[0].weight
    assert isinstance(found[0].weight, nn.Parameter)
    assert found.part.data_ptr() == found[0].bias.data_ptr() + 40
    assert found.number() == 7


def test_nothing_is_copied_on_the_way_in() -> None:
    content, arrays = pack(model())
    found: Any = unpack((content, arrays))
    starts = [array.ctypes.data for array in arrays]
    assert found[0].weight.data_ptr() in starts
