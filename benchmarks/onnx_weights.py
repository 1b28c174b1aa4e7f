"""What it costs that weights which uint8 inputs are multiplied by are stored as uint8 with zero
point 128: whole models at w8a8 in ONNX Runtime against the same files with int8 weights about zero,
which processors with AVX2 and without VNNI get wrong. Alternating in one process; medians, and
their ratio. Random weights: they cost what others cost.

    python benchmarks/onnx_weights.py [--models torchvision:resnet18 ...] [--batch 4]
        [--threads 1] [--rounds 30]
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from typing import Any

import onnx
import torch
from exactobs import seconds
from torch import nn

from apportion.compressors.activations import ActivationGrid
from apportion.compressors.grids import GridOptions, fit_grid
from apportion.compressors.kinds.naming import matrices
from apportion.evaluators.models.build import build_model
from apportion.evaluators.rewriting import onnx_model
from apportion.evaluators.rewriting.onnx_model import Quantized
from apportion.evaluators.rewriting.processor import instructions

_INPUT = ActivationGrid(8, 2.0**-6, 0)


def quantized(model: nn.Module) -> dict[str, Quantized]:
    """Every layer at w8a8, on symmetric grids."""
    what = {}
    for name, weight in matrices(model).items():
        flat = weight.detach().flatten(1)
        grid = fit_grid(flat, 8, GridOptions(symmetric=True, fit="minmax"))
        weight.data = grid.values(grid.codes(flat)).reshape(weight.shape)
        what[name] = Quantized(grid, _INPUT)
    return what


def signed(proto: Any) -> Any:
    """The same model with its weights as int8 about zero."""
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    constants = {one.name: one for one in made.graph.initializer}
    made_by = [
        node.input
        for node in made.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    ]
    for name in {name for inputs in made_by for name in (inputs[0], inputs[2])}:
        moved = onnx.numpy_helper.to_array(constants[name]) ^ 0x80
        constants[name].CopyFrom(onnx.numpy_helper.from_array(moved.view("int8"), name))
    del made.graph.value_info[:]  # the types before
    onnx.checker.check_model(made, full_check=True)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=["cifar_resnet20", "torchvision:resnet18", "torchvision:mobilenet_v2"],
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    print(
        f"ONNX Runtime {onnx_model.version()}, {instructions()}, batch {options.batch}, "
        f"{options.threads} threads; medians in ms"
    )
    print(f"{'model':24} {'int8':>8} {'uint8':>8} {'ratio':>6}  in integers")
    for name in options.models:
        torch.manual_seed(0)
        model = build_model(name).eval()
        size = 32 if name.startswith("cifar") else 224
        x = torch.randn(options.batch, 3, size, size)
        what = quantized(model)
        ours = onnx_model.to_onnx(model, x, what)
        opened = [onnx_model.session(proto, options.threads) for proto in (signed(ours), ours)]
        times: list[list[float]] = [[], []]
        for _ in range(options.rounds):
            for session, own in zip(opened, times, strict=True):
                own.append(seconds(partial(onnx_model.run, session, x), "cpu"))
        old, new = (1e3 * statistics.median(own) for own in times)
        integers = f"{len(onnx_model.in_integers(ours))} of {len(what)} layers"
        print(f"{name:24} {old:8.2f} {new:8.2f} {new / old:6.2f}  {integers}", flush=True)


if __name__ == "__main__":
    main()
