"""How channel numbers pass through products of activations: attention, whose heads are taken apart
by it, so that a head goes as a whole; written as matrix products, or fused."""

from __future__ import annotations

import torch
from torch import Tensor

from apportion.compressors.groups.labels import NONE, varying
from apportion.compressors.groups.rules import Step


def attention(step: Step) -> None:
    """Fused: query, keys, values [..., heads, positions, channels], with fewer heads of keys and
    values where several queries share them. Without heads, queries meet keys channel by channel,
    and what is given has the values' channels."""
    out = step.results[0]
    query, *shared = (step.labels.of(t)[..., :1, :] for t in step.inputs[:3])
    try:
        keys, values = (_repeated(each, query) for each in shared)
    except ValueError:
        for each in (query, *shared):
            step.book.lock(each, "attention whose heads do not go together")
        return
    if not _over_batch(query) and not _over_batch(keys):
        step.book.join(query, keys)
        step.labels.set(out, values.expand(out.shape))
        return
    head = torch.where(query > 0, query, keys)[..., :1]
    for each in (query, keys, values):
        step.book.heads(each)
        step.book.join(each, head.expand_as(each))
        step.book.lock(head.expand_as(each)[each == NONE], "attention with what is in no channel")
    step.book.count(head, step.macs)
    bias = next((t for t in step.inputs[3:] if t.dim() == out.dim()), None)
    if bias is not None:  # added to the scores
        _added(step, head, bias)
    step.labels.set(out, values.expand(out.shape))


def _added(step: Step, head: Tensor, bias: Tensor) -> None:
    own = step.labels.of(bias)
    long = [d for d in range(bias.dim() - 2) if bias.shape[d] > 1]
    heads = head.expand(*torch.broadcast_shapes(head.shape[:-2], own.shape[:-2]), *own.shape[-2:])
    step.book.join(heads, own.expand_as(heads))
    lost = heads[own.expand_as(heads) == NONE]
    step.book.lock_along(heads, long, "a mask has numbers of its own for them", lost)


def _repeated(labels: Tensor, like: Tensor) -> Tensor:
    """With as many heads as another's; raises ValueError."""
    if labels.dim() != like.dim():
        raise ValueError
    if labels.shape[:-2] != like.shape[:-2]:
        times, rest = divmod(like.shape[-3], max(1, labels.shape[-3]))
        labels = labels.repeat_interleave(max(1, times), -3)
        if rest or labels.shape[:-2] != like.shape[:-2]:
            raise ValueError
    return labels


def products(step: Step) -> None:
    """left [..., i, c] times right [..., c, j], both activations: what is summed over meets channel
    by channel; where every matrix has channels of its own, they are a head."""
    left, right = step.inputs[-2:]
    a, b = step.labels.of(left), step.labels.of(right)
    if a.dim() < 2 or a.dim() != b.dim():
        step.lock()
        return
    rows, columns = a[..., :, :1], b[..., :1, :]
    out = step.results[0]
    if a.dim() - 1 in varying(a) or b.dim() - 2 in varying(b):
        one, other = a.mT, b  # [..., c, i] and [..., c, j]
        if a.dim() - 2 in varying(a) or b.dim() - 1 in varying(b):
            step.lock("a product of tensors")
            return
        step.book.join(one[..., :1], other[..., :1])
        for mine, theirs in ((one, other), (other, one)):
            step.book.lock(mine[(theirs[..., :1] == NONE).expand_as(mine)], "a product of tensors")
        if _over_batch(one) or _over_batch(other):
            head = torch.where(rows[..., :1, :] > 0, rows[..., :1, :], columns[..., :1])
            for each in (one, other):
                step.book.heads(each)
                step.book.join(each, head.expand_as(each))
            step.book.count(head, step.macs)
            step.labels.set(out, head.expand(out.shape))
        return
    if a.dim() - 2 in varying(rows) and b.dim() - 1 in varying(columns):
        step.lock("an outer product")
        return
    step.book.join(rows.expand(out.shape), columns.expand(out.shape))
    made = torch.where(columns > 0, columns, rows)
    step.book.count(made[..., :1, :1], step.macs)
    step.labels.set(out, made.expand(out.shape))


def _over_batch(labels: Tensor) -> bool:
    """Whether every matrix has numbers of its own."""
    return any(d < labels.dim() - 2 for d in varying(labels))
