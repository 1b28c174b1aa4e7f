"""Which rule an operation follows."""

from __future__ import annotations

from collections.abc import Callable

import torch

from apportion.compressors.groups import heads, rules
from apportion.compressors.groups.rules import Step

Rule = Callable[[Step], None]


def rule(step: Step) -> Rule | None:
    """Of the operation; None: nothing knows it."""
    name = step.name
    for names, made in (
        (rules.MOVES, rules.moved),
        (rules.LINEAR, rules.linear),
        (rules.LARGEST, rules.largest),
        (rules.NORMS, rules.batch_norm),
        (rules.LIKE, rules.like),
        (rules.ACROSS, rules.across),
        ({"_softmax", "_log_softmax", "_safe_softmax"}, rules.softmax),
        ({"bmm", "mm", "baddbmm"}, heads.products),
    ):
        if name in names:
            return made
    if name.startswith("_scaled_dot_product"):
        return heads.attention
    if name in rules.POINTWISE or torch.Tag.pointwise in step.func.tags:
        return rules.pointwise
    return None
