"""LayerDatabase: a finished layer database, opened lazily; every weight is checked against its
checksum as it is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from apportion.compressors.activations import InputGrid, quantize_input
from apportion.compressors.errors import (
    DatabaseCorruptError,
    DatabaseError,
    DatabaseMismatchError,
    DatabaseUnfinishedError,
    DocumentError,
    LevelError,
    ModelError,
    first_line,
)
from apportion.compressors.grids import Grid
from apportion.compressors.layers import LayerSpec
from apportion.compressors.levels import Level, parse_level
from apportion.compressors.progress import Progress, silent
from apportion.db.documents.json_reader import read_json
from apportion.db.layers import codec, format
from apportion.db.layers.format import Entry, LayerRecord
from apportion.db.layers.profile import check_profile

_MOST = 1 << 30
"""Bytes of a manifest: that of a model of 1,000 layers with 50 levels each has 20 million."""


class LayerDatabase:
    """Compressed weights of every layer at every level. Opening reads the manifest alone; files are
    mapped when first read. Instances may be used from one thread at a time; any number of processes
    may read one database."""

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.path = path
        self.model_fingerprint: str = manifest["model"]
        self.calibration_fingerprint: str = manifest["calibration"]
        self.fingerprint: str = manifest["fingerprint"]
        self.base_macs: int = manifest.get("base_macs", 0)
        self.channels: Mapping[str, Any] | None = manifest.get("channels")
        """What is said of channel levels (db/channels), where the database has any."""
        self.layers: dict[str, LayerRecord] = {}
        self._files: dict[str, str] = {}
        for content in manifest["layers"]:
            record: LayerRecord = content["record"]
            self.layers[record.name] = record
            self._files[record.name] = content["file"]
        self._entries = {
            (name, e.level): e for name, record in self.layers.items() for e in record.entries
        }
        self._open: dict[str, Any] = {}

    @classmethod
    def open(cls, path: str | Path, model_fingerprint: str | None = None) -> LayerDatabase:
        """Open a finished database. With `model_fingerprint`
        (evaluators.workloads.workload.model_fingerprint) also check that it was built from that
        model.
        Raises DatabaseError, DatabaseUnfinishedError, DatabaseMismatchError,
        DatabaseCorruptError."""
        path = Path(path)
        manifest = _read_manifest(path)
        for content in manifest["layers"]:
            file = path / content["file"]
            if not file.is_file():
                raise DatabaseCorruptError(
                    path, f"{content['file']} is missing; build again into an empty folder"
                )
            if file.stat().st_size != content["bytes"]:
                raise DatabaseCorruptError(
                    path,
                    f"{content['file']} has {file.stat().st_size} bytes instead of "
                    f"{content['bytes']}: truncated or altered",
                )
        if model_fingerprint is not None and model_fingerprint != manifest["model"]:
            raise DatabaseMismatchError(
                path,
                f"it was built from another model (fingerprint {manifest['model'][:12]}, this "
                "model has "
                f"{model_fingerprint[:12]}); use the weights it was built from, or another folder",
            )
        return cls(path, manifest)

    def levels(self) -> dict[str, list[str]]:
        """Layer -> the names of its levels, both in the order of the build."""
        return {
            name: [entry.level for entry in record.entries] for name, record in self.layers.items()
        }

    def files(self) -> list[str]:
        """All its files, relative to the folder, without the manifest."""
        return [*self._files.values(), *([] if self.channels is None else [format.CHANNELS])]

    def entry(self, layer: str, level: str | Level) -> Entry:
        """Raises DatabaseError when the layer or its level is not there."""
        try:
            return self._entries[layer, str(level)]
        except KeyError:
            if layer not in self.layers:
                raise DatabaseError(self.path, f"no layer {layer!r}") from None
            raise DatabaseError(self.path, f"layer {layer!r} has no level {str(level)!r}") from None

    def weight(self, layer: str, level: str | Level) -> Tensor:
        """The compressed weight, CPU tensor of the layer's weight shape. Raises DatabaseError,
        DatabaseCorruptError."""
        entry = self.entry(layer, level)
        parts = self._parts(layer, entry)
        if codec.checksum(parts) != entry.checksum:
            raise DatabaseCorruptError(
                self.path, f"{self._files[layer]}: level {entry.level!r} was altered (checksum)"
            )
        return codec.decode(entry.encoding, parts, self.layers[layer].shape)

    def grid(self, layer: str, level: str | Level) -> Grid | None:
        """The grid of a quantized weight; None for other levels, and where storing values took less
        than storing codes. Raises DatabaseError."""
        entry = self.entry(layer, level)
        if entry.encoding in ("dense", "bitmask", "rowmask"):
            return None
        parts = self._parts(layer, entry)
        return codec.read_grid(entry.encoding, parts, self.layers[layer].shape[0])

    def verify(self, progress: Progress = silent) -> None:
        """Read every entry and check it. Raises DatabaseCorruptError for the first one that is not
        as it was written."""
        for done, (name, record) in enumerate(self.layers.items()):
            for entry in record.entries:
                self.weight(name, entry.level)
            progress("verify", done + 1, len(self.layers))

    def stitch(self, model: nn.Module, profile: Mapping[str, Level]) -> None:
        """Give every layer of `model` the weight that `profile` picks, in place, and a hook that
        quantizes its input where the level asks for it. Raises ProfileError, ModelError."""
        check_profile(profile, self.levels())
        modules = dict(model.named_modules(remove_duplicate=False))
        for name, level in profile.items():
            weight, activation = self.weight(name, level), self.entry(name, level).activation
            place_level(model, modules, self.layers[name], weight, activation)

    def _parts(self, layer: str, entry: Entry) -> dict[str, Tensor]:
        file = self._files[layer]
        try:
            if layer not in self._open:
                self._open[layer] = safe_open(self.path / file, framework="pt")
            return format.read_parts(self._open[layer], entry.level)
        except (SafetensorError, OSError) as error:
            raise DatabaseCorruptError(self.path, f"{file}: {error}") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return (
            LayerDatabase.open,
            (self.path,),
        )  # open files do not travel to other processes; the path does


def place_level(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    layer: LayerSpec | LayerRecord,
    weight: Tensor,
    activation: InputGrid | None,
) -> None:
    """Put a layer at a level.

    Args:
        model: changed in place.
        modules: the model's, by all their names.
        layer: which.
        weight: in the layer's shape.
        activation: the grid of its inputs; None: they stay as they are.

    Raises:
        ModelError: the model lacks the layer.
    """
    try:
        with torch.no_grad():
            layer.where.write(model, weight)
    except ModelError as error:
        raise ModelError(
            f"the model has no layer {layer.name!r} of this database: {error}"
        ) from None
    for name in (layer.name, *layer.aliases):
        if name in modules:
            quantize_input(modules[name], activation)


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / format.MANIFEST
    if not path.is_dir():
        raise DatabaseError(path, "no such folder; `apportion build` makes it")
    if not file.is_file():
        if (path / format.BUILD).is_file():
            raise DatabaseUnfinishedError(
                path, "its build has not finished; run `apportion build` again to go on"
            )
        raise DatabaseError(path, f"no {format.MANIFEST} in it: not a layer database")
    try:
        manifest = read_json(file, _MOST)
    except DocumentError as error:
        raise DatabaseCorruptError(path, f"{format.MANIFEST} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != "apportion-layer-database":
        raise DatabaseError(path, f"{format.MANIFEST} is not that of a layer database")
    if manifest.get("version") != format.VERSION:
        raise DatabaseError(
            path,
            f"format version {manifest.get('version')}; this apportion reads version "
            f"{format.VERSION}",
        )
    fingerprint = manifest.pop("fingerprint", None)
    if format.digest(manifest) != fingerprint:
        raise DatabaseCorruptError(path, f"{format.MANIFEST} was altered (checksum)")
    layers = manifest.get("layers")
    if not isinstance(layers, list) or not (layers or manifest.get("channels")):
        raise DatabaseCorruptError(path, f"{format.MANIFEST}: layers: a list of layers is needed")
    for key in ("model", "calibration"):
        if not isinstance(manifest.get(key), str):
            raise DatabaseCorruptError(path, f"{format.MANIFEST}: {key}: a fingerprint is needed")
    read = [_read_layer(path, i, content) for i, content in enumerate(layers)]
    if len({content["record"].name for content in read}) < len(read):
        raise DatabaseCorruptError(path, f"{format.MANIFEST}: layers: two have the same name")
    return {**manifest, "layers": read, "fingerprint": fingerprint}


def _read_layer(path: Path, index: int, content: Any) -> dict[str, Any]:
    """A layer of the manifest, with its record. Raises DatabaseCorruptError for one that no build
    writes, whoever made the checksum fit."""
    where = f"{format.MANIFEST}: layers.{index}"
    try:
        record = LayerRecord.from_json(content["record"])
        file, size = content["file"], content["bytes"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{where} is no layer of this version ({first_line(error)})"
        raise DatabaseCorruptError(path, reason) from error
    whole = isinstance(record.name, str) and record.entries
    if not whole or file != format.layer_file(index, record.name) or type(size) is not int:
        raise DatabaseCorruptError(path, f"{where} is no layer of this version")
    try:
        for entry in record.entries:
            parse_level(entry.level)
    except (LevelError, AttributeError) as error:
        raise DatabaseCorruptError(path, f"{where}: {first_line(error)}") from error
    return {"file": file, "bytes": size, "record": record}
