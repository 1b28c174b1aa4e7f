"""Recovery: training after stitching that wins back what it cost, with every mask and grid held
(evaluators/training/held.py).

lintune    biases and normalisations alone, on the calibration data, so that the model's outputs
           come near the dense model's (the published code of Frantar & Alistarh 2022); no labels,
           and weights stay as they are
adaprune   all layers tuned together on the calibration data so that every compressed layer's
           outputs come near the dense model's (global AdaPrune: Frantar & Alistarh 2022, "SPDY",
           section 3.3); no labels
finetune   training on the training data, with the dense model as teacher (Hinton et al. 2015)
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apportion.compressors.errors import ConfigurationError
from apportion.compressors.grids import Grid
from apportion.compressors.layers import hooked
from apportion.compressors.progress import Progress, silent
from apportion.db.layers.database import LayerDatabase
from apportion.evaluators.data import trees
from apportion.evaluators.data.augment import AugmentConfig
from apportion.evaluators.data.dataset import Batch, Dataset
from apportion.evaluators.models.build import load_weights
from apportion.evaluators.tasks.task import Task
from apportion.evaluators.training.checkpoints import Checkpoints, TrainingState
from apportion.evaluators.training.config import (
    AdaPruneConfig,
    FinetuneConfig,
    LintuneConfig,
    RecoveryConfig,
)
from apportion.evaluators.training.held import Hold, held, owner
from apportion.evaluators.workloads.workload import Workload

log = logging.getLogger(__name__)


def check_recovery(workload: Workload, config: RecoveryConfig) -> None:
    """Whether the workload's task has what the training asks of it, tried on two samples: a search
    comes first. Raises ConfigurationError; WeightsError and ModelError for early weights that are
    not the model's."""
    if config.rewind is not None:
        early_weights(workload.model, config.rewind)
    if config.finetune is None:
        return
    task, finetune = workload.task, config.finetune
    batch = workload.calibration.subset(range(min(2, len(workload.calibration)))).batch
    if finetune.augment is not None:
        task.augment(batch, finetune.augment, torch.Generator().manual_seed(0))
    with torch.no_grad():
        task.supervise(task.forward(workload.model, batch), batch, finetune.smoothing)


def early_weights(model: nn.Module, path: Path) -> nn.Module:
    """A copy of `model` with the weights of a file. Raises WeightsError, ModelError."""
    early = copy.deepcopy(model)
    load_weights(early, path)
    return early


def check_held(model: nn.Module, database: LayerDatabase, config: RecoveryConfig) -> None:
    """Raises ConfigurationError where training would have to hold a layer of a recurrent module:
    that keeps references to its parameters, and does not see what stands in for them."""
    if config.adaprune is None and config.finetune is None:
        return
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, record in database.layers.items():
        own = modules.get(owner(name, record.place))
        if isinstance(own, nn.RNNBase) and len(record.entries) > 1:
            raise ConfigurationError(
                f"recovery: adaprune and finetune cannot hold layer {name!r}, as it is a part of a "
                f"{type(own).__name__}; keep it dense (layers.skip), or leave them out"
            )


@dataclass(frozen=True)
class Team:
    """The processes that share each batch: this one's number, how many there are, and what makes a
    model's gradients those of the whole batch."""

    rank: int = 0
    size: int = 1
    join: Callable[[nn.Module], nn.Module] = lambda model: model


