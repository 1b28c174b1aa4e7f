"""Building a layer database: model + calibration images -> compressed weights on disk, layer by layer, resumable."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from compressors.activations import calibrate_activations
from compressors.errors import ConfigurationError, DatabaseError, DatabaseMismatchError, OutputError
from compressors.hessian import collect_hessians
from compressors.layers import LayerSpec, count_macs, find_layers
from compressors.levels import Level
from compressors.obs import CompressedLayer, CompressionOptions, compress_layer
from compressors.progress import Progress
from db import codec, format
from db.database import LayerDatabase
from db.files import write_atomically, write_json
from db.format import Entry, LayerRecord

HESSIAN_BYTES = 2 << 30
"""Hessians held at once: layers are collected in groups of this many bytes, one pass over the calibration data for each."""


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What a database is built from. Two builds with equal plans give equal databases. `model` and `calibration` are
    fingerprints, `levels` the names of all levels wanted (a layer lacks those that do not fit it)."""

    model: str
    calibration: str
    levels: tuple[str, ...]
    options: CompressionOptions

    def to_json(self, layers: Sequence[LayerSpec]) -> dict[str, Any]:
        return {
            "format": "apportion-layer-database",
            "version": format.VERSION,
            "model": self.model,
            "calibration": self.calibration,
            "levels": list(self.levels),
            "options": self.options.to_json(),
            "layers": [layer.name for layer in layers],
        }


def build_database(
    path: str | Path,
    model: nn.Module,
    batches: Callable[[], Iterable[Tensor]],
    levels: Sequence[Level],
    *,
    model_fingerprint: str,
    calibration_fingerprint: str,
    options: CompressionOptions | None = None,
    progress: Progress | None = None,
) -> LayerDatabase:
    """Compress every layer of `model` to every level that fits it and write the database at `path`.

    `batches()` gives the calibration inputs anew at each call. A build that was stopped goes on with the first layer that
    is not on disk; a finished database of the same plan is opened as it is. Raises DatabaseMismatchError when the folder
    holds a database of another plan, DatabaseError when it holds something else or another process builds there,
    LayerError, HessianError, OutputError. Whatever is raised, finished layers stay and no partial file does.
    """
    path = Path(path)
    options = options or CompressionOptions()
    layers = find_layers(model)
    if not any(level.is_dense for level in levels):
        raise ConfigurationError("database.levels: 'dense' must be among the levels, so that every layer has at least one")
    plan = BuildPlan(model_fingerprint, calibration_fingerprint, tuple(map(str, levels)), options).to_json(layers)
    _claim(path, plan)
    with _locked(path):
        if not (path / format.MANIFEST).is_file():
            _build_layers(path, plan, model, layers, batches, levels, options, progress)
            _finish(path, plan, layers)
    return LayerDatabase.open(path, model_fingerprint)


