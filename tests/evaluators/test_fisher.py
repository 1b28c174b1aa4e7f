"""The table from gradients, against Jacobians made one output at a time, and against KL itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from apportion.compressors.errors import ModelError
from apportion.compressors.kinds.find import find_layers
from apportion.db.layers.database import LayerDatabase
from apportion.evaluators.data.dataset import TensorDataset
from apportion.evaluators.data.splits import TensorSplit
from apportion.evaluators.scoring import moves
from apportion.evaluators.scoring.directions import directions, steepest
from apportion.evaluators.scoring.fisher import _added, fisher_table
from apportion.evaluators.scoring.moves import Moved, MoveWork, check_gradients, squared_moves
from apportion.evaluators.tasks.distribution import Distribution
from apportion.evaluators.tasks.image_classification import ImageClassification
from apportion.evaluators.tasks.multi_label import MultiLabel
from apportion.evaluators.tasks.task import Task
from apportion.evaluators.workloads.workload import Workload
from tests import language_cases


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def hessian(p: Tensor) -> Tensor:
    return torch.diag(p) - p[:, None] * p


@pytest.mark.parametrize("count", [2, 3, 10, 1000])
def test_the_steepest_direction_is_the_largest_eigenpair(count: int) -> None:
    for seed in range(5):
        p = (torch.randn(count, generator=generator(seed), dtype=torch.float64) * 3).softmax(0)
        values, vectors = torch.linalg.eigh(hessian(p))
        expected = values[-1] * vectors[:, -1, None] * vectors[:, -1]
        v = torch.from_numpy(steepest(p.numpy()))
        torch.testing.assert_close(v[:, None] * v, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    "p", [[0.5, 0.5], [0.4, 0.4, 0.2], [0.25] * 4, [0.4, 0.3, 0.3], [1 - 1e-9, 1e-9], [0.6, 0.4, 0]]
)
def test_outcomes_that_are_equally_likely_or_certain(p: list[float]) -> None:
    v = steepest(np.array(p))
    h = hessian(torch.tensor(p, dtype=torch.float64)).numpy()
    largest = np.linalg.eigvalsh(h)[-1]
    assert v @ v == pytest.approx(largest, rel=1e-5)
    np.testing.assert_allclose(h @ v, largest * v, atol=1e-14)


def test_nothing_curves_where_all_is_certain() -> None:
    assert not steepest(np.array([1.0])).any()
    for certain in ([1.0, 0.0, 0.0], [0.0, 1.0]):
        assert np.abs(steepest(np.array(certain))).max() < 1e-14


def test_random_directions_have_the_hessian_as_expected_square() -> None:
    logits = torch.randn(1, 2, 4, generator=generator(), dtype=torch.float64)
    yes = torch.randn(1, 3, generator=generator(1), dtype=torch.float64)
    found = [
        Distribution(logits, torch.tensor([[0.25, 0.5]])),
        Distribution(yes, torch.full((1, 3), 1 / 3), binary=True),
    ]
    draws = generator(2)
    made = torch.stack(
        [torch.cat([v.flatten() for v in directions(found, draws)]) for _ in range(20_000)]
    )
    expected = torch.zeros(11, 11, dtype=torch.float64)
    for i, weight in enumerate((0.25, 0.5)):
        own = slice(4 * i, 4 * i + 4)
        expected[own, own] = weight * hessian(logits[0, i].softmax(0))
    p = yes[0].sigmoid()
    expected[8:, 8:] = torch.diag(p * (1 - p)) / 3
    torch.testing.assert_close(made.T @ made / len(made), expected, rtol=0, atol=4e-3)


def test_padding_and_positions_that_do_not_count_have_no_direction() -> None:
    logits = torch.tensor([[[1.0, 2.0, -torch.inf], [3.0, 1.0, 0.0]]])
    (v,) = directions([Distribution(logits, torch.tensor([[1.0, 0.0]]))], generator())
    assert v[0, 0, 2] == 0
    assert v[0, 0].abs().sum() > 0
    assert not v[0, 1].any()


class Mixed(nn.Module):
    """A convolution, a grouped, a depthwise and a transposed one, a layer called twice, and an
    attention, whose projections are parts of one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, stride=2, groups=2)
        self.alone = nn.Conv2d(8, 8, 2, groups=8, dilation=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=2)
        self.twice = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.alone(self.grouped(self.first(x).tanh()).tanh()).tanh())
        x = x.flatten(2).transpose(1, 2)
        x = self.twice(self.twice(x).tanh())
        mixed: Tensor = self.attention(x, x, x, need_weights=False)[0]
        logits: Tensor = self.last(mixed.mean(1))
        return logits


