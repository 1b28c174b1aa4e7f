"""Exports of models that take text: folders of transformers', and programs that stay open in the
number of texts and their length."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import apportion
from apportion.compressors.errors import ModelError
from apportion.compressors.levels import parse_level
from apportion.evaluators.rewriting import onnx_model
from apportion.evaluators.rewriting.shapes import by_size, widest
from apportion.search.export.exporting import Exported, export, score_profile
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.pipeline import ModelProblem, prepare
from tests import language

transformers = pytest.importorskip("transformers", reason="apportion[huggingface] is not installed")
LEVEL = "mag:unstr-0.50+rtn:w8"


def job(
    folder: Path, made: Any, model: str | None = None, task: str = "causal-lm"
) -> dict[str, Any]:
    """A job on plain text with a model, which is named or lies in a folder."""
    source = folder / "dense"
    if model is None:
        made.save_pretrained(source)
        language.save_tokenizer(source)
    files = {}
    for seed, part in enumerate(("calibration", "test")):
        files[part] = str(folder / f"{part}.txt")
        Path(files[part]).write_text(language.text(random.Random(seed), 300))
    tokenizer = {} if model is None else {"tokenizer": language.save_tokenizer(folder / "words")}
    return {
        "workload": {
            "model": model or f"huggingface:{source}",
            "task": {"kind": task},
            "data": {"kind": "text", **files, "sequence": 16, **tokenizer},
            "batch_size": 8,
        },
        "database": {"path": str(folder / "database"), "levels": ["dense", LEVEL]},
        "corrections": {"export": []},
    }


def exported(problem: ModelProblem, out: Path, *formats: str) -> Exported:
    """The model with every layer compressed."""
    profile = dict.fromkeys(problem.database.layers, parse_level(LEVEL))
    return export(score_profile(profile, problem, "all"), problem, out, formats=formats)


def ids(samples: int, length: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(samples)
    drawn = torch.randint(5, language.VOCABULARY, (samples, length), generator=generator)
    kinds = torch.zeros_like(drawn)
    return {"input_ids": drawn, "attention_mask": kinds + 1, "token_type_ids": kinds}


def test_a_folder_of_transformers_is_what_from_pretrained_loads(tmp_path: Path) -> None:
    content = job(tmp_path, language.causal()) | {"layers": {"skip": ["lm_head"]}}
    with prepare(parse_model_job(content, tmp_path / "job.yaml")) as problem:
        assert "lm_head" not in problem.database.layers  # tied to the embedding: dense anyway
        made = exported(problem, tmp_path / "out", "huggingface", "safetensors")
        again = exported(problem, tmp_path / "out", "huggingface")
    folder = tmp_path / "out" / "huggingface"
    assert made.files["huggingface"] == again.files["huggingface"] == folder
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    with safe_open(tmp_path / "dense" / "model.safetensors", "pt") as file:
        assert names == set(file.keys())  # the tied weight once
    words = transformers.AutoTokenizer.from_pretrained(folder)
    assert words("badu babb")["input_ids"]
    found = made.content["exports"]["huggingface"]
    assert found["largest_difference"] == 0
    assert found["perplexity"] == made.content["perplexity"]["stitched"]
    assert found["bytes"] == (folder / "model.safetensors").stat().st_size
    assert float((loaded.transformer.h[0].mlp.c_fc.weight == 0).double().mean()) >= 0.5
    assert loaded.config.use_cache == (
        transformers.AutoConfig.from_pretrained(tmp_path / "dense").use_cache
    )


def test_a_model_that_is_none_of_transformers_has_no_folder(tmp_path: Path) -> None:
    content = job(tmp_path, None, "tests.language:causal")
    with (
        prepare(parse_model_job(content, tmp_path / "job.yaml")) as problem,
        pytest.raises(ModelError, match="huggingface: model .tests.language:causal. is none"),
    ):
        exported(problem, tmp_path / "out", "huggingface")
    assert not (tmp_path / "out").exists()


def test_a_sentence_transformers_folder_is_one_again(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.models")
    language.encoder().save_pretrained(tmp_path / "bert")  # type: ignore[operator]
    language.save_tokenizer(tmp_path / "bert")
    steps = [
        modules.Transformer(str(tmp_path / "bert"), max_seq_length=16),
        modules.Pooling(32, "mean"),
        modules.Normalize(),
    ]
    library.SentenceTransformer(modules=steps, device="cpu").save(str(tmp_path / "dense"))
    rng = random.Random(0)
    texts = [language.text(rng, 2 + i % 7) for i in range(40)]
    rows = [f"{one},{other},{i % 5 / 4}" for i, (one, other) in enumerate(pairwise(texts))]
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    files = dict.fromkeys(("calibration", "test"), str(tmp_path / "pairs.csv"))
    content = {
        "workload": {
            "model": f"huggingface:{tmp_path / 'dense'}",
            "task": {"kind": "sentence-similarity"},
            "data": {"kind": "csv", "text": [0, 1], "label": 2, "sequence": 16, **files},
        },
        "database": {"path": str(tmp_path / "database"), "levels": ["dense", LEVEL]},
    }
    with prepare(parse_model_job(content, tmp_path / "job.yaml")) as problem:
        made = exported(problem, tmp_path / "out", "huggingface")
        model: Any = problem.workload.model
        problem.database.stitch(model, dict.fromkeys(problem.database.layers, parse_level(LEVEL)))
    assert made.content["exports"]["huggingface"]["largest_difference"] == 0
    again = library.SentenceTransformer(str(made.files["huggingface"]), device="cpu")
    assert [type(step).__name__ for step in again] == ["Transformer", "Pooling", "Normalize"]
    assert again.max_seq_length == 16
    tokens = again.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    found = again.encode(texts, convert_to_tensor=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_model_from_gguf_is_exported_as_any_other(tmp_path: Path) -> None:
    """In the floats and by the names of its checkpoint; with a head of its own, unlike the file's
    many kin whose embedding is their head."""
    source = language.save_gguf(tmp_path / "model.gguf")
    content = job(tmp_path, None, f"huggingface:{source}")
    with prepare(parse_model_job(content, tmp_path / "job.yaml")) as problem:
        made = exported(problem, tmp_path / "out", "huggingface")
        model: Any = problem.workload.model
        problem.database.stitch(model, dict.fromkeys(problem.database.layers, parse_level(LEVEL)))
    again = transformers.AutoModelForCausalLM.from_pretrained(made.files["huggingface"])
    given = ids(3, 9)
    del given["token_type_ids"]
    with torch.no_grad():
        torch.testing.assert_close(again(**given).logits, model(**given).logits, rtol=0, atol=0)
    (note,) = made.content["exports"]["huggingface"]["notes"]
    assert "tokenizer could not be taken from the GGUF file" in note


@pytest.mark.slow
@pytest.mark.parametrize("name", ["causal", "llama", "mixture", "masked"])
def test_programs_take_any_number_of_texts_of_any_length(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="apportion[onnx] is not installed")
    task = "masked-lm" if name == "masked" else "causal-lm"
    content = job(tmp_path, getattr(language, name)(), task=task)
    with prepare(parse_model_job(content, tmp_path / "job.yaml")) as problem:
        made = exported(problem, tmp_path / "out", "onnx", "torch", "huggingface")
    kind = transformers.AutoModelForMaskedLM if name == "masked" else None
    kind = kind or transformers.AutoModelForCausalLM
    plain = kind.from_pretrained(made.files["huggingface"]).eval()
    assert ("lm_head.weight" in plain.all_tied_weights_keys) == (name in ("causal", "llama"))
    opened = onnx_model.session(made.files["model.onnx"], 1)
    program = torch.export.load(made.files["model.pt2"]).module()
    for samples, length in ((1, 7), (5, 23)):
        given = ids(samples, length)
        given["attention_mask"][-1, 4:] = 0
        if name in ("llama", "mixture"):
            del given["token_type_ids"]  # they have none
        with torch.no_grad():
            expected = plain(**given, use_cache=False).logits
            own = program(**given).logits
        counted = given["attention_mask"].bool()
        for found in (own, onnx_model.run(opened, given)):
            torch.testing.assert_close(found[counted], expected[counted], rtol=1e-3, atol=1e-3)
    notes = [n for one in made.content["exports"].values() for n in one.get("notes", ())]
    assert not any("one size" in note for note in notes)


@pytest.mark.parametrize("kind", ["regression", "multi-label", "functions"])
def test_models_with_targets_for_texts_take_any_length(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="apportion[onnx] is not installed")
    with targets(tmp_path, kind) as problem:
        made = exported(problem, tmp_path / "out", "onnx", "torch", "safetensors")
    plain = language.classifier()
    plain.load_state_dict(load_file(made.files["model.safetensors"]))
    opened = onnx_model.session(made.files["model.onnx"], 1)
    program = torch.export.load(made.files["model.pt2"]).module()
    for samples, length in ((1, 5), (3, 31)):
        given = ids(samples, length)
        with torch.no_grad():
            expected = plain(**given).logits
            torch.testing.assert_close(program(**given).logits, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(onnx_model.run(opened, given), expected, rtol=1e-3, atol=1e-3)
    assert "one size" not in str(made.content["exports"])


def targets(folder: Path, kind: str) -> ModelProblem:
    """Three numbers for each text: a job, or the same model and batches in memory."""
    database = {"path": str(folder / "database"), "levels": ["dense", LEVEL]}
    if kind == "functions":
        given = ids(8, 9) | {"numbers": torch.zeros(8, 3)}

        def forward(model: Any, batch: Any) -> Any:
            return model(**{key: value for key, value in batch.items() if key != "numbers"}).logits

        def distance(outputs: Any, batch: Any) -> Any:
            return (outputs - batch["numbers"]).square().mean(1)

        return apportion.prepare(
            language.classifier(),
            task=apportion.Task(distance, distance, forward=forward, higher_is_better=False),
            calibration=[given],
            test=[given],
            levels=["dense", LEVEL],
            budgets={},
            corrections={"export": []},
            database=folder / "database",
        )
    rng, files = random.Random(0), {}
    for part in ("calibration", "test"):
        rows = [f"{language.text(rng, 3 + i % 6)},0,1,{i % 2}" for i in range(12)]
        files[part] = str(folder / f"{part}.csv")
        Path(files[part]).write_text("\n".join(["text,a,b,c", *rows]))
    words = language.save_tokenizer(folder / "words")
    data = {"kind": "csv", **files, "text": "text", "label": ["a", "b", "c"], "tokenizer": words}
    content = {
        "workload": {"model": "tests.language:classifier", "task": {"kind": kind}, "data": data},
        "database": database,
        "corrections": {"export": []},
    }
    return prepare(parse_model_job(content, folder / "job.yaml"))


def test_axes_that_an_exporter_cannot_keep_open_are_told() -> None:
    def make(axes: Any) -> int:
        if len(axes) > 1:
            raise ModelError("the length is a constant")
        return len(axes)

    assert widest(("batch", "sequence"), make) == (
        1,
        ["Inputs have one size along sequence: the length is a constant."],
    )
    assert widest(("batch",), make) == (1, [])

    def never(axes: Any) -> int:
        raise ModelError(f"no {len(axes)}")

    with pytest.raises(ModelError, match="no 2"):
        widest(("batch", "sequence"), never)


def test_a_program_of_one_size_runs_in_parts() -> None:
    sizes = []

    def run(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return 2 * x

    x = torch.arange(6).reshape(3, 2)
    assert torch.equal(by_size(run, 1)(x=x), 2 * x)
    assert sizes == [1, 1, 1]
    assert by_size(run, None) is run
