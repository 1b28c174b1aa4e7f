"""Ladders of channels: seconds of the elimination in compressors/groups/ladder.py and of the
equations by the letter (tests/compressors/groups/textbook.py), in turns, and the ratio of their
medians; whether both take the channels in the same order.

    python benchmarks/ladders.py [--channels 256 1024 2048] [--kernel 1] [--rounds 3]

From the repository's folder. One layer of as many rows as channels reads them; a random Hessian of
4 samples a column, damped."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from apportion.compressors.groups.find import ChannelGroup
from apportion.compressors.groups.ladder import Ladder, Reader, channel_ladder, reader
from apportion.compressors.groups.moments import Moments
from apportion.compressors.layers import LayerSpec
from tests.compressors.groups import textbook


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--channels", type=int, nargs="+", default=[256, 1024, 2048])
    parser.add_argument("--kernel", type=int, default=1, help="columns of each channel")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for channels in options.channels:
        group, own = problem(channels, options.kernel)
        seconds: dict[str, list[float]] = {"factored": [], "textbook": []}
        ladders: dict[str, Ladder] = {}
        for _ in range(options.rounds):
            for name, run in (("factored", channel_ladder), ("textbook", textbook.channel_ladder)):
                start = time.perf_counter()
                ladders[name] = run(group, {"layer": own})
                seconds[name].append(time.perf_counter() - start)
        fast, slow = (statistics.median(own) for own in seconds.values())
        same = (ladders["factored"].order == ladders["textbook"].order).mean()
        print(
            f"{channels} channels x {options.kernel}: {fast:.2f} s, by the letter {slow:.2f} s, "
            f"ratio {slow / fast:.1f}; {same:.1%} of the order alike",
            flush=True,
        )


def problem(channels: int, kernel: int) -> tuple[ChannelGroup, Reader]:
    torch.manual_seed(0)
    d = channels * kernel
    weight = torch.randn(channels, d, dtype=torch.float64)
    x = torch.randn(4 * d, d, dtype=torch.float64) @ torch.randn(d, d, dtype=torch.float64)
    moments = Moments((x.T @ x / len(x))[None], torch.zeros(1, d, dtype=torch.float64))
    layer = LayerSpec("layer", "linear", (channels, d), 1, channels, d)
    columns = np.tile(np.arange(channels), kernel)[None]
    group = ChannelGroup("group", channels, {}, {"layer": columns}, ())
    return group, reader(layer, weight, moments, 1e-3)


if __name__ == "__main__":
    main()
