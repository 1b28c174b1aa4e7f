"""Folders of compressed-tensors: what the library and transformers make of the codes that are
written here, and what the format refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from apportion.compressors import formats
from apportion.compressors.errors import ConfigurationError, ModelError
from apportion.compressors.grids import GridOptions, fit_weights
from apportion.compressors.levels import parse_level
from apportion.evaluators.models.huggingface import Logits
from apportion.search.cli.main import main
from apportion.search.export.exporting import (
    Exported,
    check_formats,
    check_job,
    export,
    score_profile,
)
from apportion.search.export.kernels import vllm
from apportion.search.export.schemes import scheme_of
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.pipeline import ModelProblem, prepare
from tests import language
from tests.fitted import fitted
from tests.search.test_text_exports import job

transformers = pytest.importorskip("transformers", reason="apportion[huggingface] is not installed")
pytest.importorskip("compressed_tensors", reason="apportion[compressed-tensors] is not installed")

FORMAT = "compressed-tensors"


def content(folder: Path, model: Any, *levels: str, **grid: Any) -> dict[str, Any]:
    made = job(folder, model)
    made["database"] |= {"levels": ["dense", *levels], "grid": {"symmetric": True, **grid}}
    return made | {"layers": {"skip": ["model.embed_tokens"]}}


def opened(folder: Path, made: dict[str, Any]) -> ModelProblem:
    return prepare(parse_model_job(made, folder / "job.yaml"))


def exported(problem: ModelProblem, out: Path) -> Exported:
    """Every layer at another of its levels, in turns."""
    profile = {}
    for i, (name, levels) in enumerate(problem.database.levels().items()):
        levels = [level for level in levels if level != "dense"] or ["dense"]
        profile[name] = parse_level(levels[i % len(levels)])
    return export(score_profile(profile, problem, "all"), problem, out, formats=(FORMAT,))


def stitched(problem: ModelProblem, made: Exported) -> Any:
    profile = {name: parse_level(level) for name, level in made.content["profile"].items()}
    model = problem.workload.model
    problem.database.stitch(model, profile)
    return model


def ids() -> torch.Tensor:
    return torch.randint(5, 40, (3, 11), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["Llama", "Qwen3"])
def test_transformers_computes_what_was_scored(kind: str, tmp_path: Path) -> None:
    """Each layer another format, loaded as users load it."""
    levels = ["rtn:w8", "rtn:w4g16", "rtn:w3g16", "rtn:fp8", "rtn:w8a8", "2:4+rtn:w4", "rtn:w5a6"]
    levels += ["rtn:w8a8-token", "rtn:w4g16a8-token"]
    dense = language._decoder(kind, tie_word_embeddings=False, head_dim=8)
    with opened(tmp_path, content(tmp_path, dense, *levels)) as problem:
        made = exported(problem, tmp_path / "out")
        expected = stitched(problem, made)
    found = transformers.AutoModelForCausalLM.from_pretrained(made.files[FORMAT])
    with torch.no_grad():
        assert torch.equal(found(ids()).logits, expected(ids()).logits)
    report = made.content["exports"][FORMAT]
    assert report["largest_difference"] == 0
    assert report["perplexity"] == made.content["perplexity"]["stitched"]
    assert transformers.AutoTokenizer.from_pretrained(made.files[FORMAT])("badu")["input_ids"]
    card = made.files["model_card.md"].read_text()
    assert "Humming" in card
    assert "not loaded" in card
    config = json.loads((made.files[FORMAT] / "config.json").read_text())["quantization_config"]
    assert config["format"] == "mixed-precision"
    groups = config["config_groups"].values()
    encodings = {target: group["format"] for group in groups for target in group["targets"]}
    for name, level in made.content["profile"].items():
        scheme = scheme_of(parse_level(level), GridOptions(symmetric=True))
        assert encodings.get(name) == (scheme and scheme.encoding), name
        if scheme is None and name != "model.embed_tokens":
            assert name in config["ignore"]
    notes = " ".join(report["notes"])
    assert "tie: auto" in notes
    assert "stored with their zeros" in notes


def test_floats_in_blocks_come_back(tmp_path: Path) -> None:
    """All but nvfp4 to the bit; config.json has the folder loaded in bfloat16."""
    dense = wide()
    levels = ["rtn:mxfp4", "rtn:mxfp6", "rtn:mxfp8", "rtn:nvfp4"]
    with opened(tmp_path, content(tmp_path, dense, *levels)) as problem:
        made = exported(problem, tmp_path / "out")
        expected = stitched(problem, made)
        built = problem.database.levels()
    assert all(len(own) == 5 for name, own in built.items() if name != "model.embed_tokens")
    report = made.content["exports"][FORMAT]
    assert 0 < report["largest_difference"] < 0.1
    assert any("bfloat16" in note for note in report["notes"])
    found = transformers.AutoModelForCausalLM.from_pretrained(made.files[FORMAT])
    with torch.no_grad():
        assert found(ids()).logits.dtype == torch.bfloat16
    weights, own = dict(found.named_parameters()), dict(expected.named_parameters())
    for name, level in made.content["profile"].items():
        if level != "dense":
            one, other = weights[f"{name}.weight"].float(), own[f"{name}.weight"]
            gap = float((one - other).detach().abs().max() / other.detach().abs().max())
            assert gap <= (2**-8 if level == "rtn:nvfp4" else 0), (name, level)


def wide() -> Any:
    """Columns that blocks of 32 divide."""
    config = transformers.LlamaConfig(
        vocab_size=language.VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=language.POSITIONS,
        initializer_range=0.3,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).eval()


LEVELS = [f"w{bits}" for bits in range(1, 9)] + [f"w{bits}g16" for bits in range(1, 9)]


@pytest.mark.parametrize("per", ["channel", "tensor"])
@pytest.mark.parametrize(
    "text", [*LEVELS, "w8a8", "w4g16a8", "fp8", "mxfp4", "mxfp6", "mxfp8", "nvfp4"]
)
def test_the_librarys_dequantizer_reads_what_is_packed_here(text: str, per: Any) -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    from apportion.search.export.stored_codes import stored

    level, options = parse_level(text), GridOptions(per=per, symmetric=True)
    assert level.quantization is not None
    drawn = torch.randn(24, 96, generator=torch.Generator().manual_seed(1))
    grid = fit_weights(drawn, level.quantization, options)
    weight, scheme = grid.values(grid.codes(drawn)), scheme_of(level, options)
    assert scheme is not None
    parts = stored(weight, grid, scheme)
    read = BaseCompressor.get_value_from_registry(scheme.encoding)
    config = QuantizationScheme(targets=["x"], **scheme.config())
    full = {name: p.float() if p.dtype == torch.float16 else p for name, p in parts.items()}
    again = read.decompress(full, config)["weight"].float()
    torch.testing.assert_close(again, weight, rtol=2**-8 if text == "nvfp4" else 0, atol=0)
    codes = parts["weight_packed"] if "weight_packed" in parts else parts["weight"]
    assert codes.nbytes == 24 * 96 * grid.bits // 8
    if scheme.per == "group":
        assert parts["weight_scale"].numel() == grid.scale.numel()


def test_files_take_what_is_counted(tmp_path: Path) -> None:
    """Layer by layer; grids per row are counted with zero points, which symmetric ones need not
    store."""
    levels = ["rtn:w4g16", "rtn:w3g16", "rtn:mxfp4", "rtn:nvfp4", "rtn:fp8", "rtn:w4"]
    with opened(tmp_path, content(tmp_path, wide(), *levels)) as problem:
        made = exported(problem, tmp_path / "out")
        state = load_file(made.files[FORMAT] / "model.safetensors")
        for name, level in made.content["profile"].items():
            if level == "dense":
                continue
            parts = {key: t for key, t in state.items() if key.startswith(f"{name}.weight")}
            taken = 8 * sum(t.nbytes for key, t in parts.items() if not key.endswith("shape"))
            rows = problem.database.layers[name].shape[0] if level == "rtn:w4" else 0
            assert taken == problem.database.entry(name, level).bits - 8 * rows, (name, level)
        space = problem.full_space
        names = zip(space.layers, space.levels, strict=True)
        candidate = [own.index(made.content["profile"][layer]) for layer, own in names]
    kept = 8 * sum(t.nbytes for key, t in state.items() if not key.endswith("shape"))
    assert abs(kept / space.total("bits", candidate) - 1) < 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": {"symmetric": False}}, r"level 'rtn:w4': its grids have zero points.*symmetric"),
        ({"levels": ["dense", "a8"]}, r"level 'a8': its inputs alone are quantized.*Valid are wB"),
        ({"levels": ["dense", "rtn:w8a12"]}, r"inputs have 12 bits, and runtimes up to 8"),
        ({"levels": ["dense", "channels-0.50"]}, r"does not say which channels are left"),
    ],
)
def test_levels_are_refused_before_anything_is_built(
    change: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = content(tmp_path, language.llama(), "rtn:w4")
    made["database"] |= change
    made["layers"] = {}
    with pytest.raises(ModelError, match=message):
        check_job([FORMAT], parse_model_job(made, tmp_path / "job.yaml"))
    (tmp_path / "job.json").write_text(json.dumps(made))
    assert main(["search", str(tmp_path / "job.json"), "--format", FORMAT]) != 0
    assert "export format compressed-tensors" in capsys.readouterr().err
    assert not (tmp_path / "database").exists()


@pytest.mark.parametrize(
    ("model", "task", "message"),
    [
        ("masked", "masked", r"token_type_embeddings' at level 'rtn:w4': its module is Embedding"),
        ("mixture", "causal", r"experts are stacked in 'model.layers.0.mlp.experts.gate_up_proj'"),
    ],
)
def test_layers_are_refused_before_the_search(
    model: str, task: str, message: str, tmp_path: Path
) -> None:
    made = job(tmp_path, getattr(language, model)(), task=f"{task}-lm") | {"layers": {}}
    made["database"] |= {"levels": ["dense", "rtn:w4"], "grid": {"symmetric": True}}
    with opened(tmp_path, made) as problem, pytest.raises(ModelError, match=message):
        check_formats([FORMAT], problem)


def test_modules_of_another_kind_are_refused_where_a_profile_quantizes_them(
    tmp_path: Path,
) -> None:
    made = content(tmp_path, language.causal(), "rtn:w4") | {"layers": {"skip": ["*.wpe"]}}
    with opened(tmp_path, made) as problem:
        with pytest.raises(ModelError, match=r"c_attn' at level 'rtn:w4': its module is Conv1D"):
            check_formats([FORMAT], problem)
        dense = dict.fromkeys(problem.database.layers, parse_level("dense"))
        check_formats([FORMAT], problem, dense)
        found = export(score_profile(dense, problem, "x"), problem, tmp_path, formats=[FORMAT])
    config = json.loads((found.files[FORMAT] / "config.json").read_text())
    assert "quantization_config" not in config


def test_a_choice_that_ranges_exclude_is_not_refused(tmp_path: Path) -> None:
    made = content(tmp_path, language.llama(), "rtn:w4", "rtn:w8a12")
    made["layers"] = {"bits": {"*": [4, 4]}}
    parsed = parse_model_job(made, tmp_path / "job.yaml")
    check_job([FORMAT], parsed)
    with prepare(parsed) as problem:
        check_formats([FORMAT], problem)


def test_a_format_of_a_users_own_has_no_codes_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(formats._NAMED, "mine", formats.Format("mine", 4, 0, "tests.mine"))
    with pytest.raises(ModelError, match=r"no codes of the format mine\. Valid are"):
        scheme_of(parse_level("2:4+mine"), GridOptions(symmetric=True))


def test_a_weight_beside_its_grid_is_refused() -> None:
    from apportion.search.export.stored_codes import stored

    level, options = parse_level("w4"), GridOptions(symmetric=True)
    assert level.quantization is not None
    drawn = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    grid, scheme = fit_weights(drawn, level.quantization, options), scheme_of(level, options)
    assert scheme is not None
    with pytest.raises(ModelError, match="does not lie on its grid"):
        stored(drawn, grid, scheme)
    skewed = fit_weights(drawn, level.quantization, GridOptions())
    with pytest.raises(ModelError, match="not symmetric"):
        stored(skewed.values(skewed.codes(drawn)), skewed, scheme)
    alone = scheme_of(parse_level("fp8"), GridOptions(per="tensor"))
    assert alone is not None
    rows = fit_weights(drawn, alone.quantization, GridOptions())
    with pytest.raises(ModelError, match="rows have scales of their own"):
        stored(rows.values(rows.codes(drawn)), rows, alone)


def test_partners_that_are_tied_are_in_one_group(tmp_path: Path) -> None:
    made = content(tmp_path, language.llama(), "rtn:w4", "rtn:w8", "rtn:w3g16")
    made["layers"] = {"tie": "auto"}
    with opened(tmp_path, made) as problem:
        assert len(problem.space.layers) == 8
        each = tuple(i % count for i, count in enumerate(problem.space.counts))
        profile = problem.profile(problem.decisions.expand(each))
        chosen = score_profile(profile, problem, "mixed")
        found = export(chosen, problem, tmp_path / "out", formats=[FORMAT])
    config = json.loads((found.files[FORMAT] / "config.json").read_text())["quantization_config"]
    groups = config["config_groups"].values()
    assert len(groups) > 1
    where = {target: i for i, group in enumerate(groups) for target in group["targets"]}
    for n in range(2):
        for parent, names in (("self_attn", "qkv"), ("mlp", ("gate", "up"))):
            places = {where.get(f"model.layers.{n}.{parent}.{name}_proj") for name in names}
            assert len(places) == 1
    assert "tie: auto" not in str(found.content["exports"][FORMAT].get("notes"))


def test_a_classifier_of_images_is_named_as_transformers_names_it(tmp_path: Path) -> None:
    """Our own wrapper's name stands before the names of the job's layers."""
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=10,
    )
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config)
    fitted(Logits(model), "classifier.classifier")
    model.save_pretrained(tmp_path / "dense")
    content = {
        "workload": {
            "model": f"huggingface:{tmp_path / 'dense'}",
            "data": {"kind": "digits"},
            "calibration_samples": 64,
        },
        "database": {
            "path": str(tmp_path / "database"),
            "levels": ["dense", "rtn:w8a8", "rtn:w6"],
            "grid": {"symmetric": True},
        },
        "layers": {"skip": ["*projection"], "tie": "auto"},
    }
    with opened(tmp_path, content) as problem:
        made = exported(problem, tmp_path / "out")
    report = made.content["exports"][FORMAT]
    assert report["largest_difference"] < 1e-4
    assert report["accuracy"] == made.content["accuracy"]["stitched"]
    config = json.loads((made.files[FORMAT] / "config.json").read_text())["quantization_config"]
    targets = [name for group in config["config_groups"].values() for name in group["targets"]]
    assert "classifier" in targets
    assert not any(name.startswith("classifier.") for name in targets)
    assert len(targets) == 7


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("w4", "Marlin"),
        ("w4g16", "no Marlin"),
        ("w3g64", "Humming"),
        ("w1", "not loaded"),
        ("w8a8", "INT8"),
        ("w4a8", "not loaded"),
        ("w4a8-token", "integer products by Humming"),
        ("w8a8-token", "INT8"),
        ("mxfp6", "not loaded"),
    ],
)
def test_the_table_of_kernels(text: str, said: str) -> None:
    scheme = scheme_of(parse_level(text), GridOptions(symmetric=True))
    assert scheme is not None
    assert vllm(scheme).startswith(said)


def test_without_the_library_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    made = parse_model_job(content(tmp_path, language.llama(), "rtn:w4"), tmp_path / "job.yaml")
    with pytest.raises(ConfigurationError, match=r"install apportion\[compressed-tensors\]"):
        check_job([FORMAT], made)
