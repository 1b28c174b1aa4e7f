"""Smaller networks within budgets, from a program's own model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import apportion
from apportion.compressors.errors import ApportionError, BudgetError, ModelError
from tests import language_cases
from tests.compressors.groups.masking import outputs
from tests.compressors.groups.test_find import Graph
from tests.compressors.kinds.test_torchvision import counted

TASK = apportion.Task(
    forward=lambda model, batch: model(batch),
    loss=lambda out, _: out.square().mean(1),
    metric=lambda out, _: out.square().mean(1),
    name="mean square",
    higher_is_better=False,
    divergence="kl",
)


class Sized(nn.Module):
    """Its code names the size of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 16)
        self.three = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x))
        if x.shape[1] != 8:
            raise RuntimeError("eight are expected")
        out: Tensor = self.three(F.relu(self.two(x)))
        return out


@pytest.mark.parametrize("budgets", [{"flops": "2x"}, {"params": 0.4, "flops": 0.7}])
def test_the_budgets_are_met_by_what_is_really_there(budgets: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = Graph(["conv", "add", "cat", "gate"], 0).eval(), torch.randn(48, 3, 6, 6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = apportion.narrow(model, task=TASK, calibration=[x], budgets=budgets, multiple=2)
    assert made.gap == 0
    assert made.costs["flops"] == (counted(made.model, x[:1]), counted(model, x[:1]))
    sizes = [sum(p.numel() for p in m.parameters()) for m in (made.model, model)]
    assert made.costs["params"] == tuple(sizes)
    for name, value in budgets.items():
        share = 0.5 if value == "2x" else value
        assert made.costs[name][0] <= share * made.costs[name][1]
    assert all(n % 2 == 0 or n == made.channels[g] for g, n in made.sizes.items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    again = Graph(["conv", "add", "cat", "gate"], 1).eval()
    apportion.resize(again, made.shapes)
    again.load_state_dict(made.model.state_dict())
    assert torch.equal(outputs(again, x), outputs(made.model, x))


def test_it_is_better_than_random_channels_of_the_same_sizes() -> None:
    from apportion.evaluators.rewriting.narrow import narrowed
    from tests.compressors.groups.masking import grouped

    torch.manual_seed(0)
    model, x = Graph(["conv", "add", "conv"], 0).eval(), torch.randn(64, 3, 6, 6)
    made = apportion.narrow(
        model, task=TASK, calibration=[x], budgets={"flops": "1.5x"}, multiple=1
    )
    _, found = grouped(model, x[:2])
    dense = outputs(model, x)
    generator = torch.Generator().manual_seed(0)
    others = []
    for _ in range(5):
        kept = {}
        for group in found.groups:
            stays = torch.zeros(group.size, dtype=torch.bool)
            order = torch.randperm(group.size, generator=generator)
            stays[order[: made.sizes[group.name]]] = True
            kept[group.name] = stays.numpy()
        others.append(F.mse_loss(outputs(narrowed(model, found.groups, kept), x), dense).item())
    assert F.mse_loss(outputs(made.model, x), dense).item() < 0.5 * min(others)


@pytest.mark.parametrize("criterion", ["obs", "l1", "l2", "fpgm", "taylor", "hessian", "random"])
def test_every_criterion_keeps_the_budget(criterion: str) -> None:
    torch.manual_seed(0)
    model, x = Graph(["conv", "add"], 0).eval(), torch.randn(32, 3, 6, 6)
    made = apportion.narrow(
        model,
        task=TASK,
        calibration=[x],
        budgets={"flops": "2x"},
        multiple=2,
        criterion=criterion,
    )
    assert 0 < made.costs["flops"][0] <= made.costs["flops"][1] / 2
    assert all(p.grad is None for p in model.parameters())


def test_fitted_layers_are_nearer_to_the_dense_model() -> None:
    torch.manual_seed(0)
    model, x = Graph(["conv", "add", "conv"], 0).eval(), torch.randn(64, 3, 6, 6)
    dense = outputs(model, x)
    plain, fitted = (
        apportion.narrow(
            model, task=TASK, calibration=[x], budgets={"flops": "2x"}, multiple=1, fit=fit
        )
        for fit in (False, True)
    )
    assert plain.sizes == fitted.sizes
    errors = [F.mse_loss(outputs(made.model, x), dense).item() for made in (plain, fitted)]
    assert errors[1] < errors[0]


def test_heads_go_within_budgets() -> None:
    torch.manual_seed(0)
    model, x = Graph(["heads", "heads"], 0).eval(), torch.randn(24, 3, 6, 6)
    made = apportion.narrow(
        model, task=TASK, calibration=[x], budgets={"flops": 0.5, "params": 0.6}, multiple=1
    )
    heads = {name: size for name, size in made.sizes.items() if name.startswith("parts")}
    assert all(made.channels[name] == 4 for name in heads)
    assert min(heads.values()) < 4
    assert made.costs["flops"][0] == counted(made.model, x[:1])
    assert made.costs["flops"][0] <= 0.5 * made.costs["flops"][1]


def test_padding_changes_nothing() -> None:
    """The same texts, padded to another length."""
    task, model, data = language_cases.classification()
    batch = data.batch
    longer = {
        k: F.pad(v, (0, 3)) if v.dim() == 2 and v.shape == batch["input_ids"].shape else v
        for k, v in batch.items()
    }
    made = [
        apportion.narrow(model, task=task, calibration=[own], budgets={"params": 0.95}, multiple=1)
        for own in (batch, longer)
    ]
    assert made[0].sizes == made[1].sizes
    for one, other in zip(made[0].model.parameters(), made[1].model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_sizes_that_a_models_code_names_stay(caplog: pytest.LogCaptureFixture) -> None:  # noqa: ARG001
    x = torch.randn(32, 6)
    made = apportion.narrow(
        Sized().eval(), task=TASK, calibration=[x], budgets={"params": 0.7}, multiple=1
    )
    assert set(made.sizes) == {"two"}
    assert "eight are expected" in made.kept["one"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"budgets": {"latency": "2x"}}, "channels have budgets of flops and params"),
        ({"budgets": {}}, "name at least one"),
        ({"budgets": {"flops": "100x"}}, "the smallest sizes, multiples of 8, cost"),
        ({"multiple": 0}, "multiple must be 1 or more"),
        ({"criterion": "magic"}, "criterion 'magic'"),
    ],
)
def test_what_cannot_be_is_one_line(change: dict[str, Any], text: str) -> None:
    given = {"calibration": [torch.randn(16, 6)], "budgets": {"params": 0.7}, **change}
    with pytest.raises(ApportionError, match=text) as caught:
        apportion.narrow(Sized().eval(), task=TASK, **given)
    assert "\n" not in str(caught.value)


def test_a_divergence_that_is_no_number_is_refused() -> None:
    task = apportion.Task(
        forward=lambda model, batch: model(batch),
        loss=lambda out, _: out.square().mean(1),
        metric=lambda out, _: out.square().mean(1),
        name="mean square",
        higher_is_better=False,
        divergence=lambda out, dense, _: (out - dense).sum(1) * float("nan"),
    )
    with pytest.raises(ApportionError, match="divergence .* is not finite"):
        apportion.narrow(
            Sized().eval(), task=task, calibration=[torch.randn(8, 6)], budgets={"params": 0.7},
            multiple=1,
        )  # fmt: skip


def test_calibration_may_be_read_once() -> None:
    batches = (torch.randn(8, 6) for _ in range(3))
    made = apportion.narrow(
        Sized().eval(), task=TASK, calibration=batches, budgets={"params": 0.7}, multiple=1
    )
    assert made.sizes["two"] < 16


def test_a_model_without_groups_is_refused_with_the_reasons() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)).eval()
    with pytest.raises(ModelError, match="no channels of the model can go .*native_layer_norm"):
        apportion.narrow(model, task=TASK, calibration=[torch.randn(8, 6)], budgets={"params": 0.5})
    assert issubclass(BudgetError, ApportionError)
