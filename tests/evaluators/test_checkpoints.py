"""Checkpoints as trainings save them, and models of kinds that are not compressed."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from apportion.compressors.errors import DataError, ModelError, WeightsError
from apportion.evaluators.models import build as models
from apportion.evaluators.models.build import build_model, load_weights
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.building import build
from tests.fitted import fitted


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


STATE = net(1).state_dict()
OTHER = net(2).state_dict()
OPTIMIZER = torch.optim.SGD(net().parameters(), lr=0.1, momentum=0.9).state_dict()


def under(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in STATE.items()}


WRAPPED: dict[str, Any] = {
    "bare": STATE,
    "state_dict": {"state_dict": STATE, "epoch": 3, "optimizer": OPTIMIZER},
    "model": {"model": STATE, "args": {"lr": 0.1}},
    "net": {"net": STATE, "acc": 93.1, "epoch": 5},
    "model_state_dict": {"model_state_dict": STATE, "optimizer_state_dict": OPTIMIZER},
    "twice": {"model": {"state_dict": STATE}},
    "DataParallel": under("module."),
    "wrapped and DataParallel": {"net": under("module.")},
    "compiled": under("_orig_mod."),
    "compiled in DataParallel": under("module._orig_mod."),
    "lightning": {"state_dict": under("model."), "pytorch-lightning_version": "2"},
    "beside its average": {"model": STATE, "model_ema": OTHER},
    "average first": {"ema": {"shadow": OTHER}, "state_dict": STATE},
}


@pytest.mark.parametrize("way", WRAPPED)
def test_plain_wrappings_are_taken_off(tmp_path: Path, way: str) -> None:
    torch.save(WRAPPED[way], tmp_path / "w.pt")
    model = net()
    load_weights(model, tmp_path / "w.pt")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, STATE[name])


@pytest.mark.parametrize(
    ("way", "said"), [("beside its average", "model_ema"), ("average first", "ema")]
)
def test_another_model_beside_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, way: str, said: str
) -> None:
    torch.save(WRAPPED[way], tmp_path / "w.pt")
    with caplog.at_level(logging.WARNING):
        load_weights(net(), tmp_path / "w.pt")
    assert f"is taken; beside it are {said}" in caplog.text


def test_an_optimizers_state_is_no_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(WRAPPED["model_state_dict"], tmp_path / "w.pt")
    with caplog.at_level(logging.WARNING):
        load_weights(net(), tmp_path / "w.pt")
    assert not caplog.text


def test_a_prefix_that_the_model_has_too_stays(tmp_path: Path) -> None:
    wrapped = nn.DataParallel(net())
    torch.save(under("module."), tmp_path / "w.pt")
    load_weights(wrapped, tmp_path / "w.pt")
    assert torch.equal(wrapped.state_dict()["module.0.weight"], STATE["0.weight"])


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_the_models(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: torch.dtype
) -> None:
    save_file({name: t.to(kind) for name, t in STATE.items()}, tmp_path / "w.safetensors")
    model = net()
    with caplog.at_level(logging.WARNING):
        load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(model.get_parameter("0.weight"), STATE["0.weight"].to(kind).float())
    assert f"weights in {str(kind).removeprefix('torch.')} are taken" in caplog.text


@pytest.mark.parametrize("kind", [torch.int8, torch.complex64])
def test_what_is_no_float_is_refused_by_name(tmp_path: Path, kind: torch.dtype) -> None:
    torch.save({**STATE, "2.weight": STATE["2.weight"].to(kind)}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"w.pt: '2.weight' is \w+ where the model has float32"):
        load_weights(net(), tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (net(), r"more than tensors \(torch.nn.modules.*torch.save\(model.state_dict\(\)"),
        (
            {"model": STATE, "args": argparse.Namespace(lr=1)},
            r"more than tensors \(argparse.Namespace\)",
        ),
        ({"weights": STATE, "epoch": 3}, r"it holds 'weights' \(.*Dict\), 'epoch' \(int\)"),
        ({"ema": STATE}, r"it holds 'ema' \(.*Dict\), and a state dict is looked for under"),
        ({**STATE, "epoch": 3}, r"it holds 'epoch' \(int\), and"),
        ({0: torch.ones(1)}, r"it holds 0 \(Tensor\)"),
        ({}, "it holds nothing"),
        ([1], "it is a list"),
        (torch.ones(3), "it is a Tensor"),
        (None, "it is a NoneType"),
    ],
)
def test_what_is_no_state_dict_is_named_in_one_line(
    tmp_path: Path, content: Any, message: str
) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=rf"w.pt: .*{message}") as caught:
        load_weights(net(), tmp_path / "w.pt")
    assert "\n" not in str(caught.value)


def test_a_torchscript_program_is_named(tmp_path: Path) -> None:
    torch.jit.trace(net(), torch.ones(1, 4)).save(str(tmp_path / "w.pt"))
    with pytest.raises(ModelError, match=r"w.pt: .*a TorchScript program.*state_dict") as caught:
        load_weights(net(), tmp_path / "w.pt")
    assert "\n" not in str(caught.value)


def test_another_models_weights_are_still_refused(tmp_path: Path) -> None:
    torch.save({"model": under("module.backbone.")}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"unexpected: backbone.0.weight"):
        load_weights(net(), tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: net().bfloat16(), r"'0.weight' is bfloat16; .*return model.float\(\)"),
        (lambda: net().double(), "'0.weight' is float64"),
        (lambda: net().half(), "'0.weight' is float16"),
        (lambda: nn.Sequential(net(), nn.Linear(3, 3).bfloat16()), "'1.weight' is bfloat16"),
        (lambda: nn.Linear(3, 3, dtype=torch.complex64), "'weight' is complex64"),
        (lambda: nn.Sequential(nn.LazyLinear(3)), "'0.weight' of LazyLinear has no shape yet"),
        (lambda: nn.Sequential(nn.LazyConv2d(3, 1)), "'0.weight' of LazyConv2d has no shape yet"),
    ],
)
def test_models_that_are_not_compressed_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], nn.Module], message: str
) -> None:
    monkeypatch.setitem(models.MODELS, "mine", make)
    with pytest.raises(ModelError, match=f"model 'mine': parameter {message}"):
        build_model("mine")


def test_a_lazy_model_that_was_run_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> nn.Module:
        model = nn.Sequential(nn.LazyLinear(3))
        model(torch.ones(1, 4))
        return model

    monkeypatch.setitem(models.MODELS, "mine", make)
    assert build_model("mine").get_parameter("0.weight").shape == (3, 4)


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)
    )


def spatial() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
    )


@pytest.mark.parametrize(
    ("make", "samples", "size", "job", "alone"),
    [
        (normed, 129, 64, {}, True),
        (normed, 3, 1, {}, True),
        (normed, 128, 64, {"corrections": {"export": []}}, False),
        (normed, 129, 64, {"batchnorm": "running", "corrections": {"export": []}}, False),
        (normed, 128, 71, {"batchnorm": "running"}, True),  # 1,350 training images: 19 x 71 + 1
        (spatial, 129, 64, {}, False),  # many values per channel
    ],
)
def test_a_sample_alone_in_the_last_batch(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[], nn.Module],
    samples: int,
    size: int,
    job: dict[str, Any],
    alone: bool,
) -> None:
    made = fitted(make(), "4")
    monkeypatch.setitem(models.MODELS, "mine", lambda: made)
    content = {
        "workload": {
            "model": "mine",
            "data": {"kind": "digits"},
            "calibration_samples": samples,
            "batch_size": size,
        },
        "database": {"path": str(tmp_path / "db"), "levels": ["dense"]},
        "search": {"picks": 1},
        "budgets": {"flops": 1.0},
        **job,
    }
    config = parse_model_job(content, tmp_path / "job.yaml")
    if not alone:
        build(config)
        return
    before = {key: tensor.clone() for key, tensor in made.state_dict().items()}
    with pytest.raises(DataError, match=r"leave one alone, on which batch-norm '2' has no"):
        build(config)
    assert not (tmp_path / "db").exists()
    assert all(torch.equal(before[key], tensor) for key, tensor in made.state_dict().items())
