"""What netadapt proposes: one group alone made smaller, so far that an iteration's bounds hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from apportion.compressors.errors import ModelError
from apportion.compressors.groups.find import ChannelGroup, Grouped
from apportion.compressors.groups.readers import first_of, readers_of
from apportion.compressors.kinds.find import find_layers
from apportion.compressors.kinds.uses import Found
from apportion.compressors.levels import Level
from apportion.compressors.progress import Progress, silent
from apportion.db.channels.plan import DAMPING
from apportion.db.channels.sizes import SizeRules
from apportion.evaluators.costs.channels.counts import ChannelCosts, channel_costs
from apportion.evaluators.data import trees
from apportion.evaluators.rewriting.compensate import without
from apportion.evaluators.workloads.workload import Workload
from apportion.search.jobs.channels import ChannelsConfig
from apportion.search.jobs.job import Job
from apportion.search.runs.building import calibration_pass
from apportion.search.runs.channel_building import usable_groups
from apportion.search.runs.ordering import channel_orders

METRICS = ("flops", "params")


def costs_of(model: nn.Module, found: Found) -> dict[str, float]:
    """Multiply-accumulates for a sample, and parameters, of a model as it is."""
    return {
        "flops": float(sum(found.macs.values()) + found.base),
        "params": float(sum(parameter.numel() for parameter in model.parameters())),
    }


@dataclass(frozen=True)
class Proposal:
    """A group, how many of its channels stay, and what the model costs then."""

    group: str
    size: int
    costs: Mapping[str, float]


class Candidates:
    """Of the model of `workload`. Raises ModelError where no channels can go."""

    def __init__(self, job: Job, workload: Workload, progress: Progress = silent) -> None:
        config = job.database.channels or ChannelsConfig.model_validate({})
        model, self._model = workload.model, workload.model
        first = trees.cut(next(workload.calibration.batches(workload.batch_size)), slice(0, 2))
        data = workload.full_pass(lambda: workload.calibration.batches(workload.batch_size))
        found = find_layers(model, workload.traced_pass())
        self._rules: SizeRules = config.rules()
        usable = usable_groups(workload, found, self._rules, data, first)
        units = {level.unit for level in job.database.expanded() if 0 < level.channels < 1}
        groups = tuple(group for group in usable.groups if group.unit in units)
        if not groups:
            raise ModelError(f"the model has no {' or '.join(sorted(units))} that can go")
        self._grouped: Grouped = replace(usable, groups=groups)
        inside = calibration_pass(job, workload)
        damping = job.database.damping or DAMPING
        self._readers = readers_of(model, self._grouped, found.layers, inside, damping, progress)
        batches = list(workload.calibration.batches(workload.batch_size))
        rng = np.random.default_rng(job.workload.seed)
        self._orders = channel_orders(
            config.criterion, model, workload.task, batches, self._grouped, self._readers, rng,
            progress,
        )  # fmt: skip
        self._costs: ChannelCosts = channel_costs(model, found, self._grouped.groups)
        self._whole = {group.name: group.size for group in self._grouped.groups}

    def proposals(self, bounds: Mapping[str, float]) -> list[Proposal]:
        """For every group that alone can meet the bounds, the largest size that does (Yang et al.
        2018, algorithm 1, ChooseNumFilters); where none can, for every group its least size. Empty:
        no group can be smaller."""
        met, least = [], []
        for group in self._grouped.groups:
            smaller = [self._proposal(group, size) for size in self._sizes(group)]
            least += smaller[-1:]
            met += [p for p in smaller if all(p.costs[m] <= b for m, b in bounds.items())][:1]
        return met or least

    def model(self, proposal: Proposal) -> nn.Module:
        """A smaller model; the layers that read the group make up for what is gone."""
        sizes = {**self._whole, proposal.group: proposal.size}
        return without(self._model, self._grouped, self._readers, first_of(self._orders, sizes))

    def _sizes(self, group: ChannelGroup) -> list[int]:
        """That are smaller, the largest first."""
        shares = (gone / group.size for gone in range(group.size))
        sizes = {self._rules.kept(group, Level(channels=share)) for share in shares}
        return sorted(sizes - {group.size}, reverse=True)

    def _proposal(self, group: ChannelGroup, size: int) -> Proposal:
        sizes = {**self._whole, group.name: size}
        costs = {metric: float(self._costs.total(metric, sizes)) for metric in METRICS}
        return Proposal(group.name, size, costs)
