"""A whole compressed model in one small file: its state dict, every weight in the smallest encoding
of db/layers/codec.py, deflated."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from apportion.compressors.errors import ModelError
from apportion.compressors.grids import Grid
from apportion.db.files import write_atomically, write_bytes
from apportion.db.layers.codec import decode, encode

_VERSION = 1
_HEADER = "apportion"


def save_packed(path: Path, state: Mapping[str, Tensor], grids: Mapping[str, Grid]) -> None:
    """Write a state dict. `grids`: names of weights -> the grids that they lie on; one that lies on
    its grid no longer is stored by its values. Tensors that are the same view of
    the same memory are stored once. Raises
    OutputError."""
    entries: dict[str, dict[str, object]] = {}
    parts: dict[str, Tensor] = {}
    first: dict[object, str] = {}
    for name, tensor in state.items():
        where = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and where in first:
            entries[name] = {"same": first[where]}
            continue
        first[where] = name
        encoding, own = _encode(tensor, grids.get(name))
        entries[name] = {"as": encoding, "shape": list(tensor.shape)}
        parts |= {f"{name}:{part}": value for part, value in own.items()}
    header = {_HEADER: json.dumps({"version": _VERSION, "tensors": entries}, separators=(",", ":"))}
    content = zlib.compress(save(parts, header), 9)
    write_atomically(path, lambda temporary: write_bytes(temporary, content))


def load_packed(path: str | Path) -> dict[str, Tensor]:
    """The state dict that `save_packed` was given, to the bit, for `model.load_state_dict`. Raises
    ModelError for a file that is none, or is damaged."""
    try:
        content = zlib.decompress(Path(path).read_bytes())
        parts = load(content)
        described = json.loads(_metadata(content)[_HEADER])
        if described["version"] > _VERSION:
            raise ModelError(
                f"{path}: version {described['version']}; this apportion reads versions up to "
                f"{_VERSION}"
            )
        own: dict[str, dict[str, Tensor]] = {}
        for key, value in parts.items():
            name, _, part = key.rpartition(":")
            own.setdefault(name, {})[part] = value
        state: dict[str, Tensor] = {}
        for name, entry in described["tensors"].items():
            if "same" in entry:
                state[name] = state[entry["same"]]
            else:
                state[name] = decode(entry["as"], own[name], tuple(entry["shape"]))
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    except (zlib.error, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{path}: not a model that apportion packed, or damaged ({error})"
        ) from error
    return state


def _encode(tensor: Tensor, grid: Grid | None) -> tuple[str, dict[str, Tensor]]:
    if tensor.ndim < 2 or not tensor.is_floating_point():
        return "dense", {"values": tensor.detach().cpu().reshape(-1).clone()}
    if grid is not None:
        try:
            return encode(tensor, grid)
        except ValueError:  # trained, or corrected, away from it
            pass
    return encode(tensor)


def _metadata(content: bytes) -> dict[str, str]:
    """safetensors reads metadata from files alone; a header is a length and JSON."""
    length = int.from_bytes(content[:8], "little")
    found = json.loads(content[8 : 8 + length]).get("__metadata__")
    return found if isinstance(found, dict) else {}
