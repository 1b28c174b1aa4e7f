"""Weights files: state dicts as they are, or plainly wrapped in what a training saved."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from apportion.compressors.errors import ModelError

log = logging.getLogger(__name__)

_WRAPPINGS = ("state_dict", "model_state_dict", "model", "net", "network", "module")
"""Keys under which checkpoints keep the model's state dict, the likeliest first."""
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "classifier.")
"""What wrappers put before every name: DataParallel, torch.compile, trainers, and our own around
image classifiers (`Logits`)."""
_DEEPEST = 3


def read_state(path: Path, names: Collection[str]) -> dict[str, Tensor]:
    """The state dict in a .safetensors file, or in a .pt or .pth file read with weights_only=True,
    out of the wrappings and without the prefixes that the model's own `names` do not have. Raises
    ModelError."""
    if not path.is_file():
        raise ModelError(f"weights file {path}: no such file")
    if path.suffix == ".safetensors":
        try:
            found: object = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"weights file {path}: not readable as safetensors ({error})"
            ) from error
    else:
        found = _load(path)
    return _without_prefixes(_unwrapped(found, path), names)


def check_types(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    """Floats of any precision become the model's, which a warning says; what is no float does
    not. Raises ModelError."""
    floats = [key for key in own if key in state and own[key].is_floating_point()]
    for key in floats:
        if not state[key].is_floating_point():
            raise ModelError(
                f"weights file {path}: {key!r} is {type_name(state[key])} where the model has "
                f"{type_name(own[key])}"
            )
    if others := {type_name(state[key]) for key in floats if state[key].dtype != own[key].dtype}:
        log.warning(
            "weights file %s: weights in %s are taken in the model's float32",
            path,
            ", ".join(sorted(others)),
        )


def type_name(tensor: Tensor) -> str:
    """Such as float32."""
    return str(tensor.dtype).removeprefix("torch.")


def _load(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a file that is not its own
        text = str(error)
        objects = re.findall(r"(?:GLOBAL|class) ([\w.]+)", text)
        if objects or "TorchScript" in text:
            what = ", ".join(dict.fromkeys(objects)) or "a TorchScript program"
            raise ModelError(
                f"weights file {path}: not readable with weights_only=True, as it holds more than "
                f"tensors ({what}), whose loading would run code; in a program that knows it, "
                "torch.save(model.state_dict(), 'weights.pt') makes a file without"
            ) from error
        reason = (text.strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"weights file {path}: not readable with weights_only=True ({reason})"
        ) from error


def _unwrapped(found: object, path: Path) -> dict[str, Tensor]:
    for _ in range(_DEEPEST):
        if not isinstance(found, dict) or _is_state(found):
            break
        inside = {key: value for key, value in found.items() if isinstance(value, dict)}
        key = next((key for key in _WRAPPINGS if key in inside), None)
        if key is None:
            break
        found = inside[key]
        others = [str(other) for other in inside if other != key and _holds_tensors(inside[other])]
        if others:
            log.warning(
                "weights file %s: %r is taken; beside it are %s", path, key, ", ".join(others)
            )
    if not isinstance(found, dict) or not _is_state(found):
        raise ModelError(f"weights file {path}: holds no state dict (name -> tensor); {_in(found)}")
    return dict(found)


def _is_state(found: dict[Any, Any]) -> bool:
    return bool(found) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items()
    )


def _holds_tensors(found: dict[Any, Any]) -> bool:
    """Whether it is another model, an average of weights say, and no optimizer's state or
    options."""
    return any(_is_state(each) for each in (found, *found.values()) if isinstance(each, dict))


def _in(found: object) -> str:
    if not isinstance(found, dict):
        return f"it is a {type(found).__name__}"
    kinds = [f"{key!r} ({type(value).__name__})" for key, value in found.items()]
    odd = [
        text
        for text, (key, value) in zip(kinds, found.items(), strict=True)
        if not isinstance(key, str) or not isinstance(value, Tensor)
    ]
    shown = ", ".join(odd[:5]) + (" ..." if len(odd) > 5 else "") or "nothing"
    return f"it holds {shown}, and a state dict is looked for under {', '.join(_WRAPPINGS)}"


def _without_prefixes(state: dict[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Without what stands before all names of the file, and not before the model's. A file with one
    of the model's names has none: it may lack those of tied weights."""
    while not any(name in names for name in state):
        prefix = next(
            (
                each
                for each in _PREFIXES
                if all(name.startswith(each) for name in state)
                and not all(name.startswith(each) for name in names)
            ),
            None,
        )
        if prefix is None:
            return state
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state
