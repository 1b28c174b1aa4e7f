"""Every layer as a module of its own, with what reaches it, so that it can be timed alone."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from apportion.compressors.calibration import call, count_samples
from apportion.compressors.kinds.feeding import first_tensor
from apportion.compressors.layers import hooked
from apportion.db.layers.database import LayerDatabase
from apportion.db.layers.format import LayerRecord
from apportion.evaluators.tasks.task import Inputs


def timed_alone(
    model: nn.Module, database: LayerDatabase, example: Inputs
) -> tuple[dict[str, nn.Module], dict[str, Tensor]]:
    """Layer -> its module, and the input of its first call when the model runs on `example`. A
    layer that is a part of a parameter, or whose module is never called, is a linear module of the
    same weights and as many multiply-accumulates."""
    modules = dict(model.named_modules(remove_duplicate=False))
    seen: dict[str, Tensor] = {}
    whole = {name: r for name, r in database.layers.items() if r.place is None and name in modules}
    with torch.no_grad(), hooked() as handles:
        for name, record in whole.items():
            for own in (name, *record.aliases):
                hook = partial(_keep, seen, name)
                handles.append(modules[own].register_forward_pre_hook(hook, with_kwargs=True))
        call(model, example)
    found = {name: modules[name] for name in seen}
    for name, record in database.layers.items():
        if name not in seen:
            found[name], seen[name] = _product(record, count_samples(example))
    return found, seen


def _keep(seen: dict[str, Tensor], name: str, _module: nn.Module, args: Any, kwargs: Any) -> None:
    seen.setdefault(name, first_tensor(args, kwargs).detach().clone())


def _product(record: LayerRecord, samples: int) -> tuple[nn.Module, Tensor]:
    rows, columns = record.shape[0], prod(record.shape[1:])
    positions = max(1, samples * record.macs // record.size)
    module = nn.Linear(columns, rows, bias=False).requires_grad_(False)
    return module, torch.zeros(positions, columns)
