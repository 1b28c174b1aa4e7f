"""Models at levels of channel groups: physically smaller, with the weights of a database."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from apportion.compressors.activations import quantize_input
from apportion.compressors.grids import Grid
from apportion.compressors.groups.ladder import compensated
from apportion.compressors.layers import from_matrix, to_matrix
from apportion.compressors.levels import Level
from apportion.db.channels.database import ChannelDatabase
from apportion.evaluators.rewriting.compensate import shifted
from apportion.evaluators.rewriting.narrow import narrowed

_BYTES = 1 << 30
"""Of solved weights that are kept."""


class Smaller:
    """Makes copies of `model` (on the CPU, left as it is) at any profile of `database`, whose names
    are those of its decisions."""

    def __init__(self, model: nn.Module, database: ChannelDatabase) -> None:
        self._model, self._database = model, database
        self._dense = {
            name: to_matrix(spec.where.read(model).detach(), spec)
            for name, spec in database.content.layers.items()
            if name in database.content.means
        }
        self._solved: OrderedDict[tuple[str, bytes], tuple[Tensor, Tensor]] = OrderedDict()

    def __call__(self, profile: Mapping[str, Level]) -> nn.Module:
        """In eval mode; inputs that a level quantizes are quantized by hooks. Raises
        DatabaseCorruptError."""
        database, content = self._database, self._database.content
        kept = database.kept(profile)
        made = copy.deepcopy(self._model)
        for name in database.decided:
            own, level = database.level_of(name, profile)
            spec, left = content.layers[name], torch.from_numpy(database.columns(name, kept))
            if level.is_dense and bool(left.all()):
                continue
            weight = torch.zeros(spec.rows, spec.columns)
            if own != 0:
                narrow = database.weight(name, profile).movedim(1, -1).reshape(spec.rows, -1)
                split = spec.rows // spec.groups
                parts = zip(weight.split(split), narrow.split(split), left, strict=True)
                for rows, values, columns in parts:
                    rows[:, columns] = values
            spec.where.write(made, from_matrix(weight, spec))
            if own is not None:
                self._shift(made, name, weight)
        for name in content.hinv:
            if (gone := ~database.columns(name, kept)).any():
                weight, shift = self._solve(name, gone)
                spec = content.layers[name]
                spec.where.write(made, from_matrix(weight, spec))
                shifted(made, content.grouped, name, shift)
        made = narrowed(made, content.grouped.groups, kept).eval()
        modules = dict(made.named_modules(remove_duplicate=False))
        for name in database.decided:
            spec = content.layers[name]
            for own_name in (name, *spec.aliases):
                if own_name in modules:
                    quantize_input(modules[own_name], database.activation(name, profile))
        return made

    def grids(self, profile: Mapping[str, Level]) -> dict[str, Grid]:
        """Layer -> grid of its quantized weight, for the rows that stay, where any do."""
        database = self._database
        kept, made = database.kept(profile), {}
        for name in database.decided:
            if (grid := database.grid(name, profile)) is None:
                continue
            stays = torch.from_numpy(self._rows(name, kept))
            if not stays.any():
                continue
            made[name] = grid.rows(stays)
        return made

    def _rows(self, layer: str, kept: Mapping[str, np.ndarray]) -> np.ndarray:
        stays = np.ones(self._database.content.layers[layer].rows, bool)
        for group in self._database.content.grouped.groups:
            if (channel := group.makers.get(layer)) is not None:
                stays &= (channel < 0) | kept[group.name][channel]
        return stays

    def _shift(self, made: nn.Module, layer: str, weight: Tensor) -> None:
        """What its outputs lack on average."""
        content = self._database.content
        mean, spec = content.means[layer], content.layers[layer]
        lost = (self._dense[layer] - weight).double().reshape(spec.groups, -1, spec.columns)
        shifted(made, content.grouped, layer, (lost @ mean[:, :, None]).reshape(-1))

    def _solve(self, layer: str, gone: np.ndarray) -> tuple[Tensor, Tensor]:
        key = (layer, gone.tobytes())
        if key in self._solved:
            self._solved.move_to_end(key)
            return self._solved[key]
        weight, shift = compensated(self._database.reader(layer, self._dense[layer]), gone)
        self._solved[key] = weight.float(), shift
        taken = sum(own.numel() * own.element_size() for own, _ in self._solved.values())
        while taken > _BYTES and len(self._solved) > 1:
            _, (dropped, _) = self._solved.popitem(last=False)
            taken -= dropped.numel() * dropped.element_size()
        return self._solved[key]