@dataclass
class Recovery:
    """Training of one compressed `model` towards the `dense` one; `what` holds its layers, `task`
    says how batches are fed and what outputs are worth. All chance comes from `seed`. After each
    epoch the state is kept in `checkpoints`: a training of the same `key`, begun again, goes on
    there."""

    task: Task
    model: nn.Module
    dense: nn.Module
    what: Mapping[str, Hold]
    batch_size: int
    seed: int
    checkpoints: Checkpoints
    key: str
    progress: Progress = silent
    device: str = "cpu"
    team: Team = Team()

    def lintune(self, data: Dataset, config: LintuneConfig) -> None:
        """Minimise the task's distance of the outputs from the dense model's (the mean squared
        difference), over the parameters of one dimension. Normalisations keep their statistics.
        Raises ModelError, OutputError."""

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            with torch.no_grad():
                wanted = self.task.forward(self.dense, batch)
            return self.task.distance(self.task.forward(model, batch), wanted, batch)

        def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
            return torch.optim.Adam(parameters, config.learning_rate)

        if any(map(_is_vector, self.model.parameters())):
            self._train("lintune", data, config.epochs, loss, optimizer, {}, trained=_is_vector)

    def adaprune(self, data: Dataset, config: AdaPruneConfig) -> dict[str, Grid]:
        """Minimise the sum over the modules that have held layers of |y - y_dense|^2 /
        |y_dense|^2. Gives the grids that quantized layers lie on then. Normalisations keep their
        statistics. Raises ModelError, OutputError."""
        if not self.what:
            return {}
        owners = {owner(name, hold.place) for name, hold in self.what.items()}

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            with torch.no_grad(), _outputs(self.dense, owners) as wanted:
                self.task.forward(self.dense, batch)
            with _outputs(self.model, owners) as found:
                self.task.forward(model, batch)
            return torch.stack(
                [
                    F.mse_loss(found[n], y) / y.square().mean().clamp(min=1e-12)
                    for n, y in wanted.items()
                    # experts may be given other tokens, or none
                    if y.numel() and n in found and found[n].shape == y.shape
                ]
            ).sum()

        def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
            return torch.optim.Adam(parameters, config.learning_rate)

        return self._train("adaprune", data, config.epochs, loss, optimizer, self.what)

    def finetune(self, data: Dataset, config: FinetuneConfig) -> dict[str, Grid]:
        """Minimise teacher x the task's distillation (of classifiers KL(dense || model) T^2) +
        (1 - teacher) x its loss on the labels (cross-entropy); normalisations learn their
        statistics along. Gives the grids that quantized layers lie on then. Raises ModelError,
        OutputError."""

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            with torch.no_grad():
                wanted = self.task.forward(self.dense, batch)
            outputs = self.task.forward(model, batch)
            distilled = self.task.distill(outputs, wanted, batch, config.temperature)
            labelled = self.task.supervise(outputs, batch, config.smoothing)
            return config.teacher * distilled + (1 - config.teacher) * labelled

        def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
            return torch.optim.SGD(
                parameters,
                config.learning_rate,
                momentum=0.9,
                nesterov=True,
                weight_decay=config.weight_decay,
            )

        self.model.train()
        try:
            return self._train(
                "finetune",
                data,
                config.epochs,
                loss,
                optimizer,
                self.what,
                warmup=config.warmup,
                ema=config.ema,
                crops=config.augment,
            )
        finally:
            self.model.eval()

    def _train(
        self,
        name: str,
        data: Dataset,
        epochs: int,
        loss: Callable[[nn.Module, Batch], Tensor],
        make: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        what: Mapping[str, Hold],
        *,
        warmup: float = 0.0,
        ema: float = 0.0,
        crops: AugmentConfig | None = None,
        trained: Callable[[nn.Parameter], bool] = lambda _: True,
    ) -> dict[str, Grid]:
        model, rank, size = self.model.to(self.device), self.team.rank, self.batch_size
        self.dense.to(self.device)
        for parameter in model.parameters():
            parameter.requires_grad_(trained(parameter))
        with held(model, what) as grids:
            joined = self.team.join(model)
            parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
            optimizer = make(parameters)
            each = max(1, len(data) // size)  # whole batches: statistics of a few samples mislead
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _course(each * epochs, warmup))
            average = [parameter.detach().clone() for parameter in parameters] if ema else []
            state = TrainingState(self.key, model, optimizer, schedule, average)
            for epoch in range(state.restore(self.checkpoints.read(name), name), epochs):
                first = 1_000_003 * self.seed + epoch
                generator = torch.Generator().manual_seed(first)
                order = torch.randperm(len(data), generator=generator).tolist()
                if rank:
                    generator.manual_seed(first + 7_919 * rank)  # crops of its own
                for step in range(each):
                    batch = data.subset(
                        order[step * size : (step + 1) * size][rank :: self.team.size]
                    ).batch
                    if crops:
                        batch = self.task.augment(batch, crops, generator)
                    optimizer.zero_grad(set_to_none=True)
                    loss(joined, trees.placed(batch, self.device)).backward()
                    optimizer.step()
                    schedule.step()
                    with torch.no_grad():
                        for mean, parameter in zip(average, parameters, strict=False):
                            mean.lerp_(parameter, 1 - ema)
                    self.progress(name, epoch * each + step + 1, epochs * each)
                self.checkpoints.write(name, state.content(epoch + 1))
            with torch.no_grad():
                for mean, parameter in zip(average, parameters, strict=False):
                    parameter.copy_(mean)
        model.cpu()
        return grids


def _course(steps: int, warmup: float) -> Callable[[int], float]:
    """Step -> share of the learning rate: a line up, then a cosine down."""
    rising = int(warmup * steps)

    def share(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    return share


def _is_vector(parameter: nn.Parameter) -> bool:
    """Of a bias or a normalisation."""
    return parameter.dim() == 1


def teacher_of(model: nn.Module) -> nn.Module:
    """A copy of the dense model that is only asked."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@contextmanager
def _outputs(model: nn.Module, names: Collection[str]) -> Iterator[dict[str, Tensor]]:
    """Inside, collects the outputs of the modules named; the first where one gives several."""
    found: dict[str, Tensor] = {}
    with hooked() as handles:
        for name, module in model.named_modules():
            if name in names:
                handles.append(module.register_forward_hook(partial(_keep, found, name)))
        yield found


def _keep(
    found: dict[str, Tensor], name: str, _module: nn.Module, _inputs: object, output: Any
) -> None:
    found[name] = trees.tensors(output)[0]
