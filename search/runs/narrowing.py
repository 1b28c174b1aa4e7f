"""A smaller network within hard budgets, from what a program has in memory: how many channels each
group keeps, and which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from apportion.compressors.calibration import FullPass
from apportion.compressors.errors import BudgetError, ConfigurationError, ModelError
from apportion.compressors.groups import criteria
from apportion.compressors.groups.find import CHANNELS, Grouped, find_groups
from apportion.compressors.groups.readers import first_of, readers_of
from apportion.compressors.kinds.find import find_layers
from apportion.compressors.kinds.uses import Found
from apportion.compressors.progress import Progress, silent
from apportion.compressors.threads import full_precision
from apportion.evaluators.costs import budgets as given
from apportion.evaluators.costs.channels.counts import ChannelCosts, channel_costs
from apportion.evaluators.data import trees
from apportion.evaluators.data.loaders import as_dataset
from apportion.evaluators.models.build import checked
from apportion.evaluators.rewriting.compensate import without
from apportion.evaluators.rewriting.masked import working
from apportion.evaluators.rewriting.narrow import changed_shapes
from apportion.evaluators.rewriting.reconstruct import reconstruct
from apportion.evaluators.tasks.task import Task
from apportion.evaluators.workloads.workload import Workload
from apportion.search.runs.coupling import channel_space, multiples
from apportion.search.runs.ordering import channel_orders
from apportion.search.space.milp import milp

_METRICS = ("flops", "params")
_SIZES = 64
"""Sizes of each group that are chosen from, at most."""
_POINTS = 8
"""Sizes of each group that are measured; between them losses are interpolated."""


@dataclass(frozen=True)
class Narrowed:
    """model: smaller, trainable, of the class that was given. shapes: for `resize`, which makes
    another instance of the class as small. sizes: group -> channels that stay, of `channels`.
    costs: metric -> (of this model, of the dense one). gap: relative, of the choice of sizes to the
    best sum of losses; 0 is the optimum; inf: nothing is proven, for there are too many sizes.
    kept: layer -> why its channels all stay."""

    model: nn.Module
    shapes: Mapping[str, list[int]]
    sizes: Mapping[str, int]
    channels: Mapping[str, int]
    costs: Mapping[str, tuple[int, int]]
    gap: float
    kept: Mapping[str, str]


def narrow(
    model: nn.Module,
    *,
    task: Task,
    calibration: Any,
    budgets: Mapping[str, float | str],
    multiple: int = 8,
    criterion: str = criteria.OBS,
    seed: int = 0,
    fit: bool = False,
    batch_size: int = 64,
    damping: float = 1e-3,
    progress: Progress = silent,
) -> Narrowed:
    """A copy of `model` with fewer channels that meets the budgets at the least sum of measured
    losses: each group's divergence from the dense model at some of its sizes alone. The layers that
    read them make up for channels that are gone. It is meant to be trained afterwards.

    Args:
        model: on the CPU, in float32; it is put in eval mode.
        task: feeds batches, and gives the divergence from the dense outputs.
        calibration: a DataLoader, or an iterable of batches.
        budgets: of `flops` (multiply-accumulates) and `params`: 0.5, "2x", "30%" or an amount.
        multiple: sizes are multiples of this, or whole.
        criterion: which channels go first: obs, what the layers that read them lose; or l1, l2,
            fpgm, taylor, hessian, random, or one of your own (compressors/groups/criteria.py).
            Layers make up for them in any case.
        seed: of the criterion's generator.
        fit: fit layers one after the other to what they give in the dense model, in a pass for
            each: nearer to it, for models that are not trained afterwards.
        batch_size: of all passes.
        damping: share of the mean of a Hessian's diagonal that is added to it.
        progress: told of all that takes long.

    Raises:
        ModelError: no channels of the model can go, with the reasons.
        BudgetError: the budgets cannot be met, or are of another metric.
        ApportionError: whatever else is wrong.
    """
    criteria.check_criterion(criterion)
    if multiple < 1:
        raise ConfigurationError(f"multiple must be 1 or more, not {multiple}")
    asked = [given.parse_budget(name, value) for name, value in budgets.items()]
    for own in asked:
        if own.metric not in _METRICS:
            raise BudgetError(own.metric, f"channels have budgets of {' and '.join(_METRICS)}")
    if not asked:
        raise ConfigurationError("budgets: name at least one of flops and params")
    search = _Narrowing(
        checked(model, type(model).__name__).eval(), task, calibration, batch_size, progress
    )
    search.order(criterion, damping, np.random.default_rng(seed))
    return search.run(asked, multiple, damping if fit else None)


class _Narrowing:
    def __init__(
        self, model: nn.Module, task: Task, calibration: Any, size: int, progress: Progress
    ) -> None:
        self.model, self.task, self.progress = model, task, progress
        source = as_dataset(calibration, "calibration")
        data = source.subset(range(len(source)), progress)
        self.batches = list(data.batches(size))
        first = trees.cut(self.batches[0], slice(0, 2))
        self.data = FullPass(lambda: self.batches, task.samples, task.forward, len(self.batches))
        workload = Workload(model, data, data, data, size, task=task)
        self.inside = workload.unpadded_pass(lambda: self.batches)  # padding is no channel's input
        self.found: Found = find_layers(model, self.data)
        grouped = find_groups(model, self.found.layers, self.data, first)
        self.grouped: Grouped = working(model, grouped, self.found.layers, self.data, first)
        if not self.grouped.groups:
            reasons = sorted({f"{n}: {why}" for n, why in self.grouped.kept.items()})
            raise ModelError(f"no channels of the model can go ({'; '.join(reasons[:3])})")

    def order(self, criterion: str, damping: float, rng: np.random.Generator) -> None:
        """In which order the channels of each group go."""
        self.readers = readers_of(
            self.model, self.grouped, self.found.layers, self.inside, damping, self.progress
        )
        self.orders = channel_orders(
            criterion, self.model, self.task, self.batches, self.grouped, self.readers, rng,
            self.progress,
        )  # fmt: skip

    def run(
        self, asked: list[given.Budget], multiple: int, fitted: float | None = None
    ) -> Narrowed:
        """`fitted`: the damping with which layers are fitted; None: they are not."""
        whole = {group.name: group.size for group in self.grouped.groups}
        costs = channel_costs(self.model, self.found, self.grouped.groups)
        sizes = {
            group.name: multiples(group.size, multiple if group.unit == CHANNELS else 1, 1, _SIZES)
            for group in self.grouped.groups
        }
        limits = {own.metric: own.bound(costs.total(own.metric, whole)) for own in asked}
        smallest = {name: own[0] for name, own in sizes.items()}
        for name, limit in limits.items():
            if (least := costs.total(name, smallest)) > limit:
                raise BudgetError(
                    name,
                    f"{limit:g} is asked, and the smallest sizes, multiples of {multiple}, "
                    f"cost {least:g}",
                )
        space = channel_space(costs, sizes, self._losses(whole, sizes), limits)
        found = milp(space)
        kept = {name: sizes[name][i] for name, i in zip(sizes, found.candidate, strict=True)}
        made = self._smaller(kept)
        if fitted is not None:
            stays = first_of(self.orders, kept)
            reconstruct(
                made, self.model, self.grouped, self.found.layers, stays, self.inside, fitted,
                self.progress,
            )  # fmt: skip
        return self._checked(made, kept, whole, costs, found.gap)

    def _checked(
        self,
        made: nn.Module,
        kept: dict[str, int],
        whole: dict[str, int],
        costs: ChannelCosts,
        gap: float,
    ) -> Narrowed:
        counted = sum(p.numel() for p in made.parameters())
        if counted != costs.total("params", kept):  # what was counted is what is there
            raise ModelError(
                f"the smaller model has {counted} parameters, {costs.total('params', kept)} were "
                "counted: please report it"
            )
        both = {m: (costs.total(m, kept), costs.total(m, whole)) for m in _METRICS}
        found = find_layers(made, self.data)  # products of activations shrink, too
        both["flops"] = (sum(found.macs.values()) + found.base, both["flops"][1])
        shapes = changed_shapes(self.model, made)
        return Narrowed(made, shapes, kept, whole, both, gap, self.grouped.kept)

    def _smaller(self, kept: Mapping[str, int]) -> nn.Module:
        return without(self.model, self.grouped, self.readers, first_of(self.orders, kept)).eval()

    def _losses(self, whole: Mapping[str, int], sizes: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Of every group at every size, measured at some of them; more channels never cost more."""
        with torch.inference_mode(), full_precision():
            dense = [
                self.task.reference(self.task.forward(self.model, batch), batch)
                for batch in self.batches
            ]
        if not np.isfinite(self._divergence(self.model, dense)):
            raise ConfigurationError(
                "task: the divergence of the dense model from itself is not finite"
            )
        points = {
            name: sorted({own[i] for i in np.linspace(0, len(own) - 1, _POINTS).astype(int)})
            for name, own in sizes.items()
        }
        total, done, made = sum(len(own) - 1 for own in points.values()), 0, {}
        for name, own in points.items():
            values = []
            for size in own:
                if size == whole[name]:
                    values.append(0.0)
                    continue
                self.progress("measure groups alone", done, total)
                value = self._divergence(self._smaller({**whole, name: size}), dense)
                values.append(value if np.isfinite(value) else 1e9)
                done += 1
            falling = np.maximum.accumulate(np.array(values)[::-1])[::-1]
            made[name] = np.interp(sizes[name], own, falling)
        return made

    def _divergence(self, model: nn.Module, dense: list[Any]) -> float:
        total = samples = 0.0
        with torch.inference_mode(), full_precision():
            for batch, wanted in zip(self.batches, dense, strict=True):
                outputs = self.task.forward(model, batch)
                total += float(self.task.divergence(outputs, wanted, batch).sum())
                samples += self.task.samples(batch)
        return total / samples
