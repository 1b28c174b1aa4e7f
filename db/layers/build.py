"""Building a layer database: model + calibration images -> compressed weights on disk, layer by
layer, resumable."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from apportion.compressors.activations import ActivationGrid, calibrate_activations, quantize_input
from apportion.compressors.errors import ConfigurationError, DatabaseError
from apportion.compressors.hessian import collect_hessians
from apportion.compressors.layers import LayerSpec, count_macs, find_layers
from apportion.compressors.levels import DENSE, Level
from apportion.compressors.obs import CompressionOptions, fits
from apportion.compressors.progress import Progress
from apportion.db.files import write_atomically, write_json
from apportion.db.layers import codec, format
from apportion.db.layers.claim import claimed
from apportion.db.layers.database import LayerDatabase
from apportion.db.layers.executor import Encoded, Executor, LayerTask, LocalExecutor
from apportion.db.layers.format import Entry, LayerRecord

HESSIAN_BYTES = 2 << 30
"""Hessians held at once: layers are collected in groups of this many bytes, one pass over the
calibration data for each."""


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What a database is built from. Two builds with equal plans give equal databases. `model` and
    `calibration` are fingerprints, `levels` all levels wanted (a layer lacks those that do not fit
    it), `exceptions` layers that want others."""

    model: str
    calibration: str
    levels: tuple[Level, ...]
    options: CompressionOptions
    exceptions: Mapping[str, Sequence[Level]]

    def of(self, layer: LayerSpec) -> tuple[Level, ...]:
        """The levels that the layer gets."""
        return tuple(
            level for level in self.exceptions.get(layer.name, self.levels) if fits(layer, level)
        )

    def to_json(self, layers: Sequence[LayerSpec]) -> dict[str, Any]:
        content = {
            "format": "apportion-layer-database",
            "version": format.VERSION,
            "model": self.model,
            "calibration": self.calibration,
            "levels": list(map(str, self.levels)),
            "options": self.options.to_json(),
            "layers": [layer.name for layer in layers],
        }
        if self.exceptions:
            content["exceptions"] = {
                name: list(map(str, levels)) for name, levels in self.exceptions.items()
            }
        return content


def build_database(
    path: str | Path,
    model: nn.Module,
    batches: Callable[[], Iterable[Tensor]],
    levels: Sequence[Level],
    *,
    model_fingerprint: str,
    calibration_fingerprint: str,
    exceptions: Mapping[str, Sequence[Level]] | None = None,
    options: CompressionOptions | None = None,
    progress: Progress | None = None,
    executor: Callable[[], Executor] = LocalExecutor,
) -> LayerDatabase:
    """Compress every layer of `model` to every level that fits it and write the database at `path`.

    `batches()` gives the calibration inputs anew at each call; `exceptions` layers that get other
    levels; `executor()` is where the work is done. A build that was stopped goes on with the first
    layer that is not on disk; a finished database of the same plan is opened as it is. Raises
    DatabaseMismatchError when the folder holds a database of another plan, DatabaseError when it
    holds something else or another process builds there, LayerError, OutputError. Whatever is
    raised, finished layers stay and no partial file does."""
    path = Path(path)
    layers = find_layers(model)
    wanted = BuildPlan(
        model_fingerprint,
        calibration_fingerprint,
        tuple(levels),
        options or CompressionOptions(),
        exceptions or {},
    )
    for layer in layers:
        if DENSE not in wanted.of(layer):
            raise ConfigurationError(
                "database.levels: 'dense' must be among the levels, so that every layer has one "
                f"({layer.name!r} lacks it)"
            )
    plan = wanted.to_json(layers)
    with claimed(path, plan):
        if not (path / format.MANIFEST).is_file():
            _build_layers(
                path, wanted, format.digest(plan), model, layers, batches, progress, executor
            )
            _finish(path, plan, layers)
    return LayerDatabase.open(path, model_fingerprint)


