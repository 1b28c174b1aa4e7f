"""The files of a build: one for each layer, which is read again where a build goes on, and the
manifest over all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from apportion.compressors.errors import DatabaseError
from apportion.db.files import save_tensors, write_atomically, write_json
from apportion.db.layers import format
from apportion.db.layers.format import LayerRecord


def write_record(file: Path, record: LayerRecord, tensors: dict[str, Tensor], key: str) -> None:
    """A layer's file; `key` marks it as a build's own. Raises OutputError."""
    metadata = {"build": key, "record": json.dumps(record.to_json())}
    write_atomically(file, lambda path: save_tensors(tensors, path, metadata))


def read_record(file: Path, key: str) -> LayerRecord | None:
    """The record in a finished layer file of the build `key`, or None where the layer is still to
    be made."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
        return (
            LayerRecord.from_json(json.loads(metadata["record"]))
            if metadata.get("build") == key
            else None
        )
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None  # not written by a build that finished the layer: make it again


def finish(
    path: Path, plan: Mapping[str, Any], names: Sequence[str], more: Mapping[str, Any]
) -> None:
    """Write the manifest: the plan, `more`, and the layers called `names`. Raises DatabaseError,
    OutputError."""
    contents = []
    for index, name in enumerate(names):
        file = format.layer_file(index, name)
        record = read_record(path / file, format.digest(plan))
        if record is None:
            raise DatabaseError(path, f"{file} vanished while the database was built")
        contents.append(
            {"file": file, "bytes": (path / file).stat().st_size, "record": record.to_json()}
        )
    manifest = {**plan, **more, "layers": contents}
    # Through JSON once: the fingerprint is taken over what a reader gets back.
    manifest = json.loads(json.dumps(manifest, allow_nan=False))
    write_json(path / format.MANIFEST, {**manifest, "fingerprint": format.digest(manifest)})
