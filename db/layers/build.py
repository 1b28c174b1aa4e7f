"""Building a layer database: model + calibration data -> compressed weights on disk, layer by
layer, resumable."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn

from apportion.compressors.activations import ActivationGrid, InputGrid, calibrate_activations
from apportion.compressors.calibration import Calibration
from apportion.compressors.chains import NotAChainError
from apportion.compressors.errors import ConfigurationError
from apportion.compressors.hessian import collect_hessians
from apportion.compressors.kinds.uses import Found
from apportion.compressors.layers import LayerSpec
from apportion.compressors.levels import DENSE, Level
from apportion.compressors.options import CompressionOptions
from apportion.compressors.progress import Progress, silent
from apportion.compressors.threads import full_precision
from apportion.db.layers import codec, format
from apportion.db.layers.claim import claimed
from apportion.db.layers.database import LayerDatabase, place_level
from apportion.db.layers.executor import Encoded, Executor, LayerTask, LocalExecutor
from apportion.db.layers.format import Entry, LayerRecord
from apportion.db.layers.passes import Layers, Passes, Stage, groups
from apportion.db.layers.plan import BuildPlan
from apportion.db.layers.records import finish, read_record, write_record

log = logging.getLogger(__name__)


def build_database(
    path: str | Path,
    model: nn.Module,
    found: Found,
    calibration: Calibration,
    levels: Sequence[Level],
    *,
    model_fingerprint: str,
    calibration_fingerprint: str,
    model_outputs: Sequence[float] | None = None,
    exceptions: Mapping[str, Sequence[Level]] | None = None,
    options: CompressionOptions | None = None,
    progress: Progress = silent,
    executor: Callable[[], Executor] = LocalExecutor,
    device: str = "cpu",
) -> LayerDatabase:
    """Compress every layer of `model` to every level that fits it and write the database at `path`.

    A build that was stopped goes on with the first layer that is not on disk; a finished database
    of the same plan is opened as it is.

    Args:
        path: the database's folder.
        model: in eval mode.
        found: its layers, as `find_layers` gives them.
        calibration: the data.
        levels: of every layer; `dense` among them.
        model_fingerprint: of the model, kept in the database.
        calibration_fingerprint: of the data, kept in the database.
        model_outputs: what the model gives for a few calibration inputs
            (evaluators.workloads.workload.model_outputs), kept in the database: the same weights
            with another forward are another model. None: not recorded.
        exceptions: layers that get other levels.
        options: of the compressor.
        progress: is told what is done.
        executor: makes what does the work.
        device: where the model runs over the calibration data.

    Raises:
        DatabaseMismatchError: the folder holds a database of another plan, or of another
            forward.
        DatabaseError: it holds something else, or another process builds there.
        LayerError, OutputError: whatever is raised, finished layers stay and no partial file does.
    """
    path = Path(path)
    layers = found.layers
    wanted = BuildPlan(
        model_fingerprint,
        calibration_fingerprint,
        tuple(levels),
        options or CompressionOptions(),
        exceptions or {},
        None if model_outputs is None else tuple(model_outputs),
    )
    for layer in layers:
        if DENSE not in wanted.of(layer):
            raise ConfigurationError(
                "database.levels: 'dense' must be among the levels, so that every layer has one "
                f"({layer.name!r} lacks it)"
            )
    with claimed(path, wanted.to_json(layers)) as plan:
        if not (path / format.MANIFEST).is_file():
            _Build(
                path, wanted, format.digest(plan), model, found, calibration, progress, device
            ).run(executor)
            base = {"base_macs": found.base} if found.base else {}
            finish(path, plan, [layer.name for layer in layers], base)
    return LayerDatabase.open(path, model_fingerprint)


@dataclass
class _Build:
    """A build under way; `key` marks the files that are this plan's."""

    path: Path
    plan: BuildPlan
    key: str
    model: nn.Module
    found: Found
    calibration: Calibration
    progress: Progress
    device: str

    def run(self, executor: Callable[[], Executor]) -> None:
        """Make the layers that are not there."""
        layers, missing = self.found.layers, self._missing()
        if not missing:
            return
        self._levels = [self.plan.of(layer) for layer in layers]
        bits = {lv.static_bits for own in self._levels for lv in own if lv.static_bits}
        self._bits = sorted(bits)
        self._fed, self._data = self.model, self.calibration
        if self.device != "cpu":
            self._fed = copy.deepcopy(self.model).to(self.device)
            self._data = self.calibration.on(self.device)
        self._grids = dict[str, dict[int, ActivationGrid]]()
        self._done = len(layers) - len(missing)
        self._workers = executor()
        try:
            if self.plan.options.sequential:
                self._input_grids([layers[i] for i in missing], self._data)
                for index in missing:
                    self._write(index, self._after_the_others(index))
            else:
                self._all_at_once()
        finally:
            self._workers.close()

    def _all_at_once(self) -> None:
        """Every missing layer, with the Hessians of the dense model."""
        folder = self.path / format.INPUTS
        shutil.rmtree(folder, ignore_errors=True)  # what a killed build left
        passes = Passes(self._fed, self._data, self.found, bool(self._bits), folder)
        try:
            with closing(passes.stages(self._numbered())) as stages:
                for stage in stages:
                    self._stage(stage)
        except NotAChainError as error:
            log.warning("the rest of the Hessians by passes of the whole model: %s", error)
            self._stage(passes.whole(self._numbered()))

    def _stage(self, stage: Stage) -> None:
        """Layers that the same part of the model feeds."""
        self._input_grids([layer for _, layer in stage.layers], stage.data)
        *before, last = groups(stage.layers)
        for group in before:
            self._together(group, stage.data)
        self._together(last, stage.last)

    def _missing(self) -> list[int]:
        count = len(self.found.layers)
        return [i for i in range(count) if read_record(self._file(i), self.key) is None]

    def _numbered(self) -> Layers:
        return [(i, self.found.layers[i]) for i in self._missing()]

    def _input_grids(self, layers: Sequence[LayerSpec], data: Calibration) -> None:
        if self._bits and any(layer.by_module for layer in layers):
            with full_precision():
                self._grids |= calibrate_activations(self._fed, layers, data, self._bits)

    def _together(self, group: Layers, data: Calibration) -> None:
        """Layers whose Hessians one pass collects."""
        own = [layer for _, layer in group]
        hessians = self._hessians(self._fed, own, data)
        tasks = [
            self._task(index, hessians.pop(layer.name), self._levels[index])
            for index, layer in group
        ]
        for task, encoded in self._workers.run(tasks, self.progress):
            self._write(task.index, encoded)

    def _after_the_others(self, index: int) -> Encoded:
        """A layer whose Hessians are those of a model in which every earlier layer is at the level
        already that is being made (or dense, where it lacks that)."""
        layers = self.found.layers
        tensors: dict[str, Tensor] = {}
        entries: list[Entry] = []
        for level in self._levels[index]:
            before = copy.deepcopy(self._fed)
            modules = dict(before.named_modules(remove_duplicate=False))
            for i, layer in enumerate(layers[:index]):
                made = _read_entry(self._file(i), layer, level)
                if made is not None:
                    place_level(before, modules, layer, *made)
            hessians = self._hessians(before, [layers[index]], self._data)
            task = self._task(index, hessians[layers[index].name], [level])
            ((_, (more, (entry,))),) = self._workers.run([task], self.progress)
            tensors |= more
            entries.append(entry)
        return tensors, tuple(entries)

    def _hessians(
        self, model: nn.Module, layers: Sequence[LayerSpec], data: Calibration
    ) -> dict[str, Tensor]:
        with full_precision():
            made = collect_hessians(model, layers, data, self.progress)
        return {name: hessian.cpu() for name, hessian in made.items()}

    def _task(self, index: int, hessian: Tensor, levels: Sequence[Level]) -> LayerTask:
        layer = self.found.layers[index]
        weight = layer.where.read(self.model).reshape(layer.shape)
        grids = self._grids.get(layer.name, {})
        return LayerTask(index, layer, weight, hessian, tuple(levels), self.plan.options, grids)

    def _write(self, index: int, encoded: Encoded) -> None:
        layer, (tensors, entries) = self.found.layers[index], encoded
        macs = self.found.macs[layer.name]
        record = LayerRecord.of(layer, macs, entries)
        write_record(self._file(index), record, tensors, self.key)
        self._done += 1
        self.progress("compress", self._done, len(self.found.layers))

    def _file(self, index: int) -> Path:
        return self.path / format.layer_file(index, self.found.layers[index].name)


def _read_entry(
    file: Path, layer: LayerSpec, level: Level
) -> tuple[Tensor, InputGrid | None] | None:
    """The weight of a finished layer's level and the grid of its input; None where the layer lacks
    the level."""
    with safe_open(file, framework="pt") as opened:
        record = LayerRecord.from_json(json.loads(opened.metadata()["record"]))
        found = next((entry for entry in record.entries if entry.level == str(level)), None)
        if found is None:
            return None
        parts = format.read_parts(opened, found.level)
    return codec.decode(found.encoding, parts, layer.shape), found.activation
