"""Batch-norm folded into the layers before it: never where it would change what the model gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apportion.compressors.errors import ModelError
from apportion.evaluators.models import folding
from apportion.evaluators.models.folding import fold_batchnorm


class Net(nn.Module):
    """Two norms and two layers, used as `way` says."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.conv, self.other = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.bn, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)
        if way == "shared weight":
            self.other.weight = self.conv.weight
        elif way == "hook":
            self.conv.register_forward_hook(lambda _module, _inputs, output: output * 2)
        elif way == "statistics of the batch":
            self.bn2 = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))

    def features(self, x: Tensor) -> Tensor:
        match self.way:
            case "called twice":
                return self.bn(self.conv(x)) + self.bn2(self.conv(x.flip(2)))
            case "called again without":
                return self.bn(self.conv(x)) + self.conv(x.flip(2))
            case "output goes elsewhere":
                y = self.conv(x)
                return self.bn(y) + y
            case "two norms of one output":
                y = self.conv(x)
                return self.bn(y) + self.bn2(y).relu()
            case "shared weight":
                return self.bn(self.conv(x)) + self.bn2(self.other(x))
            case "weight read":
                return self.bn(self.conv(x)) + F.conv2d(x, self.conv.weight, padding=1)
            case "statistics of the batch":
                return self.bn2(self.conv(x))
            case "hook":
                return self.bn(self.conv(x))
            case "norm after norm":
                return self.bn2(self.bn(self.conv(x)))
            case "one norm twice":
                return self.bn(self.conv(x)) + self.bn(self.other(x))
            case _:
                return self.bn(self.conv(x)) + self.bn2(self.other(x)).relu()


class Sequence(nn.Module):
    """Batch-norm over the dimension that a linear layer on [n, 4, 4] leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.bn, self.head = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(16, 5)
        self.last = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.head(self.bn(self.inside(x)).flatten(1)))


def settled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Batch-norm as after training: nothing about it is neutral."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for tensor in (module.weight, module.bias, module.running_mean):
                assert tensor is not None
                tensor.data.copy_(torch.randn(tensor.shape, generator=generator))
            if module.running_var is not None:
                module.running_var.uniform_(0.2, 3, generator=generator)
    return model.eval()


KEPT = {  # way -> norms that stay
    "called twice": 2,
    "called again without": 1,
    "output goes elsewhere": 1,
    "two norms of one output": 2,
    "shared weight": 2,
    "weight read": 1,
    "statistics of the batch": 1,
    "hook": 1,
    "norm after norm": 0,
    "one norm twice": 0,
    "plain": 0,
}


def made(way: str) -> nn.Module:
    torch.manual_seed(0)
    net = Net(way)
    if way == "statistics of the batch":
        return net.eval()
    return settled(net)


@pytest.mark.parametrize("way", KEPT)
def test_outputs_stay_whatever_the_layers_are_used_for(way: str) -> None:
    model, inputs = made(way), torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    folded = fold_batchnorm(model, inputs)
    other = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(folded(other), model(other), rtol=1e-4, atol=1e-4)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules()) == KEPT[way]


@pytest.mark.parametrize("way", KEPT)
def test_an_onnx_model_folds_no_more(way: str) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed (the extra onnx)")
    from apportion.evaluators.rewriting import onnx_model

    model, inputs = made(way), torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    proto = onnx_model.to_onnx(model, inputs, {})
    with torch.no_grad():
        torch.testing.assert_close(
            onnx_model.run(onnx_model.session(proto, 1), inputs),
            model(inputs),
            rtol=1e-4,
            atol=1e-4,
        )


def test_a_linear_layer_on_sequences_keeps_its_norm() -> None:
    torch.manual_seed(0)
    model, inputs = settled(Sequence()), torch.randn(8, 4, 4)
    folded = fold_batchnorm(model, inputs)
    with torch.no_grad():
        torch.testing.assert_close(folded(inputs), model(inputs), rtol=1e-4, atol=1e-4)
    assert isinstance(folded.get_submodule("bn"), nn.BatchNorm1d)
    assert "last" not in dict(folded.named_modules())


def test_a_fold_that_changes_outputs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fuse = folding.fuse_conv_bn_eval

    def wrong(*arguments: Any) -> Any:
        layer = fuse(*arguments)
        layer.bias.data += 1
        return layer

    monkeypatch.setattr(folding, "fuse_conv_bn_eval", wrong)
    with pytest.raises(ModelError, match="its outputs differ by up to"):
        fold_batchnorm(made("plain"), torch.randn(8, 3, 6, 6))
