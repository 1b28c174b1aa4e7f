"""How much the outputs of single samples move with the weights of single layers, to first order."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn

from apportion.compressors.errors import ModelError, first_line
from apportion.compressors.place import Place
from apportion.compressors.threads import full_precision, torch_threads
from apportion.evaluators.data import trees
from apportion.evaluators.data.dataset import Batch, TensorDataset
from apportion.evaluators.scoring.directions import directions, settled
from apportion.evaluators.tasks.task import Task

TOGETHER = 8
"""Samples at most whose gradients of a layer are held at once, for one matrix product with its
levels' moves ..."""
_HELD = 1 << 26
"""... and values of those, unless one sample's are more."""
_SEED = 0x5EED


@dataclass(frozen=True)
class Moved:
    """A layer, and what its levels change: `moves` float32 [levels, weights], W_level - W_dense in
    the order of its place."""

    name: str
    place: Place
    moves: Tensor


@dataclass(frozen=True)
class MoveWork:
    """What workers share. `model` is left alone; `threads`: of torch; `device`: where it computes;
    `draws`: random directions of a sample, each a backward pass, where directions are random."""

    model: nn.Module
    task: Task
    data: TensorDataset
    layers: tuple[Moved, ...]
    threads: int = 1
    device: str = "cpu"
    draws: int = 1


def squared_moves(work: MoveWork, samples: tuple[int, int]) -> list[Tensor | None]:
    """Sums over samples n of <G_n, move>^2, where G_n is the gradient of v_n . z_n of that sample
    alone with respect to the layer's weight, all of its uses together, z_n its logits and v_n a
    direction in which its divergence curves (`directions`); of several random ones the mean.

    Every sample is run alone, so that its gradients are autograd's own, whatever uses a weight.

    Args:
        work: model, data and moves.
        samples: the first of them, and the one behind the last.

    Returns:
        Per layer float64 [levels] on the CPU; None where no sample's outputs have a gradient.

    Raises:
        ModelError: the model's outputs cannot be differentiated.
    """
    device = torch.device(work.device)
    with torch_threads(work.threads), full_precision(), torch.enable_grad():
        model = copy.deepcopy(work.model).to(device).eval()
        model.requires_grad_(False)
        weights = [_parameters(model, layer.place) for layer in work.layers]
        wanted = list(dict.fromkeys(p for own in weights for p in own))
        for parameter in wanted:
            parameter.requires_grad_(True)
        sums = [_Sums(layer, device) for layer in work.layers]
        subset = work.data.subset(range(*samples))
        for number, batch in enumerate(subset.batches(1), samples[0]):
            placed, generator = (
                trees.placed(batch, device),
                torch.Generator().manual_seed(_SEED + number),
            )
            with _without_cudnn(model, device):
                for found in _gradients(model, work.task, placed, wanted, generator, work.draws):
                    gradients = dict(zip(wanted, found, strict=True))
                    for own, total in zip(weights, sums, strict=True):
                        total.add([gradients[p] for p in own])
        return [total.result() for total in sums]


def check_gradients(model: nn.Module, task: Task, data: TensorDataset) -> None:
    """Raises ModelError where outputs cannot be differentiated at all: one sample is run, before
    anything is built."""
    with torch_threads(1), torch.enable_grad():
        own = copy.deepcopy(model).eval()
        wanted = [p for p in own.parameters() if p.is_floating_point()]
        for parameter in wanted:
            parameter.requires_grad_(True)
        next(_gradients(own, task, data.subset([0]).batch, wanted, torch.Generator(), 1))


class _Sums:
    """The sums of one layer, some samples at a time."""

    def __init__(self, layer: Moved, device: torch.device) -> None:
        self._place, self._moves = layer.place, layer.moves.to(device)
        self._total = torch.zeros(len(layer.moves), dtype=torch.float64, device=device)
        self._waiting: list[Tensor] = []
        self._most = max(1, min(TOGETHER, _HELD // max(1, layer.moves.shape[1])))
        self._seen = False

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """A sample's, of each parameter that holds the weight."""
        there = [
            self._place.of(g.contiguous()).reshape(-1).float() for g in gradients if g is not None
        ]
        if there:
            self._waiting.append(torch.stack(there).sum(0) if len(there) > 1 else there[0])
            self._seen = True
        if len(self._waiting) == self._most:
            self._flush()

    def result(self) -> Tensor | None:
        self._flush()
        return self._total.cpu() if self._seen else None

    def _flush(self) -> None:
        if self._waiting:
            products = torch.stack(self._waiting) @ self._moves.T
            self._total += products.double().square().sum(0)
            self._waiting.clear()


def _parameters(model: nn.Module, place: Place) -> list[nn.Parameter]:
    """All that hold the weight: several names of one parameter count once."""
    return list(dict.fromkeys(model.get_parameter(name) for name in place.parameters))


def _gradients(
    model: nn.Module,
    task: Task,
    batch: Batch,
    wanted: Sequence[Tensor],
    generator: torch.Generator,
    draws: int,
) -> Iterator[Sequence[Tensor | None]]:
    """Of v . z for directions v of a sample's logits z, the mean of whose squares counts.

    Args:
        model: whose outputs they are.
        task: tells the logits.
        batch: a single sample.
        wanted: with respect to which parameters.
        generator: of random directions.
        draws: how many of these; one where nothing is random.

    Returns:
        For each direction, of each parameter the gradient over sqrt(draws), None where there is
        none.

    Raises:
        ModelError: there are none at all.
    """
    found = task.distributions(task.forward(model, batch), batch)
    live = [own.logits.requires_grad for own in found]
    if not any(live):
        raise ModelError(
            "errors: fisher: the model's outputs have no gradients with respect to its weights; "
            "probe needs none"
        )
    draws = 1 if settled(found) else draws
    for left in reversed(range(draws)):
        vectors = [v / draws**0.5 for v in directions(found, generator)]
        try:
            yield torch.autograd.grad(
                [own.logits for own in compress(found, live)],
                wanted,
                list(compress(vectors, live)),
                retain_graph=left > 0,
                allow_unused=True,
            )
        except (RuntimeError, NotImplementedError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ModelError(
                "errors: fisher: the model's outputs cannot be differentiated "
                f"({first_line(error)}); probe needs no gradients"
            ) from error


def _without_cudnn(model: nn.Module, device: torch.device) -> AbstractContextManager[Any]:
    """cuDNN differentiates recurrent layers in training mode alone."""
    if device.type == "cuda" and any(isinstance(m, nn.RNNBase) for m in model.modules()):
        return torch.backends.cudnn.flags(enabled=False)
    return nullcontext()
