"""What torch computes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from apportion.compressors.machine import usable_cpus


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """torch computes on so many threads inside. How it shares sums among threads changes their last
    bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def full_precision() -> Iterator[None]:
    """float32 is float32 inside: on CUDA torch would compute convolutions in TF32, whose 10 bits of
    mantissa are less than what tells two good candidates apart."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def limit_threads() -> None:
    """No more of them than this process may use CPUs: torch counts those of the machine, of which a
    container or a batch system may leave it a few."""
    torch.set_num_threads(min(torch.get_num_threads(), usable_cpus()))


def device_for(gpus: float) -> str:
    """Where work that may take `gpus` of them runs: on CUDA where there is some, and torch finds
    it."""
    return "cuda" if gpus and torch.cuda.is_available() else "cpu"
