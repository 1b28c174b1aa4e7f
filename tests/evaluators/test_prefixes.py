"""Models that are run from their cuts: by their graph, between their blocks, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apportion.evaluators.data import trees
from apportion.evaluators.scoring.block_cuts import BlockCuts
from apportion.evaluators.scoring.prefixes import Prefixes
from apportion.evaluators.scoring.segments import Segments
from apportion.evaluators.tasks.task import Task
from tests.tagging import Tagging

WIDTH = 6


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.runs = nn.Linear(WIDTH, WIDTH), 0

    def forward(self, x: Tensor, mask: Tensor | None = None, **_: Any) -> tuple[Tensor]:
        self.runs += 1
        x = x + self.inner(x).tanh()
        return (x if mask is None else x * mask[..., None],)


class Stack(nn.Module):
    """As transformers are written: keywords in, blocks in a list, tuples between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(40, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.scale = nn.Parameter(torch.rand(WIDTH, WIDTH))
        self.tags = nn.Linear(WIDTH, 5)

    def forward(self, *, input_ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        x = self.words(input_ids)
        if not mask.any():
            raise ValueError("nothing is there")  # what a trace cannot follow
        for block in self.blocks:
            (x,) = block(x, mask=mask)
        return {"tags": self.tags(x @ self.scale)}


class Shortcut(Stack):
    """The first block's output is used again at the end: no chain."""

    def forward(self, *, input_ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        seen = []
        x = self.words(input_ids)
        for block in self.blocks:
            (x,) = block(x, mask=mask)
            seen.append(x)
        return {"tags": self.tags(x + seen[0])}


class Twice(Stack):
    """Its blocks run twice over."""

    def forward(self, *, input_ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        x = self.words(input_ids)
        for block in [*self.blocks, *self.blocks]:
            (x,) = block(x, mask=mask)
        return {"tags": self.tags(x)}


class OwnForward(Tagging):
    """A task that calls the model by itself."""

    def forward(self, model: Callable[..., Any], batch: dict[str, Tensor]) -> Any:
        return model(input_ids=batch["input_ids"], mask=batch["mask"])


def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "input_ids": torch.randint(0, 40, (3, 7), generator=generator),
            "mask": torch.ones(3, 7),
            "wanted": torch.zeros(3, 7, dtype=torch.int64),
        }
        for _ in range(2)
    ]


def layers(model: nn.Module) -> dict[str, list[Tensor]]:
    return {name: [parameter] for name, parameter in model.named_parameters()}


def prefixes(model: nn.Module, task: Task, limit: int = 1 << 30) -> Prefixes:
    return Prefixes(model.eval(), layers(model), task, batches(), limit)


@pytest.mark.parametrize("task", [Tagging(), OwnForward()])
def test_a_block_is_run_again_only_behind_a_change(task: Task) -> None:
    model = Stack()
    own = prefixes(model, task)
    assert isinstance(own._cuts, BlockCuts)
    names = list(layers(model))
    parts = [
        ("words.weight", 0),
        ("blocks.0.inner.weight", 0),
        ("blocks.2.inner.bias", 2),
        ("scale", 4),
        ("tags.weight", 4),
    ]
    for name, part in parts:
        assert own._cuts.where[name] == part
    candidate = [0] * len(names)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        own.run(0, tuple(candidate))
        for name, part in [*reversed(parts), *parts]:
            parameter = model.get_parameter(name)
            parameter.add_(torch.randn(parameter.shape, generator=generator))
            candidate[names.index(name)] += 1
            before = sum(block.runs for block in model.blocks)  # type: ignore[misc]
            outputs = own.run(0, tuple(candidate))
            ran = sum(block.runs for block in model.blocks) - before  # type: ignore[misc]
            assert ran == 4 - part
            wanted = task.forward(model, batches()[0])
            assert torch.equal(outputs["tags"], wanted["tags"])


def test_blocks_are_as_they_were_in_the_end() -> None:
    model = Stack()
    own = prefixes(model, Tagging())
    own.run(0, (0,) * len(layers(model)))
    own.run(0, (0,) * len(layers(model)))
    for block in model.blocks:
        assert "forward" not in vars(block)
        assert not block._forward_hooks


@pytest.mark.parametrize("kind", [Shortcut, Twice])
def test_what_is_no_chain_runs_as_a_whole(
    kind: type[Stack], caplog: pytest.LogCaptureFixture
) -> None:
    model = kind()
    own = prefixes(model, Tagging())
    assert own._cuts.count == 1
    assert caplog.text.count("no prefix reuse") == 1
    with torch.no_grad():
        model.get_parameter("tags.weight").add_(1)
        outputs = own.run(1, (1,) * len(layers(model)))
        assert torch.equal(outputs["tags"], model(**Tagging().inputs(batches()[1]))["tags"])


def test_what_cannot_be_traced_is_cut_between_its_blocks() -> None:
    class Branching(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > -1e9 else x

    model = Branching(*(nn.Linear(WIDTH, WIDTH) for _ in range(3)))

    class Plain(Tagging):
        def inputs(self, batch: Any) -> Any:
            return batch

    data = [torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))]
    own = Prefixes(model, layers(model), Plain(), data, 1 << 30)
    assert isinstance(own._cuts, BlockCuts)
    traced = Prefixes(nn.Sequential(*model), layers(model), Plain(), data, 1 << 30)
    assert isinstance(traced._cuts, Segments)
    with torch.no_grad():
        for prefix in (own, traced):
            assert torch.equal(trees.tensors(prefix.run(0, (0,) * 6))[0], model(data[0]))


def test_no_more_is_kept_than_the_limit() -> None:
    one = 3 * 7 * WIDTH * 4  # bytes at a cut of a batch
    own = prefixes(Stack(), Tagging(), limit=2 * 2 * one)
    assert own._kept_at == {2, 4}
    assert prefixes(Stack(), Tagging(), limit=1)._kept_at == frozenset()
