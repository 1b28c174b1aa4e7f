"""What this machine's processor has for products of integers, and which products it may get
wrong."""

from __future__ import annotations

import platform
from pathlib import Path

from apportion.compressors.activations import InputGrid
from apportion.compressors.grids import Grid

_CPUINFO = Path("/proc/cpuinfo")
_WIDEST = {"avx512bw": "AVX-512", "avx2": "AVX2", "avx": "AVX", "ssse3": "SSSE3"}
"""As Linux names them, the widest first."""


def instructions(cpuinfo: Path = _CPUINFO) -> str:
    """The vector instructions by which ONNX Runtime picks its integer kernels, such as `AVX2, no
    VNNI`; the architecture alone where it is not x86-64, or where the system does not tell (read
    from Linux's /proc/cpuinfo)."""
    machine = platform.machine()
    if machine.lower() not in ("x86_64", "amd64"):
        return machine
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    flags = next(
        (set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), None
    )
    if flags is None:
        return f"{machine}, VNNI unknown"
    widest = next((name for flag, name in _WIDEST.items() if flag in flags), "SSE2")
    return f"{widest}, {'VNNI' if flags & {'avx512_vnni', 'avx_vnni'} else 'no VNNI'}"


def may_be_signed(weight: Grid, activation: InputGrid | None) -> bool:
    """Whether weight codes may be stored as int8 about 0, which is faster
    (benchmarks/onnx_weights.py) and what TensorRT takes: those of a symmetric grid whose products
    with the layer's input codes, if it has any, are right on every processor.

    With AVX2 or AVX-512 but without VNNI, ONNX Runtime adds products of uint8 and int8 codes in
    pairs in 16 bits, where the sum saturates (vpmaddubsw). Products of uint8 and uint8 codes are
    widened first (vpmaddwd), so that they are exact. The session option session.x64quantprecision
    is no way out: it refuses files in which layers share a constant, such as equal zero points
    ("Attempt to replace the existing tensor": it names the converted copy after the constant, once
    for each use), and whoever runs the file would have to set it."""
    symmetric = bool((weight.zero == 2 ** (weight.bits - 1)).all())
    largest = 0 if activation is None else 2 * (2**activation.bits - 1) * 2 ** (weight.bits - 1)
    return symmetric and largest < 2**15
