"""Building a database of channel levels: groups, orders, and every layer that reads one group at
every number of its channels and every level of its own; resumable as any build."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from apportion.compressors.activations import ActivationGrid, calibrate_activations
from apportion.compressors.calibration import Calibration
from apportion.compressors.groups.find import ChannelGroup, Grouped
from apportion.compressors.groups.ladder import Reader, reader
from apportion.compressors.groups.readers import reader_moments
from apportion.compressors.hessian import collect_hessians
from apportion.compressors.kinds.uses import Found
from apportion.compressors.layers import LayerSpec, from_matrix, to_matrix
from apportion.compressors.levels import DENSE, Level
from apportion.compressors.obs import layer_error
from apportion.compressors.progress import Progress, silent
from apportion.compressors.threads import full_precision
from apportion.db.channels.content import Content, Decision
from apportion.db.channels.database import ChannelDatabase, of_layers, stored_name
from apportion.db.channels.parts import Parts
from apportion.db.channels.plan import ChannelPlan
from apportion.db.files import save_tensors, write_atomically
from apportion.db.layers import codec, format
from apportion.db.layers.claim import claimed
from apportion.db.layers.database import LayerDatabase
from apportion.db.layers.executor import Executor, LayerTask, LocalExecutor
from apportion.db.layers.format import LayerRecord
from apportion.db.layers.records import finish, read_record, write_record

Orders = Callable[[Grouped, Mapping[str, Reader]], dict[str, np.ndarray]]
"""Group -> in which order its channels go."""


def build_channels(
    path: str | Path,
    model: nn.Module,
    found: Found,
    grouped: Grouped,
    calibration: Calibration,
    plan: ChannelPlan,
    orders: Orders,
    *,
    vanishing: Collection[str] = (),
    progress: Progress = silent,
    executor: Callable[[], Executor] = LocalExecutor,
    device: str = "cpu",
) -> ChannelDatabase:
    """Make the levels of all groups, and write the database at `path`. A build that was stopped
    goes on with the first weights that are not on disk; a finished database of the same plan is
    opened as it is.

    Args:
        path: the database's folder.
        model: in eval mode.
        found: its layers.
        grouped: its channel groups, none of which is skipped.
        calibration: the data.
        plan: what decides the database.
        orders: gives them.
        vanishing: groups of which all channels can go.
        progress: is told what is done.
        executor: makes what does the work.
        device: where the model runs over the calibration data.

    Raises:
        DatabaseMismatchError, DatabaseError, LayerError, OutputError: as `build_database`.
    """
    path = Path(path)
    with claimed(path, plan.to_json()) as claimed_plan:
        if not (path / format.MANIFEST).is_file():
            key = format.digest(claimed_plan)
            build = _Build(
                path, plan, key, model, found, grouped, vanishing, calibration,
                progress, device,
            )  # fmt: skip
            content = build.run(orders, executor)
            tensors = content.tensors()
            write_atomically(path / format.CHANNELS, partial(_save, tensors))
            more = {"channels": {**content.to_json(), "checksum": codec.checksum(tensors)}}
            base = {"base_macs": found.base} if found.base else {}
            finish(path, claimed_plan, build.names, {**base, **more})
    return ChannelDatabase(LayerDatabase.open(path, plan.model))


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    save_tensors(tensors, path, {})


@dataclass
class _Build:
    """A build under way; `key` marks the files that are this plan's."""

    path: Path
    plan: ChannelPlan
    key: str
    model: nn.Module
    found: Found
    grouped: Grouped
    vanishing: Collection[str]
    calibration: Calibration
    progress: Progress
    device: str

    def run(self, make_orders: Orders, executor: Callable[[], Executor]) -> Content:
        """Make what is not there; gives what else the database says. `names` has its layers."""
        self.names: list[str] = []
        fed, data = self.model, self.calibration
        if self.device != "cpu":
            fed, data = copy.deepcopy(self.model).to(self.device), self.calibration.on(self.device)
        layers = {layer.name: layer for layer in self.found.layers}
        moments = reader_moments(fed, self.grouped, self.found.layers, data, self.progress)
        readers = {
            name: reader(layers[name], self._matrix(layers[name]), own, self.plan.damping)
            for name, own in moments.items()
        }
        orders = make_orders(self.grouped, readers)
        self._parts = parts = Parts(
            self.grouped, moments, readers, orders, self.plan.levels, self.plan.rules,
            self.vanishing,
        )  # fmt: skip
        alone = [layer for layer in self.found.layers if len(parts.own_levels(layer)) > 1]
        used = [*(layers[name] for name in readers), *alone]
        self._grids = self._activation_grids(fed, used, data)
        self._executor: Executor | None = None
        try:
            decisions = self._decisions(fed, alone, data, executor)
        finally:
            if self._executor is not None:
                self._executor.close()
        return Content(
            self.grouped,
            orders,
            tuple(decisions),
            layers,
            self.found.macs,
            self.found.base,
            self.found.activations,
            {name: own.mean for name, own in moments.items()},
            {name: own.hinv for name, own in readers.items() if name in parts.shared},
        )

    def _decisions(
        self,
        fed: nn.Module,
        alone: Sequence[LayerSpec],
        data: Calibration,
        executor: Callable[[], Executor],
    ) -> list[Decision]:
        total = len(self.grouped.groups) + len(alone)
        made: list[Decision] = []
        for group in self.grouped.groups:
            self.progress("compress groups", len(made), total)
            made.append(self._group(group, executor))
        with full_precision():
            hessians = collect_hessians(fed, alone, data, self.progress) if alone else {}
        for layer in alone:
            self.progress("compress groups", len(made), total)
            made.append(self._layer(layer, hessians[layer.name].cpu(), executor))
        self.progress("compress groups", total, total)
        return made

    def _activation_grids(
        self, fed: nn.Module, layers: Sequence[LayerSpec], data: Calibration
    ) -> dict[str, dict[int, ActivationGrid]]:
        bits = {level.static_bits for level in self.plan.levels if level.static_bits}
        if not bits:
            return {}
        with full_precision():
            return calibrate_activations(fed, layers, data, sorted(bits))

    def _group(self, group: ChannelGroup, executor: Callable[[], Executor]) -> Decision:
        choices = self._parts.choices(group)
        errors = np.zeros(len(choices))
        tasks, lost = [], {}
        for name in group.readers:
            if name in self._parts.shared:
                errors += [self._parts.lost(name, group, kept) for _, kept in choices]
                continue
            errors += [0 if kept else self._parts.lost(name, group, 0) for _, kept in choices]
            for size in dict.fromkeys(kept for _, kept in choices if kept):
                levels = [DENSE, *(of_layers(level) for level, kept in choices if kept == size)]
                narrow = self._parts.narrowed(name, group, size)
                lost[name, size] = narrow.lost
                weight = from_matrix(narrow.weight.float(), narrow.layer)
                layer = replace(narrow.layer, name=stored_name(name, size), place=None)
                tasks.append(self._task(name, layer, weight, narrow.hessian, levels))
        records = zip(lost.items(), self._written(tasks, executor), strict=True)
        for ((name, size), before), record in records:
            # What a level adds starts from weights at their best without the channels.
            whole = self._parts.readers[name].whole
            errors += [
                before + _share(_error(record, of_layers(level)), whole) if kept == size else 0.0
                for level, kept in choices
            ]
        return Decision(
            f"{group.name}.{group.unit}",
            tuple(str(level) for level, _ in choices),
            tuple(errors.tolist()),
            group=group.name,
            kept=tuple(kept for _, kept in choices),
        )

    def _layer(
        self, layer: LayerSpec, hessian: Tensor, executor: Callable[[], Executor]
    ) -> Decision:
        levels, weight = self._parts.own_levels(layer), self._matrix(layer)
        whole = layer_error(weight.double(), hessian)
        task = self._task(layer.name, layer, from_matrix(weight, layer), hessian, levels)
        (record,) = self._written([task], executor)
        errors = tuple(_share(_error(record, level), whole) for level in levels)
        return Decision(layer.name, tuple(map(str, levels)), errors, layer=layer.name)

    def _matrix(self, layer: LayerSpec) -> Tensor:
        return to_matrix(layer.where.read(self.model).detach().cpu(), layer)

    def _task(
        self, name: str, layer: LayerSpec, weight: Tensor, hessian: Tensor, levels: Sequence[Level]
    ) -> LayerTask:
        self.names.append(layer.name)
        own, grids = tuple(dict.fromkeys(levels)), self._grids.get(name, {})
        index = len(self.names) - 1
        return LayerTask(index, layer, weight, hessian, own, self.plan.options, grids)

    def _written(
        self, tasks: Sequence[LayerTask], executor: Callable[[], Executor]
    ) -> list[LayerRecord]:
        """The records of tasks, whose files are written where they are not there."""
        files = {t.index: self.path / format.layer_file(t.index, t.layer.name) for t in tasks}
        missing = [task for task in tasks if read_record(files[task.index], self.key) is None]
        if missing:
            if self._executor is None:
                self._executor = executor()
            for task, (tensors, entries) in self._executor.run(missing, self.progress):
                record = LayerRecord.of(task.layer, 0, entries)
                write_record(files[task.index], record, tensors, self.key)
        found = [read_record(file, self.key) for file in files.values()]
        return [record for record in found if record is not None]


def _error(record: LayerRecord, level: Level) -> float:
    return next(entry.error for entry in record.entries if entry.level == str(level))


def _share(error: float, whole: float) -> float:
    return error / whole if whole > 0 else 0.0
