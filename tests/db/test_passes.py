"""Hessians block by block: the same database as by passes of the whole model, to the bit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from apportion.compressors import stages
from apportion.compressors.calibration import Calibration, FullPass, over
from apportion.compressors.errors import OutputError
from apportion.compressors.kept import Kept
from apportion.compressors.kinds.find import find_layers
from apportion.compressors.levels import expand_levels
from apportion.db.layers import passes
from apportion.db.layers.build import build_database
from apportion.db.layers.database import LayerDatabase
from apportion.db.layers.passes import Passes
from tests import language

WIDTH = 6


def tokens(*shapes: tuple[int, int], padded: bool = True) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for samples, length in shapes:
        ids = torch.randint(1, language.VOCABULARY, (samples, length), generator=generator)
        mask = torch.ones_like(ids)
        if padded:
            mask[0, length // 2 :] = 0
        made.append({"input_ids": ids, "attention_mask": mask})
    return made


def vit() -> nn.Module:
    size: dict[str, Any] = {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 10}
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.3,
        **size,
    )
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(config).eval()


def vision_transformer() -> nn.Module:
    """torchvision's, whose attention's weights are parts of one parameter: traced."""
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(8, 4, 3, 2, 16, 32, num_classes=5).eval()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.runs = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), 0

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, None]:
        self.runs += 1
        x += self.outer(self.inner(x).tanh())  # which writes into what it was given
        return x * mask[..., None], None


class Stack(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        blocks = [Block() for _ in range(4)]
        if tied:
            blocks[2].inner.weight = blocks[0].inner.weight
        self.words = nn.Embedding(20, WIDTH)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.words(input_ids % 20)
        for block in self.blocks:
            x, _ = block(x, attention_mask)
        return self.head(x)

    @property
    def runs(self) -> list[int]:
        return [block.runs for block in self.blocks if isinstance(block, Block)]


class Shortcut(Stack):
    """The first block's output is used again at the end: no chain."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x, start = self.words(input_ids % 20), None
        for block in self.blocks:
            x, _ = block(x, attention_mask)
            start = x.clone() if start is None else start
        return self.head(x + start)


def twice() -> nn.Module:
    """One block is called twice."""
    model = Stack()
    model.blocks[3] = model.blocks[1]
    return model.eval()


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"a": nn.Linear(WIDTH, 4)})["a"].eval()


def images(channels: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, channels, 8, 8, generator=generator) for n in (3, 2)]


def stack() -> list[dict[str, Tensor]]:
    return tokens((3, 7), (2, 9), (2, 7))


def build(
    path: Path,
    model: nn.Module,
    data: Calibration,
    levels: tuple[str, ...] = ("dense", "unstr-0.50", "w4a8"),
    **more: Any,
) -> LayerDatabase:
    found = find_layers(model, data)
    for block in getattr(model, "blocks", []):
        block.runs = 0
    more |= {"model_fingerprint": "m", "calibration_fingerprint": "c"}
    return build_database(path, model, found, data, expand_levels(levels), **more)


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def by_whole_passes(monkeypatch: pytest.MonkeyPatch, path: Path, *args: Any) -> dict[str, bytes]:
    with monkeypatch.context() as context:
        context.setattr(Passes, "_chain", lambda *_: None)
        build(path, *args)
    return contents(path)


@pytest.fixture
def titles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What each pass over a part of a model ran."""
    seen: list[str] = []
    own = stages.StagePass._title

    def title(self: stages.StagePass) -> str:
        seen.append(own(self))
        return seen[-1]

    monkeypatch.setattr(stages.StagePass, "_title", title)
    return seen


@dataclass(frozen=True)
class Case:
    """`width`: of the blocks' inputs; `outside`: whether there are layers outside of the blocks
    (a head that is the embedding stays dense)."""

    make: Callable[[], nn.Module]
    batches: Callable[[], list[Any]]
    blocks: int
    width: int
    outside: bool = True
    on_disk: bool = False


CHAINS = {
    "llama": Case(language.llama, stack, 2, 32, outside=False),
    "llama on disk": Case(language.llama, stack, 2, 32, outside=False, on_disk=True),
    "mixtral": Case(language.mixture, stack, 2, 32),
    "bert": Case(language.masked, stack, 2, 32),
    "gpt2": Case(language.causal, stack, 2, 32, outside=False),
    "vit": Case(vit, lambda: images(1), 3, 16),
    "torchvision's vit": Case(vision_transformer, lambda: images(3), 3, 16),
    "stack": Case(lambda: Stack().eval(), stack, 4, WIDTH),
    "stack on disk": Case(lambda: Stack().eval(), stack, 4, WIDTH, on_disk=True),
    "tied": Case(lambda: Stack(tied=True).eval(), stack, 4, WIDTH),
}


@pytest.mark.parametrize("name", CHAINS)
def test_databases_are_those_of_whole_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, titles: list[str], name: str
) -> None:
    case = CHAINS[name]
    model, data = case.make(), over(*case.batches())
    levels = ("dense", "w4a8") if name == "mixtral" else ("dense", "unstr-0.50", "w4a8")
    monkeypatch.setattr(passes, "HESSIAN_BYTES", 2 * 8 * case.width**2)
    monkeypatch.setattr(passes, "INPUT_BYTES", 100 * case.width if case.on_disk else 1 << 30)
    wanted = by_whole_passes(monkeypatch, tmp_path / "whole", model, data, levels)
    assert not titles
    written: list[Path] = []
    own = Kept._written

    def write(self: Kept, *args: Any) -> Path:
        written.append(own(self, *args))
        return written[-1]

    monkeypatch.setattr(Kept, "_written", write)
    build(tmp_path / "blocks", model, data, levels)
    assert contents(tmp_path / "blocks") == wanted
    assert f"block {case.blocks} of {case.blocks}" in titles
    assert ("outside of the blocks" in titles) is case.outside
    assert bool(written) is case.on_disk
    assert not (tmp_path / "blocks" / "inputs").exists()


@pytest.mark.parametrize("make", [Shortcut, twice, plain])
def test_other_models_run_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, titles: list[str], make: Any
) -> None:
    model = make().eval()
    data = over(torch.randn(4, WIDTH)) if make is plain else over(*stack())
    monkeypatch.setattr(passes, "HESSIAN_BYTES", 8 * WIDTH * WIDTH)
    wanted = by_whole_passes(monkeypatch, tmp_path / "whole", model, data)
    build(tmp_path / "blocks", model, data)
    assert contents(tmp_path / "blocks") == wanted
    tried = [title for title in titles if title != "outside of the blocks"]
    assert len(tried) == (4 if make is Shortcut else 0)  # the first batch, to find out


def test_a_block_runs_once_for_each_group_of_its_own_hessians(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With whole passes, every block ran for every group of the whole model."""
    model, data = Stack().eval(), over(*stack())
    runs = []
    for held in (1, 2):
        monkeypatch.setattr(passes, "HESSIAN_BYTES", held * 8 * WIDTH * WIDTH)
        build(tmp_path / str(held), model, data, ("dense", "w4"))
        runs.append(model.runs)
    # Three batches each; the first one four times more: to find the blocks, to try them, and
    # twice for the inputs of what stands outside of them (in a traced pass, and a plain one).
    assert runs == [[2 * 3 + 4] * 4, [3 + 4] * 4]
    with monkeypatch.context() as context:
        context.setattr(Passes, "_chain", lambda *_: None)
        build(tmp_path / "whole", model, data, ("dense", "w4"))
    assert model.runs == [(1 + 5) * 3] * 4  # the embedding, and nine layers in groups of two


