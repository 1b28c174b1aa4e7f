"""Divergences and losses of logits over classes or tokens, in float64, a part of the rows at a time
so that vocabularies of any size fit."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

TOP = 512
"""Logits of the dense model that are kept: with so many of a large vocabulary the divergence orders
candidates as with all (EvoPress, Sieberling et al. 2024)."""
_AT_ONCE = 1 << 23
"""Logits that are taken in float64 at once."""
_LEAST = 1e-12
"""Probability that is left for all other tokens at least."""
Kept = dict[str, Tensor]
"""Of m rows of logits: `values` [m, k], the largest, and `total` float64 [m], the logarithm of the
sum over all; for more than TOP also `indices` int32 [m, k]."""


def kept(logits: Tensor, where: Tensor) -> Kept:
    """What of the dense model's logits [..., classes] is kept, of the rows that are True in
    `where` [...]."""
    parts: list[tuple[Tensor, ...]] = []
    for _, rows in _rows(logits, where):
        total = rows.double().logsumexp(1)
        if rows.shape[1] <= TOP:
            parts.append((rows, total))
        else:
            values, indices = rows.topk(TOP, dim=1)
            parts.append((values, total, indices.int()))
    if not parts:
        nothing = logits.new_zeros(0, min(TOP, logits.shape[-1]))
        return {"values": nothing, "total": nothing.sum(1).double()}
    names = ("values", "total", "indices")
    return dict(zip(names, map(torch.cat, zip(*parts, strict=True)), strict=False))


def kl(logits: Tensor, where: Tensor, dense: Kept) -> Tensor:
    """KL(dense || logits) in nats of each row that is True in `where`, float64 [m], at least 0.
    What the dense model has not kept counts as one outcome."""
    parts = []
    for rows, found in _rows(logits, where):
        row = found.double()
        log_q = row - row.logsumexp(1, keepdim=True)
        log_p = dense["values"][rows].double() - dense["total"][rows, None]
        if "indices" in dense:
            log_q = log_q.gather(1, dense["indices"][rows].long())
        value = _weighted(log_p, log_q).sum(1)
        if "indices" in dense:
            value = value + _weighted(_rest(log_p), _rest(log_q))
        parts.append(value.clamp_min(0))
    return _joined(parts, logits)


def nll(logits: Tensor, where: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy in nats of each row that is True in `where` with its class in `wanted` [m],
    float64 [m]."""
    parts = [
        F.cross_entropy(found.double(), wanted[rows], reduction="none")
        for rows, found in _rows(logits, where)
    ]
    return _joined(parts, logits)


def by_sample(values: Tensor, where: Tensor) -> Tensor:
    """The mean of each sample's values, float64 [n]: `values` [m] are those of the positions that
    are True in `where` [n, ...]; 0 where a sample has none."""
    counts = where.flatten(1).sum(1)
    sample = torch.arange(len(where), device=where.device).repeat_interleave(counts)
    sums = torch.zeros(len(where), dtype=torch.float64, device=where.device)
    return sums.index_add(0, sample, values) / counts.clamp_min(1)


def every(logits: Tensor) -> Tensor:
    """That all rows of logits [..., classes] count."""
    return torch.ones(logits.shape[:-1], dtype=torch.bool, device=logits.device)


def _rows(logits: Tensor, where: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The rows [some, classes] that count, some at a time, and which of all that count."""
    flat = logits.flatten(0, -2)
    places = where.flatten().nonzero()[:, 0]
    step = max(1, _AT_ONCE // max(1, flat.shape[1]))
    for at in range(0, len(places), step):
        yield slice(at, at + step), flat[places[at : at + step]]


def _weighted(log_p: Tensor, log_q: Tensor) -> Tensor:
    """p (log p - log q), 0 where p is."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0)


def _rest(log: Tensor) -> Tensor:
    """The logarithm of what these probabilities [m, k] leave."""
    return (1 - log.exp().sum(1)).clamp_min(_LEAST).log()


def _joined(parts: list[Tensor], logits: Tensor) -> Tensor:
    return torch.cat(parts) if parts else logits.new_zeros(0, dtype=torch.float64)