def _build_layers(
    path: Path,
    plan: BuildPlan,
    key: str,
    model: nn.Module,
    layers: Sequence[LayerSpec],
    batches: Callable[[], Iterable[Tensor]],
    progress: Progress | None,
    executor: Callable[[], Executor],
) -> None:
    missing = [
        i
        for i, layer in enumerate(layers)
        if _read_record(path / format.layer_file(i, layer.name), key) is None
    ]
    if not missing:
        return
    macs = count_macs(model, layers, next(iter(batches()))[:1])
    levels = {layer.name: plan.of(layer) for layer in layers}
    bits = sorted(
        {level.activation_bits for own in levels.values() for level in own if level.activation_bits}
    )
    grids = (
        calibrate_activations(model, [layers[i] for i in missing], batches(), bits) if bits else {}
    )
    modules = dict(model.named_modules())
    done = len(layers) - len(missing)
    workers = executor()

    def task(index: int, hessian: Tensor, own: Sequence[Level]) -> LayerTask:
        layer = layers[index]
        weight = modules[layer.name].weight.detach()
        return LayerTask(
            index, layer, weight, hessian, tuple(own), plan.options, grids.get(layer.name, {})
        )

    def written(found: Iterable[tuple[int, Encoded]]) -> None:
        nonlocal done
        for index, (tensors, entries) in found:
            layer = layers[index]
            record = LayerRecord(
                layer.name,
                layer.kind,
                layer.shape,
                layer.groups,
                macs[layer.name],
                layer.aliases,
                entries,
            )
            metadata = {"build": key, "record": json.dumps(record.to_json())}
            file = path / format.layer_file(index, layer.name)
            write_atomically(
                file,
                lambda temporary: save_file(tensors, temporary, metadata=metadata),  # noqa: B023
            )
            done += 1
            if progress:
                progress("compress", done, len(layers))

    try:
        if plan.options.sequential:
            for index in missing:
                written(
                    [
                        (
                            index,
                            _after_the_others(
                                path, index, model, layers, levels, batches, task, workers, progress
                            ),
                        )
                    ]
                )
            return
        for group in _groups([(i, layers[i]) for i in missing]):
            hessians = collect_hessians(model, [layer for _, layer in group], batches(), progress)
            tasks = [
                task(index, hessians.pop(layer.name), levels[layer.name]) for index, layer in group
            ]
            written((made.index, encoded) for made, encoded in workers.run(tasks, progress))
    finally:
        workers.close()


def _after_the_others(
    path: Path,
    index: int,
    model: nn.Module,
    layers: Sequence[LayerSpec],
    levels: Mapping[str, Sequence[Level]],
    batches: Callable[[], Iterable[Tensor]],
    task: Callable[[int, Tensor, Sequence[Level]], LayerTask],
    workers: Executor,
    progress: Progress | None,
) -> Encoded:
    """A layer whose Hessians are those of a model in which every earlier layer is at the level
    already that is being made (or dense, where it lacks that)."""
    tensors: dict[str, Tensor] = {}
    entries: list[Entry] = []
    for level in levels[layers[index].name]:
        before = copy.deepcopy(model)
        modules = dict(before.named_modules())
        for i, layer in enumerate(layers[:index]):
            made = _read_entry(path / format.layer_file(i, layer.name), layer, level)
            if made is not None:
                weight, activation = made
                modules[layer.name].weight.data.copy_(weight)
                quantize_input(modules[layer.name], activation)
        hessians = collect_hessians(before, [layers[index]], batches(), progress)
        ((_, (more, (entry,))),) = workers.run(
            [task(index, hessians[layers[index].name], [level])], progress
        )
        tensors |= more
        entries.append(entry)
    return tensors, tuple(entries)


def _groups(layers: list[tuple[int, LayerSpec]]) -> Iterator[list[tuple[int, LayerSpec]]]:
    """Consecutive layers whose Hessians (float64) fit HESSIAN_BYTES together; a larger one stands
    alone."""
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


def _read_entry(
    file: Path, layer: LayerSpec, level: Level
) -> tuple[Tensor, ActivationGrid | None] | None:
    """The weight of a finished layer's level and the grid of its input; None where the layer lacks
    the level."""
    with safe_open(file, framework="pt") as opened:
        record = LayerRecord.from_json(json.loads(opened.metadata()["record"]))
        found = next((entry for entry in record.entries if entry.level == str(level)), None)
        if found is None:
            return None
        keys = {part: format.part_key(found.level, part) for part in codec.PARTS}
        there = set(opened.keys())
        parts = {part: opened.get_tensor(key) for part, key in keys.items() if key in there}
    return codec.decode(found.encoding, parts, layer.shape), found.activation


def _read_record(file: Path, key: str) -> LayerRecord | None:
    """The record in a finished layer file of this build, or None where the layer is still to be
    made."""
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


def _finish(path: Path, plan: dict[str, Any], layers: Sequence[LayerSpec]) -> None:
    contents = []
    for index, layer in enumerate(layers):
        file = format.layer_file(index, layer.name)
        record = _read_record(path / file, format.digest(plan))
        if record is None:
            raise DatabaseError(path, f"{file} vanished while the database was built")
        contents.append(
            {"file": file, "bytes": (path / file).stat().st_size, "record": record.to_json()}
        )
    manifest = {**plan, "layers": contents}
    # Through JSON once: the fingerprint is taken over what a reader gets back.
    manifest = json.loads(json.dumps(manifest, allow_nan=False))
    write_json(path / format.MANIFEST, {**manifest, "fingerprint": format.digest(manifest)})
