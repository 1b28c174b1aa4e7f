"""Digits: the cache of the trained network, and what training leaves behind."""

from pathlib import Path

import numpy as np
import pytest
import torch

from apportion.compressors.errors import OutputError
from apportion.evaluators.data import digits
from apportion.evaluators.models.build import build_model
from apportion.evaluators.workloads.workload import model_fingerprint


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and training that takes one epoch."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(digits, "_EPOCHS", 1)
    return tmp_path / "apportion" / f"digits_resnet-{digits.RECIPE}.safetensors"


def test_trained_once_then_read(cache: Path) -> None:
    calls: list[tuple[int, int]] = []
    first, second = build_model("digits_resnet"), build_model("digits_resnet")
    digits.load_trained(first, lambda _what, done, total: calls.append((done, total)))
    assert calls == [(1, 1)]
    assert [file.name for file in cache.parent.iterdir()] == [cache.name]  # no temporary file stays
    digits.load_trained(second, lambda *_: pytest.fail("trained again"))
    assert model_fingerprint(first) == model_fingerprint(second)


@pytest.mark.parametrize("broken", [b"", b"hello", None])
def test_a_broken_cached_file_is_replaced(cache: Path, broken: bytes | None) -> None:
    first, second = build_model("digits_resnet"), build_model("digits_resnet")
    digits.load_trained(first)
    whole = cache.read_bytes()
    cache.write_bytes(whole[:-100] if broken is None else broken)
    digits.load_trained(second)
    assert model_fingerprint(first) == model_fingerprint(second)
    assert cache.read_bytes() == whole


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(digits, "_EPOCHS", 1)
    with pytest.raises(OutputError, match="digits_resnet"):
        digits.load_trained(build_model("digits_resnet"))


def test_training_leaves_threads_and_the_global_generator_alone(cache: Path) -> None:
    model = build_model("digits_resnet")
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        digits.load_trained(model)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert cache.is_file()


def test_the_weights_do_not_depend_on_the_global_seed(cache: Path) -> None:
    found = []
    for seed in (1, 2):
        cache.unlink(missing_ok=True)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = build_model("digits_resnet")
        digits.load_trained(model)
        found.append(model_fingerprint(model))
    assert found[0] == found[1]


def test_the_split_is_fixed_and_complete() -> None:
    splits = digits.digits_splits()
    assert (len(splits.calibration), len(splits.test)) == (1350, 447)
    inputs, labels = next(splits.test.batches(447))
    assert inputs.shape == (447, 1, 8, 8)
    assert (inputs.min(), inputs.max()) == (-1, 1)
    assert set(labels.tolist()) == set(range(10))
    again = digits.digits_splits().test.subset(range(447))
    assert torch.equal(again.batch[0], inputs)


def test_the_file_is_read_as_its_own_loader_does() -> None:
    from sklearn.datasets import load_digits

    theirs, ours = load_digits(), digits._table()
    assert np.array_equal(ours[:, :-1], theirs.data)
    assert np.array_equal(ours[:, -1], theirs.target)
