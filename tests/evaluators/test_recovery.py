"""Recovery: training with masks and grids held, which can be interrupted."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from apportion.compressors.errors import ModelError
from apportion.compressors.progress import Progress, silent
from apportion.evaluators.data.augment import AugmentConfig
from apportion.evaluators.data.splits import TensorSplit
from apportion.evaluators.tasks.image_classification import ImageClassification
from apportion.evaluators.training.checkpoints import FolderCheckpoints
from apportion.evaluators.training.config import AdaPruneConfig, FinetuneConfig, LintuneConfig
from apportion.evaluators.training.held import Hold
from apportion.evaluators.training.recovery import Recovery


def models(seed: int = 0) -> tuple[nn.Sequential, nn.Sequential, dict[str, Hold]]:
    """Dense, half of its weights removed, and what is held."""
    torch.manual_seed(seed)
    dense = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)),
    ).eval()
    sparse = copy.deepcopy(dense)
    holds = {}
    for name in ("0", "3"):
        weight = sparse.get_parameter(f"{name}.weight")
        mask = weight.abs() > weight.abs().median()
        with torch.no_grad():
            weight.mul_(mask)
        holds[name] = Hold(mask)
    return dense, sparse, holds


def images(count: int = 96) -> TensorSplit:
    generator = torch.Generator().manual_seed(3)
    return TensorSplit(
        torch.randn(count, 1, 8, 8, generator=generator),
        torch.randint(0, 4, (count,), generator=generator),
    )


def gap(dense: nn.Module, model: nn.Module) -> float:
    inputs = images().inputs
    with torch.no_grad():
        return float((dense(inputs) - model(inputs)).square().mean())


def training(
    folder: Path, progress: Progress = silent, key: str = "k"
) -> tuple[Recovery, nn.Sequential, nn.Sequential]:
    dense, sparse, holds = models()
    task, states = ImageClassification(), FolderCheckpoints(folder)
    work = Recovery(task, sparse, dense, holds, 32, 0, states, key, progress)
    return work, dense, sparse


def test_adaprune_brings_the_outputs_near_and_keeps_the_mask(tmp_path: Path) -> None:
    work, dense, sparse = training(tmp_path)
    before = gap(dense, sparse)
    statistics = sparse.get_buffer("1.running_mean").clone()
    work.adaprune(images(), AdaPruneConfig(epochs=20, learning_rate=3e-3))
    assert gap(dense, sparse) < 0.7 * before
    for name, hold in work.what.items():
        assert hold.mask is not None
        assert torch.equal(sparse.get_parameter(f"{name}.weight") != 0, hold.mask)
    assert torch.equal(sparse.get_buffer("1.running_mean"), statistics)
    assert not sparse.training


def test_lintune_moves_biases_and_normalisations_alone(tmp_path: Path) -> None:
    work, dense, sparse = training(tmp_path)
    before, stitched = gap(dense, sparse), copy.deepcopy(sparse.state_dict())
    work.lintune(images(), LintuneConfig(epochs=20, learning_rate=1e-2))
    assert gap(dense, sparse) < 0.9 * before
    moved = {
        name
        for name, tensor in sparse.state_dict().items()
        if not torch.equal(tensor, stitched[name])
    }
    assert moved == {"0.bias", "1.weight", "1.bias", "3.bias", "6.bias"}
    work.adaprune(images(), AdaPruneConfig(epochs=1))  # which trains all of them again
    assert not torch.equal(sparse.get_parameter("0.weight"), stitched["0.weight"])


def test_lintune_leaves_a_model_without_biases_alone(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4, bias=False))
    task, states = ImageClassification(), FolderCheckpoints(tmp_path)
    work = Recovery(task, model, copy.deepcopy(model), {}, 32, 0, states, "key")
    weight = model.get_parameter("1.weight").detach().clone()
    work.lintune(images(), LintuneConfig())
    assert torch.equal(model.get_parameter("1.weight"), weight)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_finetuning_that_is_interrupted_goes_on_to_the_same_weights(
    tmp_path: Path, ema: float
) -> None:
    config = FinetuneConfig(epochs=3, ema=ema, smoothing=0.1, augment=AugmentConfig(crop=1))

    def run(folder: Path, stop_after: int | None = None, key: str = "k") -> dict[str, Tensor]:
        def progress(_what: str, done: int, _total: int) -> None:
            if done == stop_after:
                raise KeyboardInterrupt

        work, _, sparse = training(folder, progress, key)
        work.finetune(images(), config)
        return sparse.state_dict()

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop_after=5)  # within the second epoch
    again = run(tmp_path / "cut")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    other = run(tmp_path / "cut", key="another")  # another training's state is left alone
    assert all(torch.equal(whole[name], other[name]) for name in whole)


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    work, _, _ = training(tmp_path)
    (tmp_path / "adaprune.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(
        ModelError, match="adaprune.pt: no training's state, or damaged; remove it to begin again"
    ):
        work.adaprune(images(), AdaPruneConfig(epochs=1))
