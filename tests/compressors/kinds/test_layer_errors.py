"""The error that a database records is the one that is measured by running the layer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from apportion.compressors.calibration import FullPass
from apportion.compressors.hessian import collect_hessians
from apportion.compressors.kinds.find import find_layers
from apportion.compressors.layers import LayerSpec
from apportion.compressors.levels import parse_level
from apportion.compressors.obs import compress_layer
from tests.compressors.kinds.networks import CASES, Case, whole


def prepared(case: Case) -> tuple[Any, Any, LayerSpec, FullPass]:
    torch.manual_seed(0)
    model, batch = case.make()
    calibration = FullPass(lambda: [batch], lambda b: case.samples or len(b))
    found = find_layers(model.eval(), calibration)
    (layer,) = (own for own in found.layers if own.name == case.layer)
    return model, batch, layer, calibration


@pytest.mark.parametrize("level", ["unstr-0.50", "2:4", "rtn:w3", "w3"])
@pytest.mark.parametrize("name", CASES)
def test_recorded_error_is_measured_error(name: str, level: str) -> None:
    case = CASES[name]
    model, batch, layer, calibration = prepared(case)
    assert layer.kind == case.kind
    assert layer.place is not None
    if layer.columns % 4 and level == "2:4":
        level = "mag:unstr-0.50"
    hessian = collect_hessians(model, [layer], calibration)[layer.name]
    assert hessian.shape == layer.hessian_shape
    dense = layer.place.read(model).reshape(layer.shape)
    (made,) = compress_layer(dense, layer, hessian, [parse_level(level)])
    changed = copy.deepcopy(model)
    layer.place.write(changed, made.weight)
    assert torch.equal(layer.place.read(changed).reshape(layer.shape), made.weight)
    outputs = case.outputs or whole
    with torch.no_grad():
        before, after = outputs(model, model, batch), outputs(changed, model, batch)
    samples = case.samples or len(batch)
    moved = sum(float((a - b).double().square().sum()) for a, b in zip(after, before, strict=True))
    assert moved > 0
    assert made.error == pytest.approx(moved / samples, rel=1e-4)
