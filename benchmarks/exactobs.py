"""ExactOBS's speed: the textbook algorithm (one rank-1 update of every row's d x d inverse a step,
in place by `baddbmm_`) against the factored form, compiled and in plain torch; alternating, in one
process, medians over the repeats.

    python benchmarks/exactobs.py [--columns 144 576 1152 2304 4608] [--kinds unstr 2:4 w4 block4]
        [--repeats 3] [--device cpu]
    python benchmarks/exactobs.py --layer 512x4608 [--levels unstr-0.10..0.99]
        (one whole layer: time and memory)

Rows of random weights and a correlated random Hessian, float32. `rate` is what the compiled form's
matrix products do of what torch's matrix product alone does here (over 100 % where that leaves out
wider vector instructions); bytes and flop are per row, by counting: textbook 2 x 4 d^2 bytes and 2
d^2 flop a step; the compiled form d^3 / 3 flop in matrix products (half of H^-1 alone is kept), and
with a refresh every 2 sqrt(m) steps 2.4 d^2.5 bytes: a third of them for B at the refreshes, the
rest for the U that every step reads. 2:4 stops half-way."""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from apportion.compressors.elimination import dispatch, factored, textbook
from apportion.compressors.elimination.dispatch import Limits
from apportion.compressors.grids import fit_grid
from apportion.compressors.layers import LayerSpec
from apportion.compressors.levels import expand_levels
from apportion.compressors.obs import compress_layer
from apportion.search.cli.progress import TerminalProgress

_ROWS = {144: 128, 288: 64, 576: 64, 1152: 64, 2304: 8}  # beyond: 2

_SHARE = {"2:4": 7 / 8}
"""Share of a whole elimination's flop."""


def problem(rows: int, d: int, device: str) -> tuple[Tensor, Tensor]:
    """Weights [rows, d] and a Hessian [d, d], float32: inputs with a common part, as behind a
    ReLU."""
    generator = torch.Generator().manual_seed(d)
    x = torch.randn(2 * d, d, generator=generator) * torch.rand(
        d, generator=generator
    ) + torch.rand(2 * d, 1, generator=generator)
    hessian = 2 * x.T @ x / len(x) + 0.01 * torch.eye(d)
    return torch.randn(rows, d, generator=generator).to(device), hessian.to(device)


def forms(
    kind: str, w: Tensor, hinv: Tensor, threads: int
) -> tuple[Callable[[], Any], Callable[[], Any], Callable[[], Any]]:
    """Textbook, as it is used (compiled on the CPU), and in plain torch."""
    limits = Limits(8 << 30, threads)
    if kind == "unstr":
        return (
            lambda: textbook.eliminate(w, hinv),
            lambda: dispatch.eliminate(w, hinv, limits),
            lambda: factored.eliminate(w, hinv),
        )
    if kind.startswith("block"):
        size = int(kind.removeprefix("block"))
        return (
            lambda: textbook.eliminate_blocks(w, hinv, size),
            lambda: dispatch.eliminate_blocks(w, hinv, size, limits),
            lambda: factored.eliminate_blocks(w, hinv, size),
        )
    if ":" in kind:
        n, m = map(int, kind.split(":"))
        return (
            lambda: textbook.prune_n_of_m(w, hinv, n, m),
            lambda: dispatch.prune_n_of_m(w, hinv, n, m, limits),
            lambda: factored.prune_n_of_m(w, hinv, n, m),
        )
    grid, fixed = fit_grid(w, int(kind.removeprefix("w"))), torch.zeros_like(w, dtype=torch.bool)
    return (
        lambda: textbook.quantize(w, hinv, grid, fixed),
        lambda: dispatch.quantize(w, hinv, grid, fixed, limits),
        lambda: factored.quantize(w, hinv, grid, fixed),
    )


def seconds(run: Callable[[], Any], device: str) -> float:
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def product_rate(device: str) -> float:
    """Flop per second of a large matrix product."""
    a = torch.randn(2048, 2048, device=device)
    return 2 * 2048**3 / min(seconds(lambda: a @ a, device) for _ in range(5))


def onednn_rate() -> float:
    """The same, of the products that plain torch refreshes with on the CPU."""
    a = torch.randn(2048, 2048).to_mkldnn()
    return 2 * 2048**3 / min(seconds(lambda: functional.linear(a, a), "cpu") for _ in range(5))


def compare(options: argparse.Namespace) -> None:
    rate = product_rate(options.device)
    product = f"matrix product {rate / 1e9:.0f} GFLOP/s"
    if options.device == "cpu" and torch.backends.mkldnn.is_available():
        product += f" (oneDNN {onednn_rate() / 1e9:.0f})"
    print(f"{options.device}, {options.threads} threads; {product}; medians of {options.repeats}")
    heads = (
        ("d", 5),
        ("rows", 4),
        ("kind", 7),
        ("textbook s", 11),
        ("ours s", 9),
        ("", 7),
        ("torch s", 9),
        ("", 7),
        ("rate", 5),
    )
    print(" ".join(f"{head:>{width}}" for head, width in heads) + "  per row")
    for d in options.columns:
        rows = _ROWS.get(d, 2) if options.device == "cpu" else 128
        w, hessian = problem(rows, d, options.device)
        hinv = torch.linalg.inv(hessian.double()).float()
        for kind in options.kinds:
            every = forms(kind, w, hinv, options.threads)
            if d == options.columns[0] or options.device != "cpu":  # a size has its own kernel
                for run in every[1:]:
                    run()  # compile, and warm up
            times: list[list[float]] = [[], [], []]
            for _ in range(options.repeats):
                for run, own in zip(every, times, strict=True):
                    own.append(seconds(run, options.device))
            book, ours, plain = map(statistics.median, times)
            share = rows * d**3 / 3 * _SHARE.get(kind, 1.0) / ours / rate
            print(
                f"{d:5} {rows:4} {kind:>7} {book:11.3f} {ours:9.4f} {book / ours:6.1f}x "
                f"{plain:9.4f} {book / plain:6.1f}x "
                f"{share:5.0%}  textbook {8 * d**3 / 1e9:.3g} GB {2 * d**3 / 1e9:.3g} GFLOP, "
                f"ours {2.4 * d**2.5 / 1e9:.2g} GB {d**3 / 3 / 1e9:.3g} GFLOP",
                flush=True,
            )


def whole_layer(options: argparse.Namespace) -> None:
    rows, d = map(int, options.layer.split("x"))
    w, hessian = problem(rows, d, options.device)
    spec = LayerSpec(options.layer, "linear", (rows, d), 1, rows, d)
    start = time.perf_counter()
    with TerminalProgress() as progress:
        for made in compress_layer(
            w, spec, hessian[None].double(), expand_levels(options.levels), progress=progress
        ):
            text = f"{made.level!s:16} normalised error {made.normalized_error:.6f}"
            print(f"{text} after {time.perf_counter() - start:7.1f} s", flush=True)
    print(
        f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB, "
        f"{options.threads} threads"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--columns", type=int, nargs="+", default=[144, 576, 1152, 2304, 4608])
    parser.add_argument("--kinds", nargs="+", default=["unstr", "2:4", "w4", "block4"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layer", help="ROWSxCOLUMNS: compress one whole layer instead")
    parser.add_argument("--levels", nargs="+", default=["unstr-0.10..0.99"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    whole_layer(options) if options.layer else compare(options)


if __name__ == "__main__":
    main()
