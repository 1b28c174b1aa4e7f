"""Measured latency: every (layer shape, level) timed in isolation on this machine, and tables
checked against whole models."""

from __future__ import annotations

import copy
import csv
import datetime
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apportion.compressors.levels import DENSE, Level, parse_level
from apportion.compressors.progress import Progress, silent
from apportion.db.layers.database import LayerDatabase
from apportion.db.layers.profile import Profile
from apportion.evaluators.costs.alone import timed_alone
from apportion.evaluators.costs.latency import WHOLE, LatencyTable
from apportion.evaluators.costs.runtimes import Runtime, Timing, machine, time_run
from apportion.evaluators.data import trees
from apportion.evaluators.rewriting.onnx_model import Quantized
from apportion.evaluators.rewriting.reduced import reducible, reducible_layers
from apportion.evaluators.tasks.task import Inputs


@dataclass(frozen=True, slots=True)
class MeasuredLatency:
    """`layers[name][level]`: of every layer at every level that the runtime runs faster, and dense.
    `whole`: of the whole dense model. `idle`: levels of the database that nothing accelerates, and
    which cost what dense costs."""

    layers: dict[str, dict[Level, Timing]]
    whole: Timing
    idle: tuple[Level, ...]
    facts: dict[str, str]

    @property
    def alone(self) -> float:
        """Seconds of all dense layers, each in isolation."""
        return sum(row[DENSE].seconds for row in self.layers.values())

    def to_csv(self) -> str:
        """The table that `read_latency` reads, with the conditions of the measurement as comments.
        Where the layers alone take longer than the whole model, which a runtime fuses,
        their sum stands for the whole."""
        text = io.StringIO()
        for name, value in self.facts.items():
            text.write(f"# {name}: {value}\n")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("layer", "level", "seconds", "spread", "repeats"))
        whole = max(self.whole.seconds, self.alone)
        writer.writerow(
            (WHOLE, DENSE, f"{whole:.9g}", f"{self.whole.spread:.3g}", self.whole.repeats)
        )
        for layer, row in self.layers.items():
            for level, timing in row.items():
                writer.writerow(
                    (layer, level, f"{timing.seconds:.9g}", f"{timing.spread:.3g}", timing.repeats)
                )
        return text.getvalue()


def measure_latency(
    model: nn.Module,
    database: LayerDatabase,
    example: Inputs,
    runtime: Runtime,
    progress: Progress = silent,
) -> MeasuredLatency:
    """Time the layers of a model; those of one shape once.

    Args:
        model: dense, in eval mode.
        database: gives its layers, their levels and grids.
        example: what the model is called with; layers are timed on what reaches them of it.
        runtime: what runs them.
        progress: told of layers.

    Returns:
        Seconds of each level that the runtime runs faster, with those of the whole model.

    Raises:
        ModelError: the runtime cannot take the model.
    """
    modules, inputs = timed_alone(model, database, example)
    levels = {
        name: [parse_level(text) for text in texts] for name, texts in database.levels().items()
    }
    timed = {
        name: [
            DENSE,
            *(
                lv
                for lv in own
                if reducible(lv) or (not lv.is_dense and runtime.has_fast_kernel(modules[name], lv))
            ),
        ]
        for name, own in levels.items()
    }
    chained = _chained(model, database, example, runtime, timed)
    idle = {lv for name, own in levels.items() for lv in own if lv not in timed[name]}
    layers: dict[str, dict[Level, Timing]] = {}
    known: dict[tuple[Any, ...], Timing] = {}
    done, total = 0, sum(map(len, timed.values())) + 1
    for name, own in timed.items():
        layers[name] = {}
        for level in own:
            key = (_shape(modules[name]), tuple(inputs[name].shape), level, name in chained)
            if key not in known:
                layer = nn.Sequential(copy.deepcopy(modules[name]))
                own_weight: Any = layer[0].weight
                own_weight.data = database.weight(name, level).reshape(own_weight.shape)
                reduced = ["0"] if reducible(level) else []
                quantized = _quantized(database, {name: level}, {name: "0"})
                known[key] = time_run(
                    runtime.prepare(layer, inputs[name], quantized, reduced, name in chained)
                )
            layers[name][level] = known[key]
            done += 1
            progress("time layers", done, total)
    whole = time_run(runtime.prepare(model, example, {}, [], False))
    progress("time layers", total, total)
    facts = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "runtime": runtime.name,
        "threads": str(torch.get_num_threads()),
        "input": " ".join("x".join(map(str, x.shape)) for x in trees.tensors(example)),
        "whole model": f"{whole.seconds:.9g} s measured",
        "in integers": " ".join(sorted(chained)) or "none",
        "not accelerated": " ".join(sorted(map(str, idle))) or "none",
    }
    return MeasuredLatency(layers, whole, tuple(sorted(idle, key=str)), facts)


