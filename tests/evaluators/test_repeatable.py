"""A model that gives other outputs every time is stopped before anything is searched on noise."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apportion.compressors.errors import ModelError
from apportion.evaluators.models import build as models
from apportion.evaluators.workloads.config import WorkloadConfig
from apportion.evaluators.workloads.repeatable import check_repeatable
from apportion.evaluators.workloads.workload import load_workload


class Body(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.inner, self.calls = way, nn.Linear(64, 32), 0
        self.dropout = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.inner(x)
        match self.way:
            case "dropout":
                return F.dropout(y, 0.1)
            case "dropout told by name":
                return F.dropout(y, p=0.1, training=True)
            case "noise":
                return y + 0.1 * torch.randn_like(y)
            case "mask":
                return y * torch.bernoulli(torch.full_like(y, 0.9))
            case "attention":
                return F.normalize(F.scaled_dot_product_attention(y, y, y, dropout_p=0.1))
            case "python":
                return y * random.random()
            case "numpy":
                return y + float(np.random.rand())
            case "counter":
                return y + self.calls
            case "idle dropout":
                return self.dropout(F.dropout(y, 0.1, self.training))
        return y


class Stubborn(nn.Dropout):
    """Stays in training mode (Monte Carlo dropout)."""

    def train(self, mode: bool = True) -> Stubborn:  # noqa: ARG002
        return super().train(True)


def net(way: str) -> nn.Module:
    body = nn.Sequential(nn.Linear(64, 64), Stubborn()) if way == "stubborn" else Body(way)
    return nn.Sequential(nn.Flatten(), body, nn.Linear(64 if way == "stubborn" else 32, 10)).eval()


INPUTS = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("dropout", r"random there: dropout\(\) in '1' \(Body\)"),
        ("dropout told by name", r"random there: dropout\(\) in '1' \(Body\)"),
        ("noise", r"random there: randn_like\(\) in '1' \(Body\)"),
        ("mask", r"random there: bernoulli\(\) in '1' \(Body\)"),
        ("attention", r"there: scaled_dot_product_attention\(\) in '1' \(Body\)$"),
        ("python", r"the first outputs that differ are those of '1' \(Body\)"),
        ("numpy", r"the first outputs that differ are those of '1' \(Body\)"),
        ("counter", r"the first outputs that differ are those of '1' \(Body\)"),
        ("stubborn", r"in training mode in spite of eval\(\): '1.1' \(Stubborn\)"),
    ],
)
def test_random_models_are_refused_and_say_what_is_random(way: str, message: str) -> None:
    with pytest.raises(ModelError, match=f"model 'mine': gives other outputs .*{message}"):
        check_repeatable(net(way), "mine", INPUTS)


@pytest.mark.parametrize("way", ["plain", "idle dropout"])
def test_the_others_pass(way: str) -> None:
    check_repeatable(net(way), "mine", INPUTS)


def test_outputs_that_are_no_numbers() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).sqrt()

    with pytest.raises(ModelError, match="not numbers"):
        check_repeatable(Root(), "mine", INPUTS)


def test_a_workload_is_checked_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), Body("dropout"), nn.Linear(32, 10))

    monkeypatch.setitem(models.MODELS, "mine", build)
    config = WorkloadConfig.model_validate({"model": "mine", "data": {"kind": "digits"}})
    with pytest.raises(ModelError, match=r"dropout\(\) in '1' \(Body\)"):
        load_workload(config)
