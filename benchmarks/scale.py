"""What Hessians of a large language model cost: measured on two blocks of a random Llama in the
shape of 7B, and by arithmetic for the shapes of 1B, 7B and 70B. docs/SCALE.md has both.

    OMP_NUM_THREADS=1 python benchmarks/scale.py [--tokens 128] [--batches 2] [--arithmetic]

Measured: seconds and memory of one block's pass, with its Hessians and without, for each token.
Arithmetic: from the layers' shapes, with the package's own groups of Hessians; times of
eliminations go as rows x columns^3 from `SECONDS` for 4096 x 4096."""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers

from apportion.compressors.calibration import over
from apportion.compressors.hessian import collect_hessians
from apportion.compressors.kinds.find import find_layers
from apportion.compressors.layers import LayerSpec
from apportion.db.layers.passes import Passes, groups

SECONDS = 48.9
"""unstr-0.50, w4 and 2:4 of one layer of 4096 x 4096 on an NVIDIA H200."""
TOKENS = 128 * 2048
"""Of the calibration data."""
RATE = 20e12
"""Operations a second that are assumed of a large GPU, in double (Hessians) and in single
precision (forward)."""
BITS = 32 + 17 + 4 + 17
"""Of a weight in a database with dense, unstr-0.50, w4 and 2:4: float32, and a bit for each
weight with half of the values; scales left out."""


@dataclass(frozen=True)
class Shape:
    name: str
    blocks: int
    width: int
    inner: int
    pairs: int
    vocabulary: int

    def layers(self) -> list[LayerSpec]:
        """Of one block; `pairs`: rows of keys and of values."""
        w, i = self.width, self.inner
        own = {
            "q": (w, w),
            "k": (self.pairs, w),
            "v": (self.pairs, w),
            "o": (w, w),
            "gate": (i, w),
            "up": (i, w),
            "down": (w, i),
        }
        return [LayerSpec(name, "linear", s, 1, *s) for name, s in own.items()]


SHAPES = (
    Shape("1B", 16, 2048, 8192, 512, 128256),
    Shape("7B", 32, 4096, 11008, 4096, 32000),
    Shape("70B", 80, 8192, 28672, 1024, 32000),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--arithmetic", action="store_true")
    options = parser.parse_args()
    if not options.arithmetic:
        _measure(SHAPES[1], options.batches, options.tokens)
    for shape in SHAPES:
        _calculate(shape)


def _measure(shape: Shape, batches: int, length: int) -> None:
    config = transformers.LlamaConfig(
        vocab_size=1000,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=2,
        num_attention_heads=32,
        use_cache=False,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    data = over(*({"input_ids": torch.randint(1, 999, (1, length))} for _ in range(batches)))
    tokens = batches * length
    with tempfile.TemporaryDirectory() as folder:
        found = find_layers(model, data)
        passes = Passes(model, data, found, False, Path(folder) / "inputs")
        print(f"two blocks of {shape.name}, {tokens} tokens, {torch.get_num_threads()} threads")
        for stage in passes.stages(list(enumerate(found.layers))):
            began = time.perf_counter()
            stage.data.run(model)
            alone = time.perf_counter() - began
            *before, last = groups(stage.layers)
            assert not before
            Path("/proc/self/clear_refs").write_text("5")
            start, began = _memory("VmRSS"), time.perf_counter()
            hessians = collect_hessians(model, [layer for _, layer in last], stage.last)
            both = time.perf_counter() - began
            size = sum(hessian.nbytes for hessian in hessians.values())
            print(
                f"a block: forward {1e3 * alone / tokens:.1f} ms a token, with Hessians "
                f"{1e3 * both / tokens:.1f}; Hessians {size / 1e9:.2f} GB, the process grows by "
                f"{(_memory('VmHWM') - start) / 1e9:.2f} GB",
                flush=True,
            )
            del hessians


def _calculate(shape: Shape) -> None:
    block = shape.layers()
    weights = sum(layer.rows * layer.columns for layer in block)
    whole = weights * shape.blocks
    parameters = whole + 2 * shape.vocabulary * shape.width
    of_block = 8 * sum(layer.columns**2 for layer in block)
    largest = 8 * max(layer.columns for layer in block) ** 2
    every = [
        replace(layer, name=f"{n}.{layer.name}") for n in range(shape.blocks) for layer in block
    ]
    runs, passes = (len(groups(list(enumerate(own)))) for own in (block, every))
    forward = 2 * whole * TOKENS
    hessian = 2 * sum(layer.columns**2 for layer in block) * shape.blocks * TOKENS
    blocks = (runs * forward + hessian) / RATE
    before = (passes * forward + hessian) / RATE
    unit = sum(layer.rows * layer.columns**3 for layer in block) / 4096**4
    eliminate = unit * shape.blocks * SECONDS
    print(f"\n{shape.name}: {parameters / 1e9:.2f} G parameters, {4 * parameters / 1e9:.0f} GB")
    print(f"Hessians: largest {largest / 1e9:.2f} GB, a block's {of_block / 1e9:.2f} GB")
    print(f"kept between blocks: {4 * TOKENS * shape.width / 1e9:.1f} GB")
    print(f"passes of the whole model: {passes}; runs of each block: {runs}")
    print(f"forward once {forward / 1e15:.2f}e15, Hessians {hessian / 1e15:.2f}e15 operations")
    print(f"at {RATE:.0e} a second: whole passes {before / 60:.0f} min, blocks {blocks / 60:.0f}")
    print(
        f"elimination: {unit:.1f} units a block, {eliminate / 3600:.1f} h on one GPU, "
        f"{eliminate / 8 / 3600:.1f} h on eight"
    )
    print(f"database: {whole * BITS / 8 / 1e9:.0f} GB")


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


if __name__ == "__main__":
    main()