def _claim(path: Path, plan: dict[str, Any]) -> None:
    """Make sure that `path` is this plan's folder: new, or begun by the same plan."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        begun = path / format.BUILD
        if not begun.is_file():
            if any(path.iterdir()):
                raise DatabaseError(path, "the folder holds other files; choose an empty or a new folder")
            write_json(begun, plan)
            return
        found = json.loads(begun.read_text(encoding="utf-8"))
    except OSError as error:
        raise OutputError(path, error.strerror or str(error)) from error
    except ValueError as error:
        raise DatabaseError(path, f"{format.BUILD} cannot be read: {error}") from error
    if found != plan:
        differing = ", ".join(key for key in plan if found.get(key) != plan[key])
        raise DatabaseMismatchError(
            path, f"the folder holds a database with other {differing}; choose another folder, or remove this one"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep a second build out of the folder. The lock goes with the process, however that ends."""
    handle = os.open(path / format.BUILD, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DatabaseError(path, "another process is building it") from None
        yield
    finally:
        os.close(handle)


def _build_layers(
    path: Path,
    plan: dict[str, Any],
    model: nn.Module,
    layers: Sequence[LayerSpec],
    batches: Callable[[], Iterable[Tensor]],
    levels: Sequence[Level],
    options: CompressionOptions,
    progress: Progress | None,
) -> None:
    key = format.digest(plan)
    missing = [i for i, layer in enumerate(layers) if _read_record(path / format.layer_file(i, layer.name), key) is None]
    if not missing:
        return
    macs = count_macs(model, layers, next(iter(batches()))[:1])
    bits = sorted({level.activation_bits for level in levels if level.activation_bits})
    grids = calibrate_activations(model, [layers[i] for i in missing], batches(), bits) if bits else {}
    modules = dict(model.named_modules())
    done = len(layers) - len(missing)
    for group in _groups([(i, layers[i]) for i in missing]):
        hessians = collect_hessians(model, [layer for _, layer in group], batches(), progress)
        for index, layer in group:
            if progress:
                progress(f"compress {layer.name}", done, len(layers))
            weight = modules[layer.name].weight
            file = path / format.layer_file(index, layer.name)
            made = compress_layer(weight, layer, hessians.pop(layer.name), levels, options, grids.get(layer.name))
            _write_layer(file, key, layer, macs[layer.name], made, levels)
            done += 1
    if progress:
        progress("compress", done, len(layers))


def _groups(layers: list[tuple[int, LayerSpec]]) -> Iterator[list[tuple[int, LayerSpec]]]:
    """Consecutive layers whose Hessians (float64) fit HESSIAN_BYTES together; a larger one stands alone."""
    group: list[tuple[int, LayerSpec]] = []
    taken = 0
    for index, layer in layers:
        size = 8 * layer.groups * layer.columns**2
        if group and taken + size > HESSIAN_BYTES:
            yield group
            group, taken = [], 0
        group.append((index, layer))
        taken += size
    if group:
        yield group


def _write_layer(
    file: Path,
    key: str,
    layer: LayerSpec,
    macs: int,
    compressed: Iterable[CompressedLayer],
    levels: Sequence[Level],
) -> None:
    tensors: dict[str, Tensor] = {}
    entries: dict[str, Entry] = {}
    for made in compressed:
        name = str(made.level)
        encoding, parts = codec.encode(made.weight, made.grid)
        entries[name] = Entry(
            level=name,
            encoding=encoding,
            error=made.error,
            normalized_error=made.normalized_error,
            nonzeros=made.weight.numel() if made.level.is_dense else int((made.weight != 0).sum()),
            bits=codec.stored_bits(parts),
            checksum=codec.checksum(parts),
            activation=made.activation,
        )
        tensors |= {format.part_key(name, part): tensor for part, tensor in parts.items()}
    ordered = tuple(entries[str(level)] for level in levels if str(level) in entries)
    record = LayerRecord(layer.name, layer.kind, tuple(layer.shape), layer.groups, macs, tuple(layer.aliases), ordered)
    metadata = {"build": key, "record": json.dumps(record.to_json())}
    write_atomically(file, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def _read_record(file: Path, key: str) -> LayerRecord | None:
    """The record in a finished layer file of this build, or None where the layer is still to be made."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
        return LayerRecord.from_json(json.loads(metadata["record"])) if metadata.get("build") == key else None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None  # not written by a build that finished the layer: make it again


def _finish(path: Path, plan: dict[str, Any], layers: Sequence[LayerSpec]) -> None:
    contents = []
    for index, layer in enumerate(layers):
        file = format.layer_file(index, layer.name)
        record = _read_record(path / file, format.digest(plan))
        if record is None:
            raise DatabaseError(path, f"{file} vanished while the database was built")
        contents.append({"file": file, "bytes": (path / file).stat().st_size, "record": record.to_json()})
    manifest = {**plan, "layers": contents}
    # Through JSON once: the fingerprint is taken over what a reader gets back.
    manifest = json.loads(json.dumps(manifest, allow_nan=False))
    write_json(path / format.MANIFEST, {**manifest, "fingerprint": format.digest(manifest)})
