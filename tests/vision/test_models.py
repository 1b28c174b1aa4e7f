"""Models from elsewhere: ONNX files, timm's, and torchvision's beyond classifiers."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apportion.compressors.calibration import call, over
from apportion.compressors.errors import ConfigurationError, ModelError, UnknownNameError
from apportion.compressors.kinds.find import find_layers
from apportion.evaluators.models import onnx_source
from apportion.evaluators.models.build import build_model, settled
from apportion.evaluators.rewriting import onnx_model
from apportion.search.jobs.job_file import map_paths, resolve_paths
from tests.vision import nets


class Reader(nn.Module):
    """Embedding, attention by bare products, and shapes taken from the inputs: what files of
    language models hold."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 16)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.norm, self.out = nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.words(input_ids)
        n, length, _ = x.shape
        q, k, v = (
            part(x).view(n, length, 2, 8).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(2, 3) / 8**0.5 + (attention_mask[:, None, None].float() - 1) * 1e4
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, length, 16)
        return self.out(self.norm(x + mixed)[:, 0])


def written(model: nn.Module, inputs: Any, path: Path, how: str) -> Path:
    """The model as torch's older exporter writes it, with ONNX's arithmetic on shapes, for any
    batch or for one of this size; or as this project exports it."""
    pytest.importorskip("onnx2torch", reason="apportion[onnx-source] is not installed")
    if how == "own":
        path.write_bytes(onnx_model.to_onnx(model, inputs, {}).SerializeToString())
        return path
    dynamic = how == "any batch"
    names = list(inputs) if isinstance(inputs, dict) else ["image"]
    args = tuple(inputs.values()) if isinstance(inputs, dict) else (inputs,)
    axes = {name: {0: "batch"} for name in names} if dynamic else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(), args, str(path), input_names=names, dynamic_axes=axes, dynamo=False
        )
    return path


def _unet() -> tuple[nn.Module, Any, int]:
    return nets.unet(), torch.randn(4, 3, 16, 16), 5


def _reader() -> tuple[nn.Module, Any, int]:
    torch.manual_seed(0)
    ids, mask = torch.randint(0, 30, (4, 7)), torch.ones(4, 7, dtype=torch.int64)
    mask[1, 4:] = 0
    return Reader(), {"input_ids": ids, "attention_mask": mask}, 5


class Views(nn.Module):
    """Reshapes, resizes, slices, padding, splits and stretching by numbers and by shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(torch.nn.functional.pad(x[:, :, ::2, 1::2], (1, 2, 0, 1)))
        large = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
        left, right = large.split(4, dim=1)
        x = torch.cat([right, left * left.mean((2, 3), keepdim=True).expand_as(left)], 1)
        return self.last(x).flatten(2).permute(0, 2, 1)


def _views() -> tuple[nn.Module, Any, int]:
    torch.manual_seed(0)
    return Views(), torch.randn(4, 3, 16, 16), 2


@pytest.mark.parametrize("how", ["any batch", "a batch of one", "own"])
@pytest.mark.parametrize("make", [_unet, _reader, _views])
def test_an_onnx_file_is_the_model_it_was_written_from(tmp_path: Path, make: Any, how: str) -> None:
    model, inputs, layers = make()
    keyed = isinstance(inputs, dict)
    one = {key: value[:1] for key, value in inputs.items()} if keyed else inputs[:1]
    path = written(model, one, tmp_path / "model.onnx", how)
    found = settled(build_model(str(path)), str(path), inputs)
    with torch.no_grad():
        expected = call(model, inputs)
        torch.testing.assert_close(call(found, inputs), expected, rtol=1e-4, atol=1e-4)
        for made in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
            torch.testing.assert_close(call(made, inputs), call(found, inputs))
    assert len(find_layers(found, over(inputs)).layers) == layers
    again = onnx_model.session(onnx_model.to_onnx(found, inputs, {}), 1)
    torch.testing.assert_close(onnx_model.run(again, inputs), expected, rtol=1e-4, atol=1e-4)


def test_what_onnx_runtime_gives_otherwise_is_refused(tmp_path: Path) -> None:
    model, inputs, _ = _unet()
    path = written(model, inputs[:1], tmp_path / "model.onnx", "any batch")
    found = build_model(str(path))
    with torch.no_grad():
        next(found.parameters()).mul_(1.1)
    with pytest.raises(ModelError, match="other outputs than in ONNX Runtime"):
        settled(found, str(path), inputs)
    with pytest.raises(ModelError, match=r"does not run on inputs of shape \[5, 16, 16\]"):
        settled(build_model(str(path)), str(path), torch.randn(2, 5, 16, 16))
    with pytest.raises(ConfigurationError, match="brings its own; leave it out"):
        build_model(str(path), "weights.safetensors")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match="cannot be read as ONNX"):
        build_model(str(tmp_path / "broken.onnx"))


@pytest.mark.parametrize("name", ["model.onnx", "onnx:models/net.bin", "cifar_resnet20", "a.b:c"])
def test_onnx_files_are_paths_of_the_job(name: str) -> None:
    content = resolve_paths({"workload": {"model": name}}, Path("/jobs"))
    expected = {
        "model.onnx": "/jobs/model.onnx",
        "onnx:models/net.bin": "onnx:/jobs/models/net.bin",
    }
    assert content["workload"]["model"] == expected.get(name, name)
    seen: list[str] = []
    map_paths(content, lambda _, value: seen.append(value) or value)  # type: ignore[func-returns-value]
    assert bool(seen) == onnx_source.is_onnx(name)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("lraspp_mobilenet_v3_large", (3, 64, 64)),
        ("ssdlite320_mobilenet_v3_large", (3, 96, 96)),
        ("r3d_18", (3, 4, 32, 32)),
    ],
)
def test_torchvisions_models_of_all_kinds_are_built_without_a_network(
    name: str, shape: tuple[int, ...]
) -> None:
    model = build_model(f"torchvision:{name}")
    inputs = torch.randn(2, *shape)
    with torch.no_grad():
        outputs = model(inputs)
    assert len(outputs["out"] if isinstance(outputs, dict) else outputs) == 2
    assert len(find_layers(model, over(inputs)).layers) > 18


def test_timms_models_are_built_by_name() -> None:
    pytest.importorskip("timm", reason="apportion[timm] is not installed")
    model = build_model("timm:test_vit")
    assert len(find_layers(model, over(torch.randn(2, 3, 160, 160))).layers) > 10
    with pytest.raises(UnknownNameError, match="test_vit"):
        build_model("timm:test_vitt")


def test_names_of_models_are_no_code_to_upload() -> None:
    from apportion.search.service.package import code_names

    for name in ("timm:resnet18", "torchvision:resnet18", "onnx:net", "huggingface:bert"):
        assert code_names({"workload": {"model": name}}) == []
    assert json.dumps(code_names({"workload": {"model": "mine:net"}})) == '["mine:net"]'
