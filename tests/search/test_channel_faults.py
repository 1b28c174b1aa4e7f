"""What went wrong with channel levels once, on models as small as show it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.nn import functional as F

import apportion
from apportion.compressors.errors import ConfigurationError
from apportion.compressors.kinds.find import find_layers
from apportion.compressors.levels import parse_level
from apportion.evaluators.costs.channels.tables import counts
from apportion.evaluators.rewriting.smaller import Smaller
from apportion.evaluators.training.config import RecoveryConfig
from apportion.search.export.exporting import export, score_profile
from tests.channel_jobs import channel_problem, outputs


def test_places_of_a_kernel_that_meet_padding_alone_go_with_their_channels(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, padding=1),  # of one pixel: eight of nine places read no input
        nn.Flatten(),
        nn.Linear(6, 4),
    ).eval()
    x = torch.randn(32, 3, 2, 2)
    levels = ("dense", "channels-0.25", "channels-0.50+w8")
    with channel_problem(model, x, tmp_path / "d", levels) as problem:
        assert problem.channels is not None
        profile = {n: parse_level(own[1]) for n, own in problem.levels().items()}
        small = Smaller(model, problem.channels)(profile)
        found = find_layers(small, problem.workload.traced_pass())
        assert counts(model, problem.channels, profile) == (
            sum(p.numel() for p in small.parameters()),
            sum(found.macs.values()) + found.base,
        )


class Hidden(nn.Module):
    """One of its two layers is scaled by a buffer that no state dict holds."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.register_buffer("scale", torch.rand(8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.c(F.relu(self.b(F.relu(self.a(x)) * self.scale)))
        return made


def test_channels_of_buffers_that_no_file_holds_stay(tmp_path: Path) -> None:
    model, x = Hidden().eval(), torch.randn(32, 6)
    with channel_problem(model, x, tmp_path / "d", batchnorm="running") as problem:
        assert problem.channels is not None
        grouped = problem.channels.content.grouped
        assert [group.name for group in grouped.groups] == ["b"]
        assert "scale" in grouped.kept["a"]
        profile = {n: parse_level(own[-1]) for n, own in problem.levels().items()}
        small = Smaller(model, problem.channels)(profile)
        export(
            score_profile(profile, problem, "here"),
            problem,
            tmp_path / "out",
            formats=["safetensors"],
        )
        shapes = json.loads((tmp_path / "out" / "shapes.json").read_text())
        apportion.resize(model, shapes)
        load_model(model, str(tmp_path / "out" / "model.safetensors"))
        assert torch.allclose(outputs(model, x), outputs(small, x), atol=1e-6)


def test_a_model_of_which_all_is_dropped_is_exported(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    x = torch.randn(32, 6)
    with channel_problem(model, x, tmp_path / "d", ("dense", "w8a8", "drop")) as problem:
        profile = {n: parse_level(own[-1]) for n, own in problem.levels().items()}
        assert sorted(map(str, profile.values())) == ["drop", "w8a8"]  # of what is not there
        formats = ["safetensors", "compressed", "torch", "onnx"]
        chosen = score_profile(profile, problem, "here")
        made = export(chosen, problem, tmp_path / "out", formats=formats)
        assert made.content["costs"]["flops"] == pytest.approx(0)


def test_batchnorm_without_weights_is_folded_for_onnx(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8, affine=False), nn.ReLU(), nn.Linear(8, 4)
    ).eval()
    x = torch.randn(32, 6)
    levels = ("dense", "channels-0.50+w8")
    with channel_problem(model, x, tmp_path / "d", levels) as problem:
        profile = {n: parse_level(own[-1]) for n, own in problem.levels().items()}
        made = export(
            score_profile(profile, problem, "here"), problem, tmp_path / "out", formats=["onnx"]
        )
        assert "model.onnx" in made.files


@pytest.mark.parametrize("step", ["lintune", "adaprune"])
def test_steps_of_recovery_that_a_job_refuses_are_refused_at_export(
    tmp_path: Path, step: str
) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    with channel_problem(model, torch.randn(32, 6), tmp_path / "d") as problem:
        profile = {n: parse_level(own[-1]) for n, own in problem.levels().items()}
        chosen = score_profile(profile, problem, "here")
        recovery = RecoveryConfig.model_validate({step: {}})
        with pytest.raises(ConfigurationError, match=f"recovery.{step}"):
            export(chosen, problem, tmp_path / "out", recovery=recovery)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("levels", "multiple"), [(("dense", "w8", "heads-0.50"), 2), (("dense", "channels-0.50"), 64)]
)
def test_levels_that_take_nothing_from_any_group_are_refused(
    tmp_path: Path, levels: tuple[str, ...], multiple: int
) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    options = {"channels": {"multiple": multiple}}
    with pytest.raises(ConfigurationError, match=rf"{levels[-1]} would leave .* has 8 channels"):
        channel_problem(model, torch.randn(32, 6), tmp_path / "d", levels, database_options=options)


def test_levels_that_take_nothing_beside_others_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    levels = ("dense", "channels-0.50", "heads-0.50")
    with channel_problem(model, torch.randn(32, 6), tmp_path / "d", levels):
        assert "heads-0.50 would leave every group whole" in caplog.text
