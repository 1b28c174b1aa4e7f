"""Models by name: the CIFAR ResNets, torchvision's, timm's, Hugging Face's, ONNX files, and any
callable of the user's."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from apportion.compressors.errors import (
    CodeError,
    ConfigurationError,
    DocumentError,
    ModelError,
    UnknownNameError,
    WeightsError,
)
from apportion.compressors.user_code import load_object
from apportion.db.documents.json_reader import read_json
from apportion.evaluators.data.files import local_file
from apportion.evaluators.data.text.pretrained import PREFIX
from apportion.evaluators.models import (
    huggingface,
    onnx_source,
    timm_models,
    torchvision_models,
)
from apportion.evaluators.models.checkpoints import check_types, read_state, type_name
from apportion.evaluators.models.folding import fold_batchnorm
from apportion.evaluators.models.networks import CifarResNet  # noqa: F401 - they register
from apportion.evaluators.models.registry import MODELS
from apportion.evaluators.models.resizing import resize
from apportion.evaluators.models.sharing import share_by_storage, shared_names
from apportion.evaluators.tasks.image_classification import ImageClassification
from apportion.evaluators.tasks.task import Task

log = logging.getLogger(__name__)

NAMED = (
    torchvision_models.PREFIX,
    timm_models.PREFIX,
    PREFIX,
    onnx_source.PREFIX,
)
"""What names of models begin with that are no code of the user's."""


def build_model(
    name: str, weights: str | None = None, task: Task | None = None, shapes: str | None = None
) -> nn.Module:
    """The model called `name`, in eval mode on the CPU: a registered name, `torchvision:NAME`,
    `timm:NAME`, `huggingface:NAME` or an ONNX file (both with their own weights, the former as it
    is for `task`; by default an image classifier), or `package.module:function`. `weights`: a file
    (.safetensors; .pt, .pth) or, for torchvision, the name of one of its weight enums. `shapes`:
    the file of a smaller model's, whose weights the file has. Raises UnknownNameError, ModelError,
    WeightsError, ConfigurationError."""
    if name in MODELS:
        model = MODELS[name]()
    elif name.startswith(torchvision_models.PREFIX):
        enum = None if weights is None or is_file_name(weights) else weights
        model = torchvision_models.build(name.removeprefix(torchvision_models.PREFIX), enum)
        if enum is not None:
            weights = None  # loaded already
    elif name.startswith(PREFIX):
        own, kind = name.removeprefix(PREFIX), task or ImageClassification()
        if shapes is None:
            model = huggingface.load(own, kind, None if weights is None else local_file(weights))
            weights = None  # loaded already
        else:
            model = huggingface.empty(own, kind)
    elif name.startswith(timm_models.PREFIX):
        model = timm_models.build(name.removeprefix(timm_models.PREFIX))
    elif onnx_source.is_onnx(name):
        if weights is not None:
            raise ConfigurationError(
                f"workload.weights: the ONNX file {name!r} brings its own; leave it out"
            )
        model = onnx_source.load(local_file(onnx_source.file_of(name)), name)
    elif ":" in name:
        model = _call(name)
    else:
        valid = [
            *MODELS,
            f"{torchvision_models.PREFIX}NAME",
            f"{timm_models.PREFIX}NAME",
            "path/model.onnx",
            f"{PREFIX}NAME",
            "package.module:function",
        ]
        raise UnknownNameError("model", name, valid)
    return checked(model, name, weights, shapes)


def checked(
    model: nn.Module, name: str, weights: str | None = None, shapes: str | None = None
) -> nn.Module:
    """`model`, called `name` in messages, with the weights of a file where one is named: in eval
    mode, on the CPU, in float32, all finite; parameters that are the same memory are made one.
    Raises ModelError, WeightsError."""
    _check_parameters(model, name)
    share_by_storage(model, name)
    if shapes is not None:
        resize(model, read_shapes(local_file(shapes)))
    if weights is not None:
        load_weights(model, local_file(weights))
    _check_finite(model, name)
    return model.eval()


def class_names(name: str, model: nn.Module) -> list[str] | None:
    """The names that the model has for its classes, in the order of its outputs: those of
    torchvision's weights, of Hugging Face's configuration, or an attribute `classes` of the user's
    model. None where it has none."""
    if name.startswith(torchvision_models.PREFIX):
        return torchvision_models.class_names(name.removeprefix(torchvision_models.PREFIX))
    if name.startswith(PREFIX):
        inner = model.classifier if isinstance(model, huggingface.Logits) else model
        return huggingface.class_names(inner)
    classes = getattr(model, "classes", None)
    if isinstance(classes, list | tuple) and all(isinstance(each, str) for each in classes):
        return list(classes)
    return None