class Tied(nn.Module):
    """Two modules of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.c(self.b(self.a(x).tanh()).tanh())
        return logits


def images(model: nn.Module, shape: Sequence[int], seed: int = 0) -> MoveWork:
    torch.manual_seed(seed)
    inputs = torch.randn(5, *shape, generator=generator(seed))
    return work(model, ImageClassification(), TensorSplit(inputs, torch.zeros(5).long()))


def work(model: nn.Module, task: Task, data: TensorDataset) -> MoveWork:
    """Three random moves of every layer that the product finds."""
    model.eval()
    found = find_layers(
        model, Workload(model, data, data, data, 4, task=task).full_pass(lambda: data.batches(4))
    )
    draws = generator(9)
    layers = [
        Moved(own.name, own.where, torch.randn(3, int(np.prod(own.shape)), generator=draws) / 10)
        for own in found.layers
    ]
    return MoveWork(model, task, data, tuple(layers))


def by_jacobians(own: MoveWork) -> list[Tensor]:
    """The same sums in float64, from the gradient of every single output."""
    model = copy.deepcopy(own.model).double()
    totals = [torch.zeros(len(layer.moves), dtype=torch.float64) for layer in own.layers]
    for number, batch in enumerate(own.data.batches(1)):
        batch = _double(batch)
        found = own.task.distributions(own.task.forward(model, batch), batch)
        logits = torch.cat([d.logits.flatten() for d in found])
        if logits.numel() < 100:
            values, vectors = torch.linalg.eigh(hessian(logits.detach().softmax(0)))
            v = values[-1].sqrt() * vectors[:, -1]
        else:
            made = directions(found, generator(moves._SEED + number))
            v = torch.cat([part.flatten() for part in made])
        for total, layer in zip(totals, own.layers, strict=True):
            parameter = model.get_parameter(layer.place.parameters[0])
            at = [i for i in range(len(logits)) if v[i] != 0]
            jacobian = torch.stack(
                [
                    layer.place.of(
                        torch.autograd.grad(logits[i], parameter, retain_graph=True)[0]
                    ).flatten()
                    for i in at
                ]
            )
            total += (layer.moves.double() @ (v[at] @ jacobian)).square()
    return totals


def _double(batch: Any) -> Any:
    if isinstance(batch, tuple):
        return tuple(t.double() if t.is_floating_point() else t for t in batch)
    return batch


def llama() -> MoveWork:
    from tests import language

    task, _, data = language_cases.causal()
    return work(language.llama(), task, data.subset(range(2)))


CASES: dict[str, Callable[[], MoveWork]] = {
    "convolutions, twice, attention": lambda: images(Mixed(), (2, 7, 7)),
    "tied": lambda: images(Tied(), (6,)),
    "two classes": lambda: images(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), (4,)),
    "llama": llama,
}


@pytest.mark.parametrize("name", CASES)
def test_sums_are_those_of_jacobians(name: str) -> None:
    own = CASES[name]()
    count = len(own.data)
    before = copy.deepcopy(own.model.state_dict())
    found = squared_moves(own, (0, count))
    for layer, sums, expected in zip(own.layers, found, by_jacobians(own), strict=True):
        assert sums is not None
        torch.testing.assert_close(sums, expected, rtol=1e-4, atol=1e-12, msg=layer.name)
        assert (expected > 0).all(), layer.name
    parts = [squared_moves(own, (0, 1)), squared_moves(own, (1, count))]
    for whole, first, rest in zip(found, *parts, strict=True):
        assert whole is not None
        assert first is not None
        assert rest is not None
        torch.testing.assert_close(whole, first + rest, rtol=1e-5, atol=1e-9)
    for name, tensor in own.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(p.grad is None for p in own.model.parameters())


def test_small_moves_cost_what_the_table_says() -> None:
    """With two classes the steepest direction is all of the Hessian: the table is KL to second
    order, so that its relative error falls as fast as the moves."""
    own = CASES["two classes"]()
    sums = squared_moves(own, (0, 5))
    inputs = own.data.batch[0].double()
    ratios: list[list[float]] = []
    for scale in (1.0, 0.1, 0.01):
        ratios.append([])
        for layer, total in zip(own.layers, sums, strict=True):
            assert total is not None
            for i, move in enumerate(layer.moves):
                model = copy.deepcopy(own.model).double()
                dense = model(inputs).log_softmax(1).detach()
                place = layer.place
                weight = place.read(model) + scale * move.double().reshape(place.sizes)
                place.write(model, weight)
                found = model(inputs).log_softmax(1).detach()
                kl = (dense.exp() * (dense - found)).sum(1).mean()
                ratios[-1].append(float(0.5 * scale**2 * total[i] / 5 / kl) - 1)
    errors = np.abs(ratios)
    assert errors[2].max() < 5e-3
    assert errors[2].mean() < 0.2 * errors[1].mean() < 0.2 * errors[0].mean()


def test_many_draws_have_the_gauss_newton_form_as_their_mean() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    inputs = torch.randn(3, 4)
    own = work(model, MultiLabel(), TensorDataset((inputs, torch.zeros(3, 2))))
    drawn = squared_moves(replace(own, draws=1000), (0, 3))
    once = squared_moves(own, (0, 3))
    for layer, found, single in zip(own.layers, drawn, once, strict=True):
        assert found is not None
        assert single is not None
        expected = torch.zeros(3)
        for x in inputs:
            z = model(x)
            for k in range(2):
                (gradient,) = torch.autograd.grad(
                    z[k], model.get_parameter(layer.place.parameters[0]), retain_graph=True
                )
                p = z[k].sigmoid().detach()
                expected += p * (1 - p) / 2 * (layer.moves @ gradient.flatten()).square()
        torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0)
        assert not torch.allclose(single.float(), expected, rtol=0.01)


def test_how_many_gradients_are_held_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    own = CASES["tied"]()
    whole = squared_moves(own, (0, 5))
    monkeypatch.setattr(moves, "_HELD", 1)
    for one, other in zip(squared_moves(own, (0, 5)), whole, strict=True):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one, other, rtol=1e-5, atol=0)


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.hidden(x).detach())
        return logits


class Counter:
    """Applies here, in any order, and counts."""

    def __init__(self, backwards: bool = False, most: int = 10**9) -> None:
        self.backwards, self.most, self.calls = backwards, most, 0

    def __call__(
        self, function: Callable[[Any, Any], Any], shared: Any, calls: Sequence[Any]
    ) -> Iterator[tuple[int, Any]]:
        numbers = range(len(calls))
        for number in reversed(numbers) if self.backwards else numbers:
            self.calls += 1
            if self.calls > self.most:
                raise KeyboardInterrupt
            yield number, function(shared, calls[number])


def test_the_table_of_a_database(digits: Workload, database: LayerDatabase) -> None:
    bound = 4 * 5 * sum(int(np.prod(r.shape)) for r in database.layers.values()) // 3
    stopped = Counter(most=9)  # four calls a group of layers
    with pytest.raises(KeyboardInterrupt):
        fisher_table(digits, database, stopped, group_bytes=bound)
    rest = Counter(backwards=True)
    seen: list[tuple[str, int, int]] = []
    table = fisher_table(digits, database, rest, lambda *step: seen.append(step), group_bytes=bound)
    assert rest.calls % 4 == 0
    assert rest.calls > 0
    assert seen[-1][1] == seen[-1][2] == 64 * rest.calls
    none = Counter(most=0)
    again = fisher_table(digits, database, none)
    assert all((a == b).all() for a, b in zip(again, table, strict=True))

    dense = dict(digits.model.state_dict())
    names = list(database.levels())
    layers = []
    for name in (names[0], names[6], names[-1]):
        place = database.layers[name].where
        rows = [database.weight(name, level) for level in database.levels()[name]]
        rows = [(row - dense[place.parameters[0]].reshape(row.shape)).flatten() for row in rows]
        layers.append(Moved(name, place, torch.stack(rows)))
    own = MoveWork(digits.model, digits.task, digits.calibration, tuple(layers))
    for layer, sums in zip(layers, squared_moves(own, (0, 256)), strict=True):
        assert sums is not None
        row = table[names.index(layer.name)]
        np.testing.assert_allclose(row, 0.5 * sums.numpy() / 256, rtol=1e-6)
        assert row[0] == 0
        assert (np.diff(row) > 0).all()  # sparser is worse


def test_layers_and_models_without_gradients_are_refused_by_name() -> None:
    own = images(Detached(), (4,))
    hidden, last = squared_moves(own, (0, 5))
    assert hidden is None
    assert last is not None
    with pytest.raises(ModelError, match="no gradient with respect to layer 'hidden'"):
        _added("hidden", [hidden, None])

    class Blind(Detached):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return super().forward(x)

    blind = images(Blind(), (4,))
    for run in (
        lambda: squared_moves(blind, (0, 5)),
        lambda: check_gradients(blind.model, blind.task, blind.data),
    ):
        with pytest.raises(ModelError, match="no gradients with respect to its weights; probe"):
            run()
    check_gradients(own.model, own.task, own.data)

    class Whole(Detached):
        def forward(self, x: Tensor) -> Tensor:
            logits = self.last(self.hidden(x))
            return _Undifferentiable.apply(logits)

    with pytest.raises(ModelError, match="cannot be differentiated .*no backward.*; probe"):
        squared_moves(images(Whole(), (4,)), (0, 5))


class _Undifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError("no backward")
