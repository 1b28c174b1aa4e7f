"""What is exported: a compressed model, with what formats need to know of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from apportion.compressors.activations import InputGrid
from apportion.compressors.grids import Grid
from apportion.db.files import write_json
from apportion.db.layers.profile import Profile
from apportion.evaluators.data import trees
from apportion.evaluators.data.dataset import Batch
from apportion.evaluators.data.files import local_file
from apportion.evaluators.models.build import read_shapes
from apportion.evaluators.rewriting.onnx_codes import stretched
from apportion.evaluators.rewriting.onnx_model import Quantized
from apportion.evaluators.rewriting.reduced import reducible_layers
from apportion.evaluators.tasks.task import Inputs
from apportion.evaluators.training.held import Hold
from apportion.search.runs.pipeline import ModelProblem

SHAPES = "shapes.json"
"""Parameter or buffer -> its shape, where that is another than the model's class has."""


@dataclass
class CompressedModel:
    """`model`: stitched at `profile`, and corrected or trained since; `trained`: layer -> grid that
    training moved."""

    model: nn.Module
    problem: ModelProblem
    profile: Profile
    trained: dict[str, Grid] = field(default_factory=dict)

    def stitch(self) -> None:
        """Bring the dense model to the profile's levels."""
        self.problem.database.stitch(self.model, self.profile)

    def rewind(self, early: nn.Module) -> None:
        """Set what is left of the model back to the weights of `early`, which is as the dense
        one."""
        layers, masks = self.problem.database.layers, {}
        for name, level in self.profile.items():
            if level.sparsity is not None:
                masks[name] = layers[name].where.read(self.model) != 0
        self.model.load_state_dict(early.state_dict())
        for name, mask in masks.items():
            where = layers[name].where
            where.write(self.model, where.read(self.model).detach() * mask)

    def write_shapes(self, folder: Path) -> None:
        """The shapes of a model that is smaller than its class. Raises OutputError."""
        if shapes := self.shapes():
            write_json(folder / SHAPES, shapes)

    def shapes(self) -> dict[str, list[int]]:
        """Parameter or buffer -> its shape, where that is another than the class's; empty: none
        is."""
        before = self.problem.job.workload.shapes
        return {} if before is None else read_shapes(local_file(before))

    def fresh(self, folder: Path) -> nn.Module:  # noqa: ARG002 - for models of other shapes
        """The model that what was written to `folder` is loaded into; its weights are to be
        loaded."""
        return copy.deepcopy(self.model)

    @cached_property
    def activations(self) -> dict[str, InputGrid]:
        """Layer -> grid of its input, where the profile quantizes that: a state dict does not hold
        it."""
        database = self.problem.database
        grids = {
            name: database.entry(name, level).activation for name, level in self.profile.items()
        }
        return {name: grid for name, grid in grids.items() if grid is not None}

    def grids(self) -> dict[str, Grid]:
        """Layer -> grid of its weight, stretched as corrections stretched its rows, or as training
        left it."""
        found, database = {}, self.problem.database
        for name, level in self.profile.items():
            grid = database.grid(name, level)
            if name in self.trained:
                found[name] = self.trained[name]
            elif grid is not None:
                before, record = database.weight(name, level), database.layers[name]
                weight = record.where.read(self.model).reshape(record.shape)
                found[name] = stretched(grid, before, weight)
        return found

    def quantized(self) -> dict[str, Quantized]:
        """All names of quantized layers, those of tied weights too -> their grids. Of modules'
        weights alone: parts of parameters stay in floats."""
        made, grids = {}, self.grids()
        for name in dict.fromkeys([*grids, *self.activations]):
            record = self.problem.database.layers[name]
            grid = grids.get(name) if record.place is None else None
            for own in (name, *record.aliases):
                if grid is not None or name in self.activations:
                    made[own] = Quantized(grid, self.activations.get(name))
        return made

    def holds(self) -> dict[str, Hold]:
        """What training keeps: of all layers of the profile that are not dense."""
        grids, layers = self.grids(), self.problem.database.layers
        learn = self.problem.job.database.grid.scale == "free"
        made = {}
        for name, level in self.profile.items():
            layer = layers[name]
            weight = layer.where.read(self.model).reshape(layer.shape)
            mask = weight != 0 if level.sparsity is not None else None
            if mask is not None or name in grids:
                made[name] = Hold(mask, grids.get(name), learn, layer.place, layer.shape)
        return made

    def reduced(self) -> list[str]:
        """The layers that run in smaller shapes."""
        return reducible_layers(self.problem.database, self.profile)

    def samples(self, most: int = 256) -> Iterator[Batch]:
        """Calibration data, batch by batch."""
        workload = self.problem.workload
        some = workload.calibration.subset(range(min(most, len(workload.calibration))))
        return some.batches(min(most, workload.batch_size))

    def example(self) -> Batch:
        """Two samples: a batch of one would be taken for a constant."""
        workload = self.problem.workload
        batch = next(workload.test.batches(2))
        if workload.task.samples(batch) == 1:
            return trees.joined([batch, batch])
        # A copy: what holds a part of all test data holds them all.
        return trees.mapped(torch.clone, batch)

    def axes(self) -> tuple[str, ...]:
        """The leading dimensions of the inputs whose size may be another at every call."""
        return self.problem.workload.task.open_axes(self.example_inputs(2))

    def example_inputs(self, samples: int) -> Inputs:
        """What the model is called with for one sample or two."""
        task, batch = self.problem.workload.task, self.example()
        return task.inputs(trees.mapped(lambda tensor: tensor[:samples], batch))
