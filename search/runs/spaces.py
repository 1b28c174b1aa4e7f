"""Search spaces of databases: levels, what they cost, budgets and additive errors."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from torch import nn

from apportion.compressors.errors import BudgetError
from apportion.compressors.levels import parse_level
from apportion.db.channels.database import ChannelDatabase
from apportion.db.layers.database import LayerDatabase
from apportion.evaluators.costs.budgets import Budget
from apportion.evaluators.costs.channel_tables import channel_tables
from apportion.evaluators.costs.latency import LatencyTable, ask_latency, is_function
from apportion.evaluators.costs.latency_files import read_latency
from apportion.evaluators.costs.model import cost_tables
from apportion.search.jobs.sections import LatencyConfig
from apportion.search.space.space import SearchSpace

log = logging.getLogger(__name__)


def latency_of(config: LatencyConfig, database: LayerDatabase) -> LatencyTable:
    """The job's table; warnings say how many times were smoothed, and which levels cost what dense
    costs."""
    if is_function(config.table):
        levels = {
            name: [parse_level(text) for text in texts] for name, texts in database.levels().items()
        }
        table = ask_latency(config.table, levels)
    else:
        table = read_latency(config.table)
    if config.clean:
        table = table.cleaned()
        if table.moved:
            log.warning("%s: %d noisy times were smoothed", table.source, table.moved)
    unknown = {
        level
        for name, levels in database.levels().items()
        for level in table.unknown(name, map(parse_level, levels))
    }
    if unknown:
        log.warning(
            "%s: no times of %s; they cost what dense costs",
            table.source,
            ", ".join(sorted(map(str, unknown))),
        )
    return table


def make_space(
    budgets: Sequence[Budget],
    model: nn.Module,
    database: LayerDatabase,
    latency: LatencyTable | None = None,
) -> SearchSpace:
    """The search space of a database: its levels, the costs of every metric, the budgets, and the
    normalised layer errors as additive errors."""
    tables = cost_tables(model, database, latency)
    return SearchSpace(
        layers=tuple(database.layers),
        levels=tuple(tuple(levels) for levels in database.levels().values()),
        costs={metric: table.levels for metric, table in tables.items()},
        base={metric: table.base for metric, table in tables.items()},
        dense={metric: table.dense for metric, table in tables.items()},
        budgets={budget.metric: budget.bound(tables[budget.metric].dense) for budget in budgets},
        errors=tuple(
            np.array([e.normalized_error for e in r.entries]) for r in database.layers.values()
        ),
    )


def channel_space(
    budgets: Sequence[Budget], model: nn.Module, database: ChannelDatabase
) -> SearchSpace:
    """The search space of channel levels: its decisions, whose costs couple in pairs. Raises
    BudgetError for a metric that they have no costs of."""
    tables = channel_tables(model, database)
    decisions = database.decisions.values()
    for budget in budgets:
        if budget.metric not in tables:
            raise BudgetError(
                budget.metric, f"channel levels have no costs of it; valid: {', '.join(tables)}"
            )
    return SearchSpace(
        layers=tuple(database.decisions),
        levels=tuple(decision.levels for decision in decisions),
        costs={metric: tuple(table.single) for metric, table in tables.items()},
        base={metric: table.base for metric, table in tables.items()},
        dense={metric: table.dense for metric, table in tables.items()},
        budgets={budget.metric: budget.bound(tables[budget.metric].dense) for budget in budgets},
        errors=tuple(np.array(decision.errors) for decision in decisions),
        pairs={metric: table.pairs for metric, table in tables.items()},
    )
