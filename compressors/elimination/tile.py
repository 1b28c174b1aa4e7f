"""A rank-k update of a small tile, C -= A^T B, as vector instructions: what the refreshes and steps
of `removal` spend their time in. The tile stays in registers over all k, the widest that this
machine has, and C is updated where it lies.

Importing this needs numba.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

_FEATURES = binding.get_host_cpu_features()

_REGISTER = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx") else 16
"""Bytes of a vector register of this machine."""

BYTES = 3 * _REGISTER
"""Width of a tile: three registers."""

ROWS = 8 if _REGISTER == 64 else 4
"""Rows of a tile: as many as leave registers for its factors (32 with AVX-512, 16 otherwise)."""


def tile(rows: int, vectors: int, register: int = _REGISTER) -> Callable[..., Any]:
    """update(c, c0, ldc, a, a0, lda, b, b0, ldb, k) for compiled code: c[c0 + r ldc + j] -= sum
    over s < k of a[a0 + s lda + r] b[b0 + s ldb + j], for r < `rows`, and j over `vectors`
    registers of `register` bytes; k >= 1. The arrays are one-dimensional, contiguous, and of one
    floating type; no bounds are checked."""

    @intrinsic
    def update(
        _: Any,
        c: Any,
        c0: Any,  # noqa: ARG001
        ldc: Any,  # noqa: ARG001
        a: Any,
        a0: Any,  # noqa: ARG001
        lda: Any,  # noqa: ARG001
        b: Any,
        b0: Any,  # noqa: ARG001
        ldb: Any,  # noqa: ARG001
        k: Any,  # noqa: ARG001
    ) -> Any:
        def build(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            at = dict(
                zip(
                    ("c", "c0", "ldc", "a", "a0", "lda", "b", "b0", "ldb", "k"), values, strict=True
                )
            )
            scalar, index = context.get_value_type(c.dtype), ir.IntType(64)
            size = c.dtype.bitwidth // 8
            lanes = register // size
            vector = ir.VectorType(scalar, lanes)
            whole, none = range(vectors), ir.Constant(vector, ir.Undefined)
            everywhere = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)

            def place(array: str, first: Any, stride: Any, turn: Any) -> Any:
                data = context.make_array({"a": a, "b": b, "c": c}[array])(
                    context, builder, at[array]
                ).data
                return builder.gep(data, [builder.add(first, builder.mul(stride, turn))])

            def pointer(start: Any, v: int) -> Any:
                return builder.bitcast(builder.gep(start, [index(v * lanes)]), vector.as_pointer())

            def read(start: Any, v: int) -> Any:
                value = builder.load(pointer(start, v))
                value.align = size
                return value

            out = [place("c", at["c0"], at["ldc"], index(r)) for r in range(rows)]
            before = [[read(start, v) for v in whole] for start in out]
            entry, loop, after = (
                builder.block,
                builder.append_basic_block("fold"),
                builder.append_basic_block("folded"),
            )
            builder.branch(loop)
            builder.position_at_end(loop)
            s = builder.phi(index)
            sums = [[builder.phi(vector) for _ in whole] for _ in out]
            left, right = place("a", at["a0"], at["lda"], s), place("b", at["b0"], at["ldb"], s)
            factors = [read(right, v) for v in whole]
            following = []
            for r in range(rows):
                one = builder.insert_element(
                    none, builder.load(builder.gep(left, [index(r)])), ir.IntType(32)(0)
                )
                each = builder.shuffle_vector(one, none, everywhere)
                products = [builder.fmul(each, factor, flags=("contract",)) for factor in factors]
                following.append(
                    [builder.fsub(sums[r][v], products[v], flags=("contract",)) for v in whole]
                )
            turn = builder.add(s, index(1))
            for phi, start, last in [
                (s, index(0), turn),
                *((sums[r][v], before[r][v], following[r][v]) for r in range(rows) for v in whole),
            ]:
                phi.add_incoming(start, entry)
                phi.add_incoming(last, loop)
            builder.cbranch(builder.icmp_signed("<", turn, at["k"]), loop, after)
            builder.position_at_end(after)
            for r in range(rows):
                for v in whole:
                    builder.store(following[r][v], pointer(out[r], v)).align = size
            return context.get_dummy_value()

        return types.void(
            c, *(types.intp,) * 2, a, *(types.intp,) * 2, b, *(types.intp,) * 3
        ), build

    return update


update_tile = tile(ROWS, 3)
"""ROWS x BYTES of C."""
update_row = tile(1, 3)
update_wide_row = tile(1, 6)
"""One row of C, BYTES and twice BYTES: more sums at once hide what a product takes."""
