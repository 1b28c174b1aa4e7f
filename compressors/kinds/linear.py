"""Matrix products: nn.Linear, attention's projections, recurrent layers, transformers' Conv1D,
stacks of experts, and bare products in a model's own code all come down to these operations."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from apportion.compressors.kinds.products import Call, Product, reads


@reads("aten::mm", "aten::bmm", "aten::mv")
def _plain(call: Call) -> list[Product]:
    return _both(call.args[0], call.args[1])


@reads("aten::addmm", "aten::addmm_", "aten::baddbmm", "aten::baddbmm_", "aten::addmv")
def _added(call: Call) -> list[Product]:
    return _both(call.args[1], call.args[2])


@reads("aten::dot", "aten::vdot")
def _dot(call: Call) -> list[Product]:
    left, right = call.args[:2]
    return _both(left[None], right)


@reads("aten::_grouped_mm", "transformers::grouped_mm_fallback")
def _grouped(call: Call) -> list[Product]:
    """x [tokens, in] times weights [experts, in, out], expert e taking the tokens up to
    offsets[e]."""
    x, weight = call.args[:2]
    offsets = call.args[2] if len(call.args) > 2 else call.kwargs.get("offs")
    if x.dim() != 2 or weight.dim() != 3 or offsets is None:
        return []
    ends = offsets.tolist()

    def columns(given: Tensor) -> Sequence[Tensor]:
        return [given[None, i:j] for i, j in zip([0, *ends], ends, strict=False)]

    macs = ends[-1] * weight.shape[1] * weight.shape[2]
    return [Product("linear", weight, x, lambda w: w.mT[:, None], columns, macs)]


def _both(left: Tensor, right: Tensor) -> list[Product]:
    """left [b, m, k] times right [b, k, n]: either may be the weight, the right one first, as
    F.linear has it. Matrices and vectors are batches of one."""
    vector = right.dim() == 1

    def batch(t: Tensor) -> Tensor:
        return t if t.dim() == 3 else t[None]

    def of_right(t: Tensor) -> Tensor:
        return batch(t[:, None] if vector else t)

    rows = left.shape[-2]
    macs = left.numel() * (1 if vector else right.shape[-1])
    as_right = Product(
        "linear",
        right,
        left,
        lambda w: of_right(w).mT[:, None],
        lambda x: list(batch(x)[:, None]),
        macs,
    )
    as_left = Product(
        "linear",
        left,
        right,
        lambda w: batch(w)[:, None],
        lambda x: list(of_right(x).mT[:, None]),
        macs,
    )
    return [as_right, as_left] if rows else []
