"""A real network's layers against the published implementation."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from apportion.compressors.calibration import FullPass
from apportion.compressors.elimination import dispatch, work
from apportion.compressors.hessian import collect_hessians
from apportion.compressors.kinds.find import find_layers
from apportion.compressors.layers import LayerSpec, to_matrix
from apportion.compressors.levels import expand_levels, parse_level
from apportion.compressors.obs import CompressedLayer, compress_layer, layer_error


@pytest.fixture(scope="module")
def resnet20(shared_data: Path) -> tuple[nn.Module, list[LayerSpec], dict[str, Tensor]]:
    """The real ResNet-20, those of its layers that the reference names, and their Hessians on the
    calibration images."""
    from apportion.evaluators.workloads.config import WorkloadConfig
    from apportion.evaluators.workloads.workload import load_workload

    reference = json.loads((shared_data / "reference.json").read_text())["layer_errors"]["layers"]
    cifar = shared_data / "cifar10"
    data = {
        "kind": "npz",
        "calibration": str(cifar / "calib1024.npz"),
        "test": str(cifar / "calib1024.npz"),
    }
    weights = str(shared_data / "models" / "resnet20_cifar10.safetensors")
    workload = load_workload(
        WorkloadConfig.model_validate({"model": "cifar_resnet20", "weights": weights, "data": data})
    )
    inputs = FullPass(lambda: (x for x, _ in workload.calibration.batches(128)))
    found = find_layers(workload.model, inputs).layers
    layers = [layer for layer in found if layer.name in reference]
    assert len(layers) == 3
    return workload.model, layers, collect_hessians(workload.model, layers, inputs)


def test_published_layer_errors(
    shared_data: Path, resnet20: tuple[nn.Module, list[LayerSpec], dict[str, Tensor]]
) -> None:
    """Three layers of the real ResNet-20 against the published implementation's figures, to 1e-3
    relative. Quantized weights settle afterwards, which the published ones do not: they are never
    worse, and the elimination alone is as good."""
    reference = json.loads((shared_data / "reference.json").read_text())["layer_errors"]["layers"]
    model, layers, hessians = resnet20
    modules = dict(model.named_modules())
    for layer in layers:
        expected = {str(parse_level(text)): error for text, error in reference[layer.name].items()}
        levels = [parse_level(text) for text in expected]
        assert len(levels) == 18
        for made in compress_layer(modules[layer.name].weight, layer, hessians[layer.name], levels):
            published = expected[str(made.level)]
            if made.level.quantization is not None and not made.level.quantization.nearest:
                assert 0 < made.error < 1.002 * published
                if made.level.sparsity is None:
                    assert alone(modules[layer.name].weight, layer, hessians[layer.name], made) == (
                        # its order flips at near-ties: the same in distribution, not in digits
                        pytest.approx(published, rel=0.05)
                    )
            else:
                assert made.error == pytest.approx(published, rel=1e-3)


def alone(weight: Tensor, layer: LayerSpec, hessian: Tensor, like: CompressedLayer) -> float:
    """The error of ExactOBS's quantization and nothing else, on the grid of `like`."""
    assert like.grid is not None
    dead = hessian[0].diagonal() == 0
    matrix = to_matrix(weight.detach().double(), layer) * ~dead
    hinv = torch.linalg.inv(hessian[0] + torch.diag(dead.double()))
    none = torch.zeros_like(matrix, dtype=torch.bool)
    return layer_error(dispatch.quantize(matrix, hinv, like.grid, none) - matrix, hessian)


@pytest.mark.slow
def test_single_precision_keeps_real_layer_errors(
    resnet20: tuple[nn.Module, list[LayerSpec], dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, layers, hessians = resnet20
    modules = dict(model.named_modules())
    levels = expand_levels(
        ["unstr-0.10..0.99*0.7", "2:4", "4:8", "block4-0.50", "block4-0.75", "w8", "w4", "2:4+w4"]
    )
    for layer in layers:
        arguments = (modules[layer.name].weight, layer, hessians[layer.name], levels)
        double = list(compress_layer(*arguments))
        with monkeypatch.context() as patch:
            patch.setattr(work, "_DOUBLE_UP_TO", 0)
            single = list(compress_layer(*arguments))
        assert not all(torch.equal(a.weight, b.weight) for a, b in zip(double, single, strict=True))
        for a, b in zip(double, single, strict=True):
            near_ties = a.level.quantization is not None
            assert b.error == pytest.approx(a.error, rel=0.05 if near_ties else 1e-4), (
                layer.name,
                str(a.level),
            )
