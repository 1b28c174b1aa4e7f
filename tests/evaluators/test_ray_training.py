"""Fine-tuning by several real processes: the weights of one, up to rounding; and those of
undisturbed ones whatever happens."""

import copy
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apportion.compressors.errors import ConfigurationError, TrainingError
from apportion.evaluators.data.augment import AugmentConfig
from apportion.evaluators.data.dataset import Dataset
from apportion.evaluators.data.splits import TensorSplit
from apportion.evaluators.tasks.image_classification import ImageClassification
from apportion.evaluators.training.checkpoints import FolderCheckpoints
from apportion.evaluators.training.config import FinetuneConfig
from apportion.evaluators.training.held import Hold
from apportion.evaluators.training.recovery import Recovery

pytest.importorskip("ray", reason="apportion[ray] is not installed")
from apportion.evaluators.cluster.training import train_together

EACH = {"CPU": 1.0, "GPU": 0.0}


def images() -> TensorSplit:
    generator = torch.Generator().manual_seed(3)
    return TensorSplit(
        torch.randn(96, 1, 8, 8, generator=generator),
        torch.randint(0, 4, (96,), generator=generator),
    )


def training(folder: Path) -> Recovery:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()
    sparse = copy.deepcopy(dense)
    weight = sparse.get_parameter("0.weight")
    mask = weight.abs() > weight.abs().median()
    with torch.no_grad():
        weight.mul_(mask)
    task, states = ImageClassification(), FolderCheckpoints(folder)
    return Recovery(task, sparse, dense, {"0": Hold(mask)}, 32, 0, states, "key")


def trained(
    folder: Path, config: FinetuneConfig, split: Dataset
) -> tuple[dict[str, Tensor], list[tuple[Any, ...]]]:
    work, told = training(folder), []
    if config.workers:
        train_together(work, split, config, EACH, folder, lambda *step: told.append(step))
    work.finetune(split, config)
    return work.model.state_dict(), told


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    alone, _ = trained(tmp_path / "alone", FinetuneConfig(epochs=2, ema=0.5), images())
    config = FinetuneConfig(epochs=2, ema=0.5, workers=2)
    together, told = trained(tmp_path / "together", config, images())
    before = training(tmp_path / "new").model.state_dict()
    for name, weight in alone.items():
        assert torch.allclose(together[name], weight, atol=1e-5)
        assert not torch.allclose(before[name], weight, atol=1e-4)
    assert torch.equal(together["0.weight"] != 0, before["0.weight"] != 0)
    assert told == [("finetune, epochs", 1, 2), ("finetune, epochs", 2, 2)]
    again, told = trained(tmp_path / "together", config, images())  # it is there already
    assert told == []
    assert all(torch.equal(again[name], weight) for name, weight in together.items())


@pytest.mark.slow
def test_a_process_that_is_killed_changes_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "killed"

    class Deadly(TensorSplit):
        """Kills the process that reads its 100th image, once."""

        def subset(self, indices: Sequence[int], progress: Any = None) -> TensorSplit:
            seen = getattr(self, "seen", 0) + len(indices)
            object.__setattr__(self, "seen", seen)
            if seen > 100 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().subset(indices, progress)

    config = FinetuneConfig(epochs=4, workers=2, augment=AugmentConfig(crop=1))
    whole, _ = trained(tmp_path / "whole", config, images())
    disturbed, told = trained(
        tmp_path / "disturbed", config, Deadly(images().inputs, images().labels)
    )
    assert marker.exists()
    assert [epoch for _, epoch, _ in told] == [1, 2, 3, 4]
    assert all(torch.equal(disturbed[name], weight) for name, weight in whole.items())


@pytest.mark.slow
def test_what_fails_on_the_workers_is_told(tmp_path: Path) -> None:
    class Unreadable(TensorSplit):
        def subset(self, indices: Sequence[int], progress: Any = None) -> TensorSplit:
            raise OSError(f"image {indices[0]} is gone ({progress})")

    with pytest.raises(TrainingError, match="image .* is gone"):
        trained(
            tmp_path,
            FinetuneConfig(epochs=1, workers=2),
            Unreadable(images().inputs, images().labels),
        )


def test_batches_that_cannot_be_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"recovery.finetune.workers: 3 do not divide workload.batch_size, 32",
    ):
        trained(tmp_path, FinetuneConfig(workers=3), images())
