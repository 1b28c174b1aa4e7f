"""Whole models in the packed encoding."""

import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apportion.compressors.errors import ModelError
from apportion.compressors.grids import fit_grid
from apportion.db.layers.packed import load_packed, save_packed


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(
        torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a
    )


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 10_000),
    st.integers(1, 8),
    st.floats(0, 1),
    st.sampled_from([torch.float32, torch.float16, torch.float64]),
)
def test_what_is_packed_comes_back_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, seed: int, bits: int, zeros: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 3, 5, generator=generator)
    weight[torch.rand(weight.shape, generator=generator) < zeros] = 0
    grid = fit_grid(weight.reshape(6, -1), bits)
    state = {
        "conv.weight": grid.nearest(weight.reshape(6, -1)).reshape(weight.shape),
        "linear.weight": weight.to(dtype),
        "bias": torch.randn(6, generator=generator, dtype=dtype),
        "steps": torch.tensor(3),
        "none": torch.empty(0),
    }
    path = tmp_path_factory.mktemp("packed") / "model.packed"
    save_packed(path, state, {"conv.weight": grid})
    assert same(load_packed(path), state)


def test_four_bits_and_ninety_percent_zeros_are_small(tmp_path: Path) -> None:
    weight = torch.randn(256, 1152, generator=torch.Generator().manual_seed(0))
    grid = fit_grid(weight, 4)
    sparse = weight.where(weight.abs() > weight.abs().quantile(0.9), 0.0)
    for name, tensor, grids, most in [
        ("four", grid.nearest(weight), {"w": grid}, 4.6),
        ("sparse", sparse, {}, 5.0),
    ]:
        save_packed(tmp_path / name, {"w": tensor}, grids)
        assert 8 * (tmp_path / name).stat().st_size <= most * weight.numel(), name


def test_weights_that_left_their_grid_keep_their_values(tmp_path: Path) -> None:
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    save_packed(tmp_path / "m", {"w": weight}, {"w": fit_grid(weight, 2)})
    assert torch.equal(load_packed(tmp_path / "m")["w"], weight)


def test_shared_weights_are_stored_once_and_stay_shared(tmp_path: Path) -> None:
    weight = torch.randn(64, 64)
    save_packed(tmp_path / "one", {"a": weight}, {})
    save_packed(tmp_path / "two", {"a": weight, "b": weight}, {})
    assert (tmp_path / "two").stat().st_size < 1.1 * (tmp_path / "one").stat().st_size
    state = load_packed(tmp_path / "two")
    assert state["a"] is state["b"]


@pytest.mark.parametrize(
    "content", [b"", b"nothing", zlib.compress(b"nothing"), zlib.compress(b"\x02\0\0\0\0\0\0\0{}")]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(ModelError, match="not a model that apportion packed"):
        load_packed(tmp_path / "m")
    with pytest.raises(ModelError, match="No such file"):
        load_packed(tmp_path / "none")
