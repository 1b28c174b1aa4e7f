"""nn.MultiheadAttention: one parameter holds the projections of queries, keys and values."""

from __future__ import annotations

from torch import nn

from apportion.compressors.kinds.naming import rows_of


@rows_of(nn.MultiheadAttention)
def projections(module: nn.Module, parameter: str) -> list[tuple[str, int]]:
    """in_proj.q, in_proj.k and in_proj.v, each a layer of its own: the weights are multiplied with
    different inputs where keys and values come from elsewhere."""
    if parameter != "in_proj_weight":
        return []
    assert isinstance(module, nn.MultiheadAttention)
    return [(f"in_proj.{name}", module.embed_dim) for name in "qkv"]