class Stop(Exception):
    pass


def test_a_stopped_build_goes_on_behind_the_blocks_that_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, titles: list[str]
) -> None:
    model, data = Stack().eval(), over(*stack())
    monkeypatch.setattr(passes, "HESSIAN_BYTES", 2 * 8 * WIDTH * WIDTH)
    monkeypatch.setattr(passes, "INPUT_BYTES", 0)
    wanted = by_whole_passes(monkeypatch, tmp_path / "whole", model, data)

    def stop(what: str, done: int, _total: int) -> None:
        if what == "compress" and done == 5:
            raise Stop

    with pytest.raises(Stop):
        build(tmp_path / "stopped", model, data, progress=stop)
    assert not (tmp_path / "stopped" / "inputs").exists()
    (tmp_path / "stopped" / "inputs").mkdir()  # as a killed process leaves it
    (tmp_path / "stopped" / "inputs" / "0.pt").write_bytes(b"half")
    titles.clear()
    build(tmp_path / "stopped", model, data)
    assert contents(tmp_path / "stopped") == wanted
    passed = [title for title in titles[4:] if title.startswith("block")]
    # Up to the third block in one go; then its second layer, and both of the last block; grids
    # of inputs before Hessians.
    assert passed == [f"block {n} of 4" for n in (2, 3, 3, 4, 4)]


def test_data_that_are_drawn_anew_are_the_same_in_every_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batches() -> Iterator[tuple[dict[str, Tensor], int]]:
        generator = torch.Generator().manual_seed(3)
        for batch in stack():
            changed = batch["input_ids"] + torch.randint(0, 9, (1, 1), generator=generator)
            yield {**batch, "input_ids": changed}, 5

    def forward(model: nn.Module, piece: tuple[dict[str, Tensor], int]) -> Tensor:
        made: Tensor = model(**piece[0])
        return made

    data = FullPass(batches, lambda piece: piece[1], forward)
    monkeypatch.setattr(passes, "HESSIAN_BYTES", 8 * WIDTH * WIDTH)
    wanted = by_whole_passes(monkeypatch, tmp_path / "whole", Stack().eval(), data)
    build(tmp_path / "blocks", Stack().eval(), data)
    assert contents(tmp_path / "blocks") == wanted


class Early(Stack):
    """Ends at once where a batch has few samples, as the first one has not."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if len(input_ids) > 2:
            return super().forward(input_ids, attention_mask)
        return self.head(self.words(input_ids % 20))


def test_a_later_batch_that_runs_otherwise_brings_whole_passes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, data = Early().eval(), over(*stack())
    monkeypatch.setattr(passes, "HESSIAN_BYTES", 2 * 8 * WIDTH * WIDTH)
    wanted = by_whole_passes(monkeypatch, tmp_path / "whole", model, data)
    with caplog.at_level(logging.WARNING):
        build(tmp_path / "blocks", model, data)
    assert contents(tmp_path / "blocks") == wanted
    assert "a batch does not come to block 1" in caplog.text


def test_a_disk_that_takes_nothing_is_told(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "lacking" / "inputs", 10)
    kept.put(0, (torch.ones(2), None))
    with pytest.raises(OutputError, match="lacking"):
        kept.put(1, torch.ones(2))


def test_copies_are_kept_as_they_were_laid_out(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "inputs", 100)
    for number in range(3):  # the last two on disk
        kept.put(number, {"x": torch.full((3, 5), float(number)).T, "n": 3})
    assert kept.in_memory == 60
    for number in (0, 2):
        for _ in range(2):
            found = kept.get(number)
            assert found["x"].stride() == (1, 5)
            assert found["n"] == 3
            assert (found["x"].add_(1) == number + 1).all()  # of a copy
    kept.close()
    assert not (tmp_path / "inputs").exists()
