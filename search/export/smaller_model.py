"""What is exported of channel levels: a smaller model of the user's own class."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import nn

from apportion.compressors.activations import InputGrid, quantize_input
from apportion.compressors.errors import ModelError
from apportion.compressors.grids import Grid
from apportion.compressors.kinds.find import find_layers
from apportion.db.channels.database import ChannelDatabase
from apportion.db.files import write_atomically, write_json
from apportion.evaluators.costs.channels.tables import counts
from apportion.evaluators.models.resizing import resize
from apportion.evaluators.rewriting.narrow import changed_shapes, narrowed
from apportion.evaluators.rewriting.onnx_model import Quantized
from apportion.evaluators.rewriting.smaller import Smaller
from apportion.evaluators.training.held import Hold
from apportion.search.export.compressed_model import SHAPES, CompressedModel

EARLY = "rewind.safetensors"
"""The weights that the model was set back to, for a next job."""


@dataclass
class SmallerModel(CompressedModel):
    """`model`: dense until it is stitched, then smaller. `early`: what it was set back to."""

    early: nn.Module | None = None

    @cached_property
    def _channels(self) -> ChannelDatabase:
        assert self.problem.channels is not None
        return self.problem.channels

    @cached_property
    def _smaller(self) -> Smaller:
        return Smaller(self.problem.workload.model, self._channels)

    def stitch(self) -> None:
        """Raises ModelError where the model is not of the size that was counted."""
        self.model = self._smaller(self.profile)
        self._check()

    def _check(self) -> None:
        workload = self.problem.workload
        elements, products = counts(workload.model, self._channels, self.profile)
        there, macs = sum(p.numel() for p in self.model.parameters()), 0
        if products:  # none: nothing is left that could be found
            found = find_layers(self.model, workload.traced_pass())
            macs = sum(found.macs.values()) + found.base
        if (there, macs) != (elements, products):
            raise ModelError(
                f"the smaller model has {there} parameters and {macs} multiply-accumulates, "
                f"{elements:.0f} and {products:.0f} were counted: please report it"
            )

    def rewind(self, early: nn.Module) -> None:
        database = self._channels
        kept = database.kept(self.profile)
        self.early = narrowed(early, database.content.grouped.groups, kept)
        masks = {name: hold.mask for name, hold in self.holds().items()}
        self.model.load_state_dict(self.early.state_dict())
        for name, mask in masks.items():
            if mask is not None:
                weight: Any = self.model.get_submodule(name).weight
                weight.detach().mul_(mask)

    def shapes(self) -> dict[str, list[int]]:
        return {**super().shapes(), **changed_shapes(self.problem.workload.model, self.model)}

    def write_shapes(self, folder: Path) -> None:
        write_json(folder / SHAPES, self.shapes())
        if self.early is not None:
            early, marks = self.early, {"format": "pt"}
            write_atomically(folder / EARLY, lambda path: save_model(early, str(path), marks))

    def fresh(self, folder: Path) -> nn.Module:
        model = copy.deepcopy(self.problem.workload.model)
        resize(model, json.loads((folder / SHAPES).read_text(encoding="utf-8")))
        for name, what in self.quantized().items():
            quantize_input(model.get_submodule(name), what.activation)
        return model

    @cached_property
    def activations(self) -> dict[str, InputGrid]:
        found = {
            name: self._channels.activation(name, self.profile) for name in self._channels.decided
        }
        return {name: grid for name, grid in found.items() if grid is not None}

    def grids(self) -> dict[str, Grid]:
        return {**self._smaller.grids(self.profile), **self.trained}

    def quantized(self) -> dict[str, Quantized]:
        grids = self.grids()
        return {
            own: Quantized(grids.get(name), self.activations.get(name))
            for name in dict.fromkeys([*grids, *self.activations])
            for own in (name, *self._channels.content.layers[name].aliases)
        }

    def holds(self) -> dict[str, Hold]:
        grids, learn = self.grids(), self.problem.job.database.grid.scale == "free"
        made = {}
        for name in self._channels.decided:
            _, level = self._channels.level_of(name, self.profile)
            weight = self.model.get_submodule(name).weight
            mask = weight != 0 if level.sparsity and isinstance(weight, torch.Tensor) else None
            if mask is not None or name in grids:
                made[name] = Hold(mask, grids.get(name), learn)
        return made

    def reduced(self) -> list[str]:
        return []  # all of it is
