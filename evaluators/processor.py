"""What this machine's processor has for products of integers, and which products it may get wrong."""

from __future__ import annotations

import platform
from pathlib import Path

from compressors.activations import ActivationGrid
from compressors.grids import Grid

_CPUINFO = Path("/proc/cpuinfo")
_WIDEST = {"avx512bw": "AVX-512", "avx2": "AVX2", "avx": "AVX", "ssse3": "SSSE3"}
"""As Linux names them, the widest first."""


def instructions(cpuinfo: Path = _CPUINFO) -> str:
    """The vector instructions by which ONNX Runtime picks its integer kernels, such as `AVX2, no VNNI`; the architecture alone
    where it is not x86-64, or where the system does not tell (read from Linux's /proc/cpuinfo)."""
    machine = platform.machine()
    if machine.lower() not in ("x86_64", "amd64"):
        return machine
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    flags = next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), None)
    if flags is None:
        return f"{machine}, VNNI unknown"
    widest = next((name for flag, name in _WIDEST.items() if flag in flags), "SSE2")
    return f"{widest}, {'VNNI' if flags & {'avx512_vnni', 'avx_vnni'} else 'no VNNI'}"


def may_saturate(weight: Grid, activation: ActivationGrid) -> bool:
    """Whether products of input codes (unsigned) and weight codes moved to int8 about 0 go wrong on some processors: with AVX2 or
    AVX-512 but without VNNI they are added in pairs in 16 bits, where the sum saturates (vpmaddubsw)."""
    largest = 2 * (2**activation.bits - 1) * 2 ** (weight.bits - 1)
    return largest >= 2**15