def settled(model: nn.Module, name: str, inputs: Any) -> nn.Module:
    """The model of `build_model` for what it will be called with: an ONNX file's is made for inputs
    of this shape and held to ONNX Runtime, all others are as they are. Raises ModelError,
    ConfigurationError."""
    if not onnx_source.is_onnx(name):
        return model
    return onnx_source.settled(model, name, local_file(onnx_source.file_of(name)), inputs)


def is_file_name(weights: str) -> bool:
    """Files have a suffix or a folder; torchvision's weight enums (IMAGENET1K_V2, DEFAULT) have
    neither."""
    return "/" in weights or bool(Path(weights).suffix)


def read_shapes(path: Path) -> dict[str, list[int]]:
    """Of a smaller model, as exports write them. Raises ModelError."""
    try:
        content = read_json(path)
    except DocumentError as error:
        raise ModelError(f"shapes file {path}: {error}") from error
    if not isinstance(content, dict) or not all(
        isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
        for shape in content.values()
    ):
        raise ModelError(f"shapes file {path}: expected a JSON object {{name: [sizes]}}")
    return content


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict from .safetensors, or from .pt/.pth read with weights_only=True. Its keys
    and shapes must be the model's; batch counters (num_batches_tracked) may be absent, and all but
    one of the names of a tensor that layers share. Raises WeightsError, ModelError."""
    own = model.state_dict()
    state = read_state(path, own)
    for names in shared_names(own):
        there = [name for name in names if name in state]
        for name in there[1:]:
            if not torch.equal(state[name], state[there[0]]):
                raise ModelError(
                    f"weights file {path}: {there[0]!r} and {name!r} are one tensor in the model, "
                    "and differ in the file"
                )
        state |= {name: state[there[0]] for name in names if there}
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    mismatched = [
        f"{key} {list(state[key].shape)} instead of {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if missing or unexpected or mismatched:
        raise WeightsError(str(path), missing, unexpected, mismatched)
    check_types(state, own, path)
    model.load_state_dict(state, strict=False)


def _check_parameters(model: nn.Module, name: str) -> None:
    for path, module in model.named_modules():
        for own, parameter in module._parameters.items():
            at = f"{path}.{own}" if path else own
            if is_lazy(parameter):
                raise ModelError(
                    f"model {name!r}: parameter {at!r} of {type(module).__name__} has no shape "
                    "yet; run the model once on an input before it is returned"
                )
            if parameter is not None and parameter.device.type != "cpu":
                raise ModelError(
                    f"model {name!r}: parameter {at!r} is on {parameter.device}; models are given "
                    "on the CPU (workers.gpus says what they run on): return model.cpu()"
                )
            if parameter is not None and parameter.dtype != torch.float32:
                raise ModelError(
                    f"model {name!r}: parameter {at!r} is {type_name(parameter)}; models are "
                    "compressed in float32: return model.float()"
                )


def _call(name: str) -> nn.Module:
    attribute = name.partition(":")[2]
    try:
        function = load_object(name, "model")
    except CodeError as error:
        raise ModelError(str(error)) from error
    if not callable(function):
        raise ModelError(f"model {name!r}: {attribute!r} is not callable")
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise ModelError(f"model {name!r}: must be callable without arguments ({error})") from error
    except ValueError:
        pass  # a builtin that does not tell its signature: calling it will tell
    try:
        model = function()
    except Exception as error:  # the user's own code
        raise ModelError(
            f"model {name!r}: calling {attribute!r} failed ({_named(error)})"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model {name!r}: gave a {type(model).__name__} instead of a torch.nn.Module"
        )
    return model


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _check_finite(model: nn.Module, name: str) -> None:
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(f"model {name!r}: tensor {key!r} holds NaN or infinity")


def folded(model: nn.Module, name: str, inputs: Any) -> nn.Module:
    """`model` in eval mode with batch-norm folded into the layers before it where that is exact; a
    warning names what stays. Raises ModelError for a model that torch.fx cannot trace, or whose
    outputs for `inputs`, what it is called with, folding would change."""
    try:
        made = fold_batchnorm(model, inputs)
    except ModelError as error:
        raise ModelError(f"model {name!r}: workload.fold cannot be done: {error}") from error
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    if kept := [own for own, module in made.named_modules() if isinstance(module, kinds)]:
        log.warning(
            "workload.fold: batch-norm that follows no layer alone stays: %s", ", ".join(kept)
        )
    return made
