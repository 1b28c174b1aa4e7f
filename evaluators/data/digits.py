"""The embedded default: scikit-learn's handwritten digits, and a small residual network trained on
the spot."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from apportion.compressors.errors import DataError
from apportion.compressors.folders import cache_folder
from apportion.compressors.progress import Progress, silent
from apportion.compressors.threads import torch_threads
from apportion.db.files import write_atomically
from apportion.evaluators.data.config import DigitsData
from apportion.evaluators.data.dataset import Splits
from apportion.evaluators.data.registry import Context, reads
from apportion.evaluators.data.splits import TensorSplit

RECIPE = 1
"""Part of the cached file's name: raise it whenever training changes."""
_TEST, _EPOCHS, _BATCH, _RATE = 447, 30, 64, 0.1


@reads(DigitsData)
def read_digits(_config: DigitsData, _context: Context) -> Splits:
    return digits_splits()


def digits_splits() -> Splits:
    """1,350 images to train and calibrate with, 447 to test with; the split is fixed. Pixels 0..16
    become [-1, 1]."""
    table = _table()
    order = np.random.default_rng(0).permutation(len(table))
    images = torch.from_numpy(table[order, :-1]).float().reshape(-1, 1, 8, 8) / 8 - 1
    labels = torch.from_numpy(table[order, -1].astype(np.int64))
    train = TensorSplit(images[_TEST:].contiguous(), labels[_TEST:])
    return Splits(train, TensorSplit(images[:_TEST].contiguous(), labels[:_TEST]), train)


def _table() -> np.ndarray:
    """scikit-learn's file, [1797, 64 pixels and the label]. Its own loader would import pandas and
    more for a second."""
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise DataError("digits", "scikit-learn, which brings them, is not installed")
    return np.loadtxt(
        Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=","
    )


def load_trained(model: nn.Module, progress: Progress = silent) -> None:
    """Give the registered model `digits_resnet` its weights, trained here the first time and kept
    in the user's cache folder from then on."""
    file = cache_folder() / f"digits_resnet-{RECIPE}.safetensors"
    if file.is_file():
        try:
            model.load_state_dict(load_file(file))
            return
        except (SafetensorError, RuntimeError):
            pass  # not what a finished training wrote: train again
    train(model, progress)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    write_atomically(file, lambda path: save_file(state, path))


def train(model: nn.Module, progress: Progress = silent) -> None:
    """Train `model` in place by SGD with momentum, one-cycle cosine rate, and shifts by up to one
    pixel; the same weights every time on the same machine. Leaves the model in eval mode."""
    generator = torch.Generator().manual_seed(0)
    split = digits_splits().calibration
    inputs, labels = next(split.batches(len(split)))
    with torch_threads(1):  # another count may round differently, and the network is small
        _initialise(model, generator)
        steps = _EPOCHS * -(-len(labels) // _BATCH)
        optimizer = torch.optim.SGD(
            model.parameters(), lr=_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
        model.train()
        for epoch in range(_EPOCHS):
            for chosen in torch.randperm(len(labels), generator=generator).split(_BATCH):
                loss = F.cross_entropy(
                    model(_shift(inputs[chosen], generator)), labels[chosen], label_smoothing=0.05
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            progress("train digits_resnet", epoch + 1, _EPOCHS)
    model.eval()


def _initialise(model: nn.Module, generator: torch.Generator) -> None:
    """He initialisation from `generator` alone: building the model drew from torch's global one."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _shift(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    dy, dx = torch.randint(0, 3, (2,), generator=generator).tolist()
    return F.pad(x, (1, 1, 1, 1), value=-1.0)[:, :, dy : dy + x.shape[2], dx : dx + x.shape[3]]
