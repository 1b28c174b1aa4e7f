"""The Triton kernel without a GPU: its arithmetic in Triton's interpreter, its code through
Triton's compiler."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="torch's CPU builds bring no triton")


def test_its_arithmetic_in_the_interpreter() -> None:
    file = Path(__file__).with_name("interpreted_kernel.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("rule", range(4))
@pytest.mark.parametrize(("kind", "block"), [("fp32", 8192), ("fp64", 2048)])
def test_it_compiles_for_hopper(kind: str, block: int, rule: int) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from apportion.compressors.elimination import fused

    types = dict.fromkeys(("W", "D", "U", "B", "OUT_VALUE", "SCALE", "ZERO"), f"*{kind}")
    types |= {"ALIVE": "*i8", "FIXED": "*i8", "LEFT": "*i32", "b_stride": "i64", "highest": "fp32"}
    types |= dict.fromkeys(("COLUMN", "OUT_COLUMN", "DUE"), "*i64") | dict.fromkeys(
        ("RULE", "BLOCK"), "constexpr"
    )
    signature = {name: types.get(name, "i32") for name in fused._steps.arg_names}
    source = ASTSource(fused._steps, signature, constexprs={"RULE": rule, "BLOCK": block})
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    assert made.asm["cubin"]