@dataclass(frozen=True, slots=True)
class Check:
    """One profile: its number of layers per level, and the seconds predicted and measured."""

    levels: dict[str, int]
    predicted: float
    measured: float


def check_latency(
    model: nn.Module,
    database: LayerDatabase,
    table: LatencyTable,
    example: Inputs,
    runtime: Runtime,
    profiles: Sequence[Profile],
    progress: Progress = silent,
) -> list[Check]:
    """Time whole models beside what a table predicts for them.

    Args:
        model: dense, in eval mode.
        database: gives its layers.
        table: seconds of each layer at each level.
        example: what the model is called with.
        runtime: what runs it.
        profiles: those to stitch.
        progress: told of profiles.

    Returns:
        Predicted and measured seconds of each profile.
    """
    checks = []
    for done, profile in enumerate(profiles):
        stitched = copy.deepcopy(model)
        database.stitch(stitched, profile)
        quantized, reduced = _quantized(database, profile), reducible_layers(database, profile)
        measured = time_run(runtime.prepare(stitched, example, quantized, reduced, False)).seconds
        predicted = table.base + sum(
            float(table.of(name, [level])[0]) for name, level in profile.items()
        )
        names = [str(level) for level in profile.values()]
        checks.append(
            Check({name: names.count(name) for name in dict.fromkeys(names)}, predicted, measured)
        )
        progress("time profiles", done + 1, len(profiles))
    return checks


def sample_profiles(
    database: LayerDatabase, levels: Sequence[Level], count: int, rng: np.random.Generator
) -> list[Profile]:
    """`count` profiles that differ in latency: dense, then mixes of dense and `levels` where the
    layers have them, from few layers compressed to all."""
    names = database.levels()
    profiles: list[Profile] = []
    for i in range(count):
        share = i / max(1, count - 1)
        profile: Profile = {}
        for name, own in names.items():
            usable = [level for level in levels if str(level) in own]
            pick = (
                usable[int(rng.integers(len(usable)))] if usable and rng.random() < share else DENSE
            )
            profile[name] = pick
        profiles.append(profile)
    return profiles


def _chained(
    model: nn.Module,
    database: LayerDatabase,
    example: Inputs,
    runtime: Runtime,
    timed: Mapping[str, Sequence[Level]],
) -> set[str]:
    """The layers that run in integers when all are at levels that the runtime runs so."""
    profile = {
        name: [level for level in own if not reducible(level)][-1] for name, own in timed.items()
    }
    stitched = copy.deepcopy(model)
    database.stitch(stitched, profile)
    return runtime.chained(stitched, example, _quantized(database, profile))


def _quantized(
    database: LayerDatabase, profile: Mapping[str, Level], names: Mapping[str, str] | None = None
) -> dict[str, Quantized]:
    """The quantized layers of a profile, by their names in the model that runs."""
    found = {}
    for name, level in profile.items():
        record = database.layers[name]
        grid = database.grid(name, level) if record.place is None or names else None
        made = Quantized(grid, database.entry(name, level).activation)
        if made.weight is not None or made.activation is not None:
            for own in [names[name]] if names else [name, *record.aliases]:
                found[own] = made
    return found


def _shape(module: nn.Module) -> tuple[Any, ...]:
    keys = ("stride", "padding", "dilation", "groups", "padding_mode")
    weight = module.weight
    assert isinstance(weight, Tensor)
    return (
        type(module),
        tuple(weight.shape),
        getattr(module, "bias", None) is not None,
        *(getattr(module, key, None) for key in keys),
    )
