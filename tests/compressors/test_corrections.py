"""Batch-norm re-tuning, statistics correction and bias correction."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from apportion.compressors.calibration import FullPass, over
from apportion.compressors.corrections import (
    NAMES,
    check_correction,
    correct,
    record,
    retune_batchnorm,
    targets,
)
from apportion.compressors.errors import UnknownNameError


def batches() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    yield from torch.randn(96, 3, 8, 8, generator=generator).split(32)


DATA = FullPass(batches)


def folded() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3, groups=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(80, 4),
    ).eval()


def normalised() -> nn.Module:
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Flatten(2),
        nn.LayerNorm(16),
        nn.Linear(16, 4),
    )
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return net.eval()


def damaged(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.weight.mul_((torch.rand_like(module.weight) < 0.4).float())
    return model


def distance(model: nn.Module, dense: nn.Module, variance: bool, at: dict[str, nn.Module]) -> float:
    """Largest distance of means (and variances) of the outputs from the dense model's, in standard
    deviations."""
    now, then = ({n: r.whole for n, r in record(m, DATA).items()} for m in (model, dense))
    worst = 0.0
    for name in at:
        spread = then[name].variance.clamp(min=1e-9)
        worst = max(worst, float(((now[name].mean - then[name].mean).abs() / spread.sqrt()).max()))
        if variance:
            worst = max(worst, float((now[name].variance / spread - 1).abs().max()))
    return worst


@pytest.mark.parametrize("make", [folded, normalised])
@pytest.mark.parametrize("name", ["statistics", "bias"])
def test_outputs_get_the_dense_models_moments(make: type[nn.Module], name: str) -> None:
    dense = make()
    model = damaged(dense)
    at, variance = targets(dense, variance=name == "statistics"), name == "statistics"
    before = distance(model, dense, variance, at)
    correct(name, model, DATA, record(dense, DATA))
    after = distance(model, dense, variance, at)
    assert after < 0.2 * before
    assert not model.training


def test_a_single_batch_is_matched_exactly() -> None:
    dense = folded()
    model = damaged(dense)
    inputs = next(batches())
    correct("statistics", model, over(inputs), record(dense, over(inputs)))
    now, then = record(model, over(inputs)), record(dense, over(inputs))
    for name in targets(dense, variance=True):
        torch.testing.assert_close(
            now[name].whole.mean, then[name].whole.mean, rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(
            now[name].whole.variance, then[name].whole.variance, rtol=1e-3, atol=1e-6
        )


@pytest.mark.parametrize("name", ["statistics", "bias"])
def test_the_dense_model_stays_as_it_is(name: str) -> None:
    dense = normalised()
    model = copy.deepcopy(dense)
    correct(name, model, DATA, record(dense, DATA))
    x = next(batches())
    torch.testing.assert_close(model(x), dense(x), rtol=1e-3, atol=1e-4)


def test_zeros_stay_zeros_and_shared_tensors_are_left_alone() -> None:
    dense = folded()
    model = damaged(dense)
    shared = [
        module.weight.data
        for module in model.modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    kept = [weight.clone() for weight in shared]
    correct("statistics", model, DATA, record(dense, DATA))
    after = [
        module.weight.data
        for module in model.modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    assert all(torch.equal(a, b) for a, b in zip(shared, kept, strict=True))
    assert all(torch.equal(a == 0, b == 0) for a, b in zip(after, kept, strict=True))


def test_a_channel_that_is_gone_is_moved_and_not_stretched() -> None:
    dense = folded()
    model = copy.deepcopy(dense)
    with torch.no_grad():
        model.get_parameter("0.weight")[2] = 0
    correct("statistics", model, DATA, record(dense, DATA))
    now, then = record(model, DATA)["0"].whole, record(dense, DATA)["0"].whole
    assert float(now.mean[2]) == pytest.approx(float(then.mean[2]), abs=1e-5)
    assert float(now.variance[2]) < 1e-9


def test_unknown_corrections_are_named() -> None:
    for name in NAMES:
        check_correction(name)
    with pytest.raises(
        UnknownNameError,
        match=r"corrections: unknown correction 'batchnrm'; did you mean 'batchnorm'",
    ):
        check_correction("batchnrm")


def test_retuning_averages_the_batches_statistics() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).eval()
    batches = list(torch.randn(3, 20, 3, generator=torch.Generator().manual_seed(0)) * 3 + 1)
    with torch.no_grad():
        means = torch.stack([model[0](x).mean(0) for x in batches]).mean(0)
        variances = torch.stack([model[0](x).var(0) for x in batches]).mean(0)
    retune_batchnorm(model, over(*batches))
    torch.testing.assert_close(model[1].running_mean, means)
    torch.testing.assert_close(model[1].running_var, variances)
    assert not model.training
    assert not model[1].training
    assert model[1].momentum == 0.1
