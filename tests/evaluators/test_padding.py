"""Padding is left out of all that is measured inside a model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apportion.compressors.activations import calibrate_activations
from apportion.compressors.calibration import over
from apportion.compressors.corrections import correct, record
from apportion.compressors.hessian import collect_hessians
from apportion.compressors.kinds.find import find_layers
from apportion.evaluators.data.dataset import TensorDataset
from apportion.evaluators.data.padding import by_length
from apportion.evaluators.tasks.task import Inputs
from apportion.evaluators.workloads.workload import Workload
from tests.tagging import Tagging

WIDTH, LENGTH = 8, 7


class Sentences(Tagging):
    def inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return batch

    def unpadded(self, inputs: dict[str, Tensor]) -> list[Inputs]:
        return [*by_length(inputs, inputs["mask"])]


class Attending(nn.Module):
    """A module's weight, a bare parameter and two experts, behind attention that masks padding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(20, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2)  # positions first
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.bare = nn.Parameter(torch.randn(WIDTH, WIDTH) / 3)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, 3) for _ in range(2))

    def forward(self, *, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids).transpose(0, 1)
        x = x + self.attention(x, x, x, key_padding_mask=mask == 0)[0]
        x = F.linear(self.inner(x).relu(), self.bare).transpose(0, 1)
        chosen = x[..., 0] > 0
        out = x.new_zeros(*x.shape[:2], 3)
        for number, expert in enumerate(self.experts):
            here = chosen == bool(number)
            out[here] = expert(x[here])
        return out


def workload(padding: int) -> Workload:
    """Sixteen sentences of one to seven words; `padding` is the word that fills them up."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, LENGTH + 1, (16, 1), generator=generator)
    mask = (torch.arange(LENGTH) < lengths).long()
    ids = torch.randint(1, 20, (16, LENGTH), generator=generator)
    data = TensorDataset({"ids": torch.where(mask == 1, ids, padding), "mask": mask})
    return Workload(Attending().eval(), data, data, data, batch_size=5, task=Sentences())


def test_hessians_and_grids_are_those_of_the_samples_one_by_one() -> None:
    own = workload(padding=3)
    batches = own.unpadded_pass(lambda: own.calibration.batches(5))
    layers = find_layers(own.model, over(own.calibration.batch)).layers
    assert {layer.name for layer in layers} >= {"inner", "bare", "experts.0", "attention.in_proj.q"}
    alone = over(
        *(
            {name: tensor[i : i + 1, : int(mask.sum())] for name, tensor in inputs.items()}
            for inputs in [own.calibration.batch]
            for i, mask in enumerate(inputs["mask"])
        )
    )
    found, wanted = (collect_hessians(own.model, layers, data) for data in (batches, alone))
    assert found.keys() == wanted.keys()
    for name, hessian in wanted.items():
        torch.testing.assert_close(found[name], hessian, rtol=1e-5, atol=1e-6)
    plain = [layer for layer in layers if layer.by_module]
    grids = calibrate_activations(own.model, plain, batches, [4])
    expected = calibrate_activations(own.model, plain, alone, [4])
    for name, by_bits in expected.items():
        assert grids[name][4].scale == pytest.approx(by_bits[4].scale, rel=1e-4)
    padded = collect_hessians(own.model, layers, own.full_pass(lambda: own.calibration.batches(5)))
    assert not torch.allclose(padded["inner"], wanted["inner"], rtol=1e-2)


def test_what_padding_holds_does_not_matter() -> None:
    found = []
    for padding in (3, 11):
        own = workload(padding)
        layers = find_layers(own.model, over(own.calibration.batch)).layers
        batches = own.unpadded_pass(lambda own=own: own.calibration.batches(5))  # type: ignore[misc]
        found.append(collect_hessians(own.model, layers, batches))
    for name, hessian in found[0].items():
        assert torch.equal(hessian, found[1][name]), name


def test_samples_are_counted_once_and_no_part_is_larger_than_a_batch() -> None:
    own = workload(padding=3)
    batches = own.unpadded_pass(lambda: [own.calibration.batch])
    assert batches.run(own.model) == 16
    assert max(len(piece[0]["ids"]) for piece in batches.batches()) <= own.batch_size


def test_a_model_with_batch_norm_is_corrected_on_whole_batches() -> None:
    own = workload(padding=3)
    pieces = len(list(own.correction_pass(lambda: [own.calibration.batch]).batches()))
    normed = replace(own, model=nn.Sequential(nn.BatchNorm1d(3)))
    assert pieces > 1
    assert len(list(normed.correction_pass(lambda: [own.calibration.batch]).batches())) == 1


def test_samples_that_are_masked_elsewhere_stay_whole() -> None:
    mask = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1]])
    parts = by_length({"ids": torch.arange(15).reshape(5, 3), "kind": torch.arange(5)}, mask)
    assert [part["ids"].shape[1] for part in parts] == [2, 3]
    assert parts[0]["kind"].tolist() == [0]
    assert parts[1]["kind"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("correction", ["statistics", "bias"])
def test_an_expert_without_a_token_in_some_batch_is_corrected(correction: str) -> None:
    own = workload(padding=3)
    batches = own.correction_pass(lambda: own.calibration.batches(5))
    before = own.model(**own.calibration.batch).detach()
    dense = record(own.model, batches)
    with torch.no_grad():
        for name in ("experts.0.bias", "experts.1.bias"):
            own.model.get_parameter(name).add_(0.5)
    correct(correction, own.model, batches, dense)
    after = own.model(**own.calibration.batch)
    there = own.calibration.batch["mask"].bool()
    assert bool(after.isfinite().all())
    torch.testing.assert_close(after[there].mean(), before[there].mean(), rtol=0, atol=1e-3)
