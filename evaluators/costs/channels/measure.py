"""Latency of layers at a grid of channels kept, measured on this machine: each layer alone, and
whole models for what is in no layer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apportion.compressors.calibration import call, count_samples
from apportion.compressors.groups.find import ChannelGroup
from apportion.compressors.kinds.feeding import first_tensor
from apportion.compressors.kinds.uses import Found
from apportion.compressors.layers import LayerSpec, hooked
from apportion.compressors.progress import Progress, silent
from apportion.evaluators.costs.channels.counts import Side
from apportion.evaluators.costs.channels.grid import Grid
from apportion.evaluators.costs.channels.latency import ChannelLatency, channels_of
from apportion.evaluators.costs.runtimes import Runtime, time_run
from apportion.evaluators.rewriting.narrow import narrowed, resize
from apportion.evaluators.tasks.task import Inputs

SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Of a side's channels, at which layers are timed."""
_WHOLE = (0.25, 0.5, 0.75, 1.0)
"""Of every group's channels, at which whole models are timed."""

Timer = Callable[[Callable[[], object]], float]
"""Seconds of one run."""


def median(run: Callable[[], object]) -> float:
    return time_run(run).seconds


def measure_channels(
    model: nn.Module,
    found: Found,
    groups: Sequence[ChannelGroup],
    example: Inputs,
    runtime: Runtime,
    shares: Sequence[float] = SHARES,
    step: int = 1,
    timer: Timer = median,
    progress: Progress = silent,
) -> ChannelLatency:
    """Time layers alone; those of one shape once. What whole models take beyond their layers is
    fitted as so much, and so much for every value that layers put out.

    Args:
        model: dense, in eval mode.
        found: its layers.
        groups: its channel groups.
        example: what the model is called with: latency is for as many samples.
        runtime: what runs them.
        shares: of the channels on both sides of a layer, ascending, 1 the last.
        step: channels that the runtime's kernels take at once (16 for ONNX Runtime with AVX-512, 8
            with AVX2): layers are timed at multiples, for which all numbers above the last one
            stand; 17 channels take as long as 32.
        timer: seconds of a call.
        progress: told of layers.

    Raises:
        ModelError: the runtime cannot take the model.
    """
    inputs = _inputs(model, found.layers, example)
    modules = dict(model.named_modules(remove_duplicate=False))
    channels, grids = channels_of(found, groups), {}
    known: dict[tuple[Any, ...], float] = {}
    layers = [layer for layer in found.layers if layer.name in channels.reads]
    for done, layer in enumerate(layers):
        progress("time layers", done, len(layers) + 1)
        kernel = prod(layer.shape[2:])
        both = (
            _points(channels.reads[layer.name], layer.shape[1], shares, step),
            _points(channels.makes[layer.name], layer.rows, shares, step),
        )
        if (x := inputs.get(layer.name)) is not None:
            alone = partial(_smaller, modules[layer.name], x)
        else:
            positions = count_samples(example) * found.macs[layer.name]
            alone = partial(_product, positions // (layer.rows * layer.columns), kernel)
        seconds = np.zeros(tuple(map(len, both)))
        for (i, columns_kept), (j, rows_kept) in product(*map(enumerate, both)):
            module, x = alone(columns_kept, rows_kept)
            key = (repr(module), tuple(x.shape))
            if key not in known:
                known[key] = timer(runtime.prepare(nn.Sequential(module), x, {}, [], False))
            seconds[i, j] = known[key]
        grids[layer.name] = stairs(Grid(*both, seconds), step)
    made = ChannelLatency(grids, channels)
    rest, values = [], []
    progress("time layers", len(layers), len(layers) + 1)
    for kept, small in _uniform(model, groups):
        whole = timer(runtime.prepare(small, example, {}, [], False))
        rest.append(whole - made.seconds(kept))
        values.append(channels.values.count(kept))
    slope, base = _line(values, rest)
    progress("time layers", len(layers) + 1, len(layers) + 1)
    return replace(made, base=base, slope=slope)


def _uniform(
    model: nn.Module, groups: Sequence[ChannelGroup]
) -> Iterator[tuple[dict[str, int], nn.Module]]:
    """Channels kept of each group, and the model that is left: the same share of all."""
    for share in _WHOLE:
        kept = {g.name: max(1, round(share * g.size)) for g in groups}
        stays = {g.name: np.arange(g.size) < kept[g.name] for g in groups}
        yield kept, narrowed(model, groups, stays)


def _points(side: Side, whole: int, shares: Sequence[float], step: int) -> tuple[int, ...]:
    """Numbers of channels at which a side is timed."""
    if not side.each:
        return (whole,)
    least = side.count(dict.fromkeys(side.each, 1))
    asked = (max(least, round(share * whole)) for share in shares)
    return tuple(sorted({min(whole, -(-number // step) * step) for number in asked} | {whole}))


def stairs(grid: Grid, step: int) -> Grid:
    """The table in which the seconds of a number hold down to the multiple of `step` below it,
    without that."""
    rows, inputs = _steps(grid.inputs, step)
    columns, outputs = _steps(grid.outputs, step)
    return Grid(inputs, outputs, grid.seconds[np.ix_(rows, columns)])


def _steps(points: Sequence[int], step: int) -> tuple[list[int], tuple[int, ...]]:
    """Which of the points each new one has its seconds from, and the new ones."""
    made: dict[int, int] = {}
    for i, point in enumerate(points):
        first = (point - 1) // step * step + 1
        if made and first > max(made):  # below the first point, its seconds hold anyway
            made[first] = i
        made[point] = i
    return list(made.values()), tuple(made)


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Slope and intercept, by least squares; a constant where x never changes."""
    if np.ptp(x) == 0:
        return 0.0, float(np.mean(y))
    scale = max(x)
    slope, base = np.polyfit(np.array(x) / scale, np.array(y), 1)
    return float(slope) / scale, float(base)


def _inputs(model: nn.Module, layers: Sequence[LayerSpec], example: Inputs) -> dict[str, Tensor]:
    """Layer -> what its module gets first, for those that are a module's whole weight."""
    seen: dict[str, Tensor] = {}
    modules = dict(model.named_modules(remove_duplicate=False))

    def keep(name: str, _module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.setdefault(name, first_tensor(args, kwargs).detach().clone())

    with torch.no_grad(), hooked() as handles:
        for layer in layers:
            for own in (layer.name, *layer.aliases) if layer.is_module_weight else ():
                hook = partial(keep, layer.name)
                handles.append(modules[own].register_forward_pre_hook(hook, with_kwargs=True))
        call(model, example)
    return seen


def _smaller(module: nn.Module, x: Tensor, inputs: int, outputs: int) -> tuple[nn.Module, Tensor]:
    """The module with so many channels along its weight's second and first dimension, and as
    many of its inputs."""
    made: Any = copy.deepcopy(module)
    whole: Tensor = made.weight
    shapes: dict[str, list[int]] = {"weight": [outputs, inputs, *whole.shape[2:]]}
    if made.bias is not None:
        shapes["bias"] = [outputs]
    resize(made, shapes)
    made.requires_grad_(False)
    for value in made.parameters():
        value.fill_(0.01)
    dim = -1 if whole.ndim == 2 else x.ndim - whole.ndim + 1
    channels = inputs * getattr(made, "groups", 1)
    return made, x.narrow(dim, 0, channels).contiguous()


def _product(positions: int, kernel: int, inputs: int, outputs: int) -> tuple[nn.Module, Tensor]:
    """A linear module with as many multiply-accumulates, for a layer that is a part of others."""
    module = nn.Linear(inputs * kernel, outputs, bias=False).requires_grad_(False)
    return module, torch.zeros(max(1, positions), inputs * kernel)
