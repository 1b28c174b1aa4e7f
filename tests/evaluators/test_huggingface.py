"""Classifiers of Hugging Face's: real architectures, small, with random weights and a fitted
head, in and through the whole way."""

from pathlib import Path
from typing import Any

import pytest
import torch

from apportion.compressors.errors import ModelError
from apportion.evaluators.models.build import build_model
from apportion.evaluators.models.huggingface import Logits
from apportion.search.export.exporting import export, score_profile
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.pipeline import prepare
from apportion.search.space.additive import optimum
from tests.fitted import fitted

transformers = pytest.importorskip("transformers", reason="apportion[huggingface] is not installed")


@pytest.fixture(params=["resnet", "vit"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    size: dict[str, Any] = {"num_channels": 1, "num_labels": 10}
    if request.param == "resnet":
        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **size
        )
        model = transformers.ResNetForImageClassification(config)
    else:
        config = transformers.ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=8,
            patch_size=4,
            **size,
        )
        model = transformers.ViTForImageClassification(config)
    head = "classifier.classifier" + (".1" if request.param == "resnet" else "")
    fitted(Logits(model), head)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_classifier_is_compressed_searched_and_exported(folder: Path, tmp_path: Path) -> None:
    content = {
        "workload": {
            "model": f"huggingface:{folder}",
            "data": {"kind": "digits"},
            "calibration_samples": 64,
        },
        "database": {"path": "database", "levels": ["dense", "unstr-0.50", "w8"]},
        "budgets": {"flops": 0.8},
        "corrections": {"export": []},
        "search": {"algorithms": ["dp"], "evaluations": 1, "picks": 1},
    }
    with prepare(parse_model_job(content, tmp_path / "job.yaml")) as problem:
        plain = transformers.AutoModelForImageClassification.from_pretrained(folder)
        inputs = next(problem.workload.calibration.batches(8))[0]
        with torch.no_grad():
            assert torch.equal(problem.workload.model(inputs), plain(pixel_values=inputs).logits)
        chosen = score_profile(
            problem.profile(problem.decisions.expand(optimum(problem.space))),
            problem,
            "the optimum",
        )
        formats = ("safetensors", "compressed", "huggingface")
        exported = export(chosen, problem, tmp_path / "out", formats=formats)
        again = transformers.AutoModelForImageClassification.from_pretrained(
            exported.files["huggingface"]
        )
        stitched = problem.workload.model
        problem.database.stitch(stitched, problem.profile(chosen.candidate))
        with torch.no_grad():
            found = again(pixel_values=inputs).logits
            assert torch.equal(found, stitched(inputs))
            assert not torch.equal(found, plain(pixel_values=inputs).logits)
    assert exported.content["costs"]["flops"] <= 0.8
    assert 0 < exported.content["exports"]["model.packed"]["of_dense"] < 1


def test_what_is_no_classifier_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"huggingface:.*nowhere': no such folder or file"):
        build_model(f"huggingface:{tmp_path / 'nowhere'}")


def test_weights_that_hold_code_are_not_loaded(folder: Path) -> None:
    model = transformers.AutoModelForImageClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(
        ModelError, match="AutoModelForImageClassification finds no model with safetensors"
    ):
        build_model(f"huggingface:{folder}")
