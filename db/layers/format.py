"""The layer database on disk, version 1 (docs/FORMAT.md is its specification for readers in other
languages).

build.json                what is being built; written first
layers/0000-conv1.safetensors
                          every level of one layer, with its LayerRecord in the header's metadata
manifest.json             all LayerRecords and the files' sizes; written last: without it the
                          database is unfinished
channels.safetensors      where there are channel levels: see db/channels/content.py
inputs/                   what one block gave for the batches that memory does not hold, while a
                          database is built
tables/*.json             measured additive tables (see db/layers/tables.py)
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from apportion.compressors.activations import ActivationGrid, InputGrid, TokenGrid
from apportion.compressors.layers import LayerSpec
from apportion.compressors.place import Place, module_weight

VERSION = 1
BUILD = "build.json"
MANIFEST = "manifest.json"
LAYERS = "layers"
TABLES = "tables"
CHANNELS = "channels.safetensors"
INPUTS = "inputs"


@dataclass(frozen=True, slots=True)
class Entry:
    """One level of one layer. `error` is 1/2 tr(dW H dW^T), `normalized_error` the same over 1/2
    tr(W H W^T) (lower is better, 0 for dense); `nonzeros` counts the stored weights that are not
    zero (all of them for dense); `bits` is what the encoding takes; `checksum` is the SHA-256 of
    the encoded parts; `activation` the grid of the layer's input where the level quantizes it: x ~
    scale (clamp(round(x / scale) + zero, 0, 2^bits - 1) - zero), or one of each token."""

    level: str
    encoding: str
    error: float
    normalized_error: float
    nonzeros: int
    bits: int
    checksum: str
    activation: InputGrid | None = None


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """One layer. `shape` is its weight's shape, `macs` its multiply-accumulates per sample when
    dense, `aliases` other names of the same weight; `entries` stand in the order of the job's
    levels. `place`: where the weight stands in the model; None: it is the `weight` of the
    module."""

    name: str
    kind: str
    shape: tuple[int, ...]
    groups: int
    macs: int
    aliases: tuple[str, ...]
    entries: tuple[Entry, ...]
    place: Place | None = None

    @classmethod
    def of(cls, layer: LayerSpec, macs: int, entries: tuple[Entry, ...]) -> LayerRecord:
        own = module_weight((layer.name, *layer.aliases), layer.shape)
        place = None if layer.where == own else layer.where
        return cls(
            layer.name, layer.kind, layer.shape, layer.groups, macs, layer.aliases, entries, place
        )

    @property
    def where(self) -> Place:
        return self.place or module_weight((self.name, *self.aliases), self.shape)

    @property
    def size(self) -> int:
        """Number of weights."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count

    def to_json(self) -> dict[str, Any]:
        content = asdict(self)
        if self.place is None:  # as it was before there were any
            del content["place"]
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> LayerRecord:
        entries = tuple(_entry(entry) for entry in content["entries"])
        fixed = {
            "shape": tuple(content["shape"]),
            "aliases": tuple(content["aliases"]),
            "entries": entries,
            "place": Place.from_json(content["place"]) if content.get("place") else None,
        }
        return cls(**{**content, **fixed})


def _entry(content: dict[str, Any]) -> Entry:
    activation = content.get("activation")
    return Entry(
        **{**content, "activation": None if activation is None else _input_grid(activation)}
    )


def _input_grid(content: dict[str, Any]) -> InputGrid:
    """Grids of tokens have no scale to keep."""
    return ActivationGrid(**content) if "scale" in content else TokenGrid(**content)


def layer_file(index: int, name: str) -> str:
    """File name of a layer, relative to the database: its index keeps names unique that differ only
    in odd characters."""
    return f"{LAYERS}/{index:04d}-{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.safetensors"


def part_key(level: str, part: str) -> str:
    """Name of one part of a level's encoding inside the layer's file."""
    return f"{level}/{part}"


def read_parts(opened: Any, level: str) -> dict[str, Tensor]:
    """The parts of a level's encoding in a layer's opened file (safetensors' safe_open)."""
    head = part_key(level, "")
    names = [key for key in opened.keys() if key.startswith(head)]  # noqa: SIM118
    return {key.removeprefix(head): opened.get_tensor(key) for key in names}


def digest(content: Any) -> str:
    """SHA-256 of JSON content, independent of key order; 64 hex digits."""
    return hashlib.sha256(
        json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()
