"""Tables whose rows are looked up. As a product with one-hot inputs a table's Hessian is diagonal:
how often each row was taken."""

from __future__ import annotations

import torch
from torch import Tensor

from apportion.compressors.kinds.products import Call, Product, reads

_NUMBERS = (torch.int32, torch.int64)  # a mask is no choice of rows


@reads("aten::embedding")
def _embedding(call: Call) -> list[Product]:
    return _table(call.args[0], call.args[1])


@reads("aten::index_select")
def _index_select(call: Call) -> list[Product]:
    table, dim, rows = call.args[:3]
    return _table(table, rows) if dim % table.dim() == 0 else []


@reads("aten::index")
def _index(call: Call) -> list[Product]:
    table, index = call.args[:2]
    by_row = len(index) == 1 and index[0] is not None and index[0].dtype in _NUMBERS
    return _table(table, index[0]) if by_row else []


def _table(table: Tensor, rows: Tensor) -> list[Product]:
    if table.dim() != 2:
        return []
    count = table.shape[0]

    def taken(given: Tensor) -> list[Tensor]:
        return [given.flatten().long() % count]

    return [Product("embedding", table, rows, lambda w: w[None, None], taken, 0, table=True)]
