"""ONNX files as models (the extra `onnx-source`): torch modules that onnx2torch makes of them,
whose layers are those of the file, held to ONNX Runtime's outputs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from apportion.compressors.calibration import call
from apportion.compressors.errors import ConfigurationError, ModelError, first_line
from apportion.evaluators.data import trees
from apportion.evaluators.models.onnx_static import make_static
from apportion.evaluators.models.onnx_versions import lowered

PREFIX = "onnx:"
SUFFIX = ".onnx"
_CLOSE = 1e-3
"""By how much outputs may differ, as a share of the largest."""
_COMPARED = 2
"""Samples whose outputs are compared."""


def is_onnx(name: str) -> bool:
    """Whether a model's name is that of an ONNX file: `onnx:PATH`, or a path with its suffix."""
    return name.startswith(PREFIX) or name.lower().endswith(SUFFIX)


def file_of(name: str) -> str:
    """The path or URL in a model's name."""
    return name.removeprefix(PREFIX)


def load(path: Path, name: str) -> nn.Module:
    """The model in the file at `path`, called `name` in messages; its modules are called as the
    file's nodes. Raises ModelError, ConfigurationError."""
    onnx, onnx2torch, _ = _packages()
    convert = onnx2torch.convert
    try:
        proto = lowered(onnx.load(str(path)), onnx.numpy_helper)
        inputs = [value.name for value in proto.graph.input]
        named = all(each.isidentifier() for each in inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made: fx.GraphModule = convert(proto, save_input_names=named)
    except Exception as error:  # protobuf, onnx and onnx2torch each raise their own
        raise ModelError(
            f"model {name!r}: cannot be read as ONNX, or holds what onnx2torch does not know "
            f"({first_line(error)})"
        ) from error
    for module in made.modules():
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.contiguous()
    return made.eval()


def settled(model: nn.Module, name: str, path: Path, inputs: Any) -> nn.Module:
    """The model of `load` for inputs of one shape, in batches of any size, without ONNX's
    arithmetic
    on shapes.

    Args:
        model: what `load` gave.
        name: of the model, for messages.
        path: its file.
        inputs: what it is called with, for some samples.

    Raises:
        ModelError: it does not run on them, or gives something else than ONNX Runtime does.
        ConfigurationError: onnxruntime is missing.
    """
    assert isinstance(model, fx.GraphModule)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # onnx2torch indexes with lists
            made = make_static(model, inputs)
    except Exception as error:  # whatever its operations raise
        raise ModelError(
            f"model {name!r}: it does not run on inputs of shape {trees.shapes(inputs)} in batches "
            f"of several samples ({first_line(error)})"
        ) from error
    _check_same(made, name, path, trees.cut(inputs, slice(_COMPARED)))
    return made


def _check_same(model: nn.Module, name: str, path: Path, inputs: Any) -> None:
    """Sample by sample in ONNX Runtime, as files may be for a batch of one, and all at once in
    torch."""
    with torch.no_grad():
        found = trees.tensors(call(model, inputs))
    count = len(trees.tensors(inputs)[0])
    for at in range(count):
        expected = _run(path, name, trees.cut(inputs, slice(at, at + 1)))
        for ours, theirs in zip(found, expected, strict=True):
            if not _close(ours[at : at + 1], theirs):
                raise ModelError(
                    f"model {name!r}: as a torch module it gives other outputs than in ONNX "
                    "Runtime; an operation means something else there (resizing and rounding are "
                    "frequent ones), or its batch is fixed in a way that is not known here"
                )


def _close(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape:
        return False
    ours, theirs = ours.double(), theirs.double()
    return bool((ours - theirs).abs().max() <= _CLOSE * theirs.abs().max().clamp_min(1e-12))


def _run(path: Path, name: str, inputs: Any) -> list[Tensor]:
    runtime = _packages()[2]
    options = runtime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [one.name for one in session.get_inputs()]
        if isinstance(inputs, dict):
            given = {key: inputs[key].numpy() for key in names}
        else:
            given = dict(zip(names, [x.numpy() for x in trees.tensors(inputs)], strict=True))
        return [torch.from_numpy(np.asarray(each)) for each in session.run(None, given)]
    except Exception as error:  # onnxruntime's own kinds, and inputs that are not the file's
        raise ModelError(
            f"model {name!r}: ONNX Runtime does not run it on inputs of shape "
            f"{trees.shapes(inputs)} ({first_line(error)})"
        ) from error


def _packages() -> tuple[Any, Any, Any]:
    """onnx, onnx2torch, onnxruntime."""
    try:
        import onnx
        import onnx2torch
        import onnxruntime
    except ImportError as error:
        raise ConfigurationError(
            f"ONNX files as models need the package {error.name}: install apportion[onnx-source]"
        ) from error
    return onnx, onnx2torch, onnxruntime
