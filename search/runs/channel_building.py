"""A job's database of channel levels."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
from torch import nn

from apportion.compressors.calibration import FullPass
from apportion.compressors.errors import ConfigurationError, ModelError
from apportion.compressors.groups.find import Grouped, find_groups
from apportion.compressors.groups.ladder import Reader
from apportion.compressors.kinds.uses import Found
from apportion.compressors.levels import DROP, Level
from apportion.compressors.progress import Progress, silent
from apportion.db.channels.build import build_channels
from apportion.db.channels.database import ChannelDatabase
from apportion.db.channels.plan import ChannelPlan
from apportion.db.channels.sizes import SizeRules
from apportion.evaluators.data import trees
from apportion.evaluators.data.dataset import Batch
from apportion.evaluators.rewriting.masked import vanishing, working
from apportion.evaluators.workloads.workload import Workload
from apportion.search.jobs.channels import ChannelsConfig
from apportion.search.jobs.job import Job
from apportion.search.runs.ordering import channel_orders
from apportion.search.runs.workers import Workers

log = logging.getLogger(__name__)


def channel_database(
    job: Job,
    workload: Workload,
    found: Found,
    plan: ChannelPlan,
    calibration: FullPass,
    workers: Workers,
    progress: Progress = silent,
) -> ChannelDatabase:
    """Build it, or go on with one that was begun, or open it.

    Args:
        job: says where it lies, and which channels go first.
        workload: the job's.
        found: the model's layers.
        plan: what decides the database.
        calibration: what it is built from.
        workers: do the work.
        progress: told of what is done.

    Raises:
        ModelError: no channels of the model can go.
        ConfigurationError: no level takes any.
        ApportionError: whatever `build_channels` raises.
    """
    config = job.database.channels or ChannelsConfig.model_validate({})
    first = trees.cut(next(workload.calibration.batches(workload.batch_size)), slice(0, 2))
    data = workload.full_pass(lambda: workload.calibration.batches(workload.batch_size))
    progress("try channel groups", 0, 2)
    grouped = usable_groups(workload, found, plan.rules, data, first)
    progress("try channel groups", 1, 2)
    drops = DROP in plan.levels
    none = vanishing(workload.model, grouped, found.layers, data, first) if drops else []
    progress("try channel groups", 2, 2)
    _check_levels(plan, grouped, none)

    def orders(grouped: Grouped, readers: Mapping[str, Reader]) -> dict[str, np.ndarray]:
        batches = list(workload.calibration.batches(workload.batch_size))
        rng = np.random.default_rng(job.workload.seed)
        return channel_orders(
            config.criterion, workload.model, workload.task, batches, grouped, readers, rng,
            progress,
        )  # fmt: skip

    return build_channels(
        job.database.path,
        workload.model,
        found,
        grouped,
        calibration,
        plan,
        orders,
        vanishing=none,
        progress=progress,
        executor=workers.executor,
        device=workers.device,
    )


def usable_groups(
    workload: Workload, found: Found, rules: SizeRules, data: FullPass, first: Batch
) -> Grouped:
    """The groups whose channels can go, and may."""
    model = workload.model
    grouped = _stored(model, find_groups(model, found.layers, data, first))
    _check_any(grouped)
    rules.check(grouped.groups)
    may = tuple(group for group in grouped.groups if not rules.skips(group))
    grouped = working(model, Grouped(may, grouped.kept, grouped.norms, grouped.biases),
                      found.layers, data, first)  # fmt: skip
    _check_any(grouped)
    return grouped


def _check_levels(plan: ChannelPlan, grouped: Grouped, none: Collection[str]) -> None:
    """Raises ConfigurationError where no level takes channels from any group, and warns of levels
    that take none. `none`: groups that can be dropped."""

    def takes(level: Level) -> bool:
        if level == DROP:
            return bool(none)
        return any(
            group.unit == level.unit and plan.rules.kept(group, level) < group.size
            for group in grouped.groups
        )

    wanted = [level for level in plan.levels if level.channels]
    idle = [str(level) for level in wanted if not takes(level)]
    if not idle:
        return
    largest = max(grouped.groups, key=lambda group: group.size)
    text = (
        f"database.levels: {', '.join(idle)} would leave every group whole, by what they are, what "
        "the model runs without, and database.channels; the largest group, of "
        f"{largest.name!r}, has {largest.size} {largest.unit}"
    )
    if len(idle) == len(wanted):
        raise ConfigurationError(text)
    log.warning("%s", text)


def _stored(model: nn.Module, grouped: Grouped) -> Grouped:
    """Without groups of which something lies in a buffer outside the model's state dict: no file
    would say which of its values stay."""
    state, groups, kept = model.state_dict(), [], dict(grouped.kept)
    for group in grouped.groups:
        hidden = [own.name for own in group.slices if own.name not in state]
        if hidden:
            reason = f"the buffer {hidden[0]!r} is not in the state dict (persistent=False)"
            kept.update(dict.fromkeys(group.makers, reason))
        else:
            groups.append(group)
    return replace(grouped, groups=tuple(groups), kept=kept)


def _check_any(grouped: Grouped) -> None:
    if not grouped.groups:
        reasons = sorted({f"{name}: {why}" for name, why in grouped.kept.items()})
        raise ModelError(f"no channels of the model can go ({'; '.join(reasons[:3])})")
