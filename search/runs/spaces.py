"""Search spaces of databases: levels, what they cost, budgets and additive errors."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from torch import nn

from apportion.compressors.errors import ConfigurationError
from apportion.compressors.levels import DENSE, parse_level
from apportion.db.channels.database import ChannelDatabase, of_layers
from apportion.db.layers.database import LayerDatabase
from apportion.evaluators.costs.budgets import Budget
from apportion.evaluators.costs.channels.files import read_channels
from apportion.evaluators.costs.channels.latency import ChannelLatency
from apportion.evaluators.costs.channels.tables import channel_tables
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


def channel_latency(config: LatencyConfig, database: ChannelDatabase) -> ChannelLatency:
    """The job's table. Raises DataError, ConfigurationError."""
    if is_function(config.table):
        raise ConfigurationError(
            "latency.table: times over channels come from a file (`apportion latency measure`)"
        )
    if any(of_layers(parse_level(n)) != DENSE for own in database.levels().values() for n in own):
        log.warning("%s: levels of layers cost what floats cost, channels apart", config.table)
    return read_channels(config.table, database.content.found, database.content.grouped.groups)


def channel_space(
    budgets: Sequence[Budget],
    model: nn.Module,
    database: ChannelDatabase,
    latency: ChannelLatency | None = None,
) -> SearchSpace:
    """The search space of channel levels: its decisions, whose costs couple in pairs."""
    tables = channel_tables(model, database, latency)
    decisions = database.decisions.values()
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
