"""Finds a model's layers: every weight that a matrix product multiplies with what comes from
data."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from apportion.compressors.calibration import Calibration
from apportion.compressors.kinds.feeding import plain
from apportion.compressors.kinds.origins import Origins
from apportion.compressors.kinds.products import Product
from apportion.compressors.kinds.regions import IrregularError, locate
from apportion.compressors.kinds.uses import Found, Seen
from apportion.compressors.kinds.watch import Watch, unfused
from apportion.compressors.layers import hooked
from apportion.compressors.place import Place


def find_layers(model: nn.Module, calibration: Calibration) -> Found:
    """The layers of `model` (eval mode), by traced passes over as many calibration batches as it
    takes until every matrix was used, all of them where some never is. What stays dense is told in
    one warning. Raises ModelError where no layer is left, with the reasons."""
    seen = Seen(model)
    with hooked() as handles, unfused(model):
        calls = _Calls(model, handles)
        for batch in calibration.batches():
            with torch.no_grad(), _Finder(model, batch, seen, calls):
                calibration.forward(model, batch)
            seen.samples += calibration.samples(batch)
            seen.batches += 1
            if not seen.idle():
                break
    return seen.report()


class _Finder(Watch):
    """One pass's products, put down in `seen`."""

    def __init__(self, model: nn.Module, batch: Any, seen: Seen, calls: _Calls) -> None:
        super().__init__(model, batch)
        self._seen, self._calls = seen, calls

    def used(self, product: Product, live: bool) -> None:
        try:
            matrices = locate(self.origins, product, self._seen.names.cuts)
        except IrregularError as error:
            self._irregular(product, live, str(error))
            return
        if len(matrices) == 1:
            shares = [float(product.macs)]
        else:
            inputs = product.columns(product.input)
            positions = [sum(inputs[i].shape[1] for i in m.inputs) for m in matrices]
            sizes = [prod(m.shape) for m in matrices]
            shares = [float(n * size) for n, size in zip(positions, sizes, strict=True)]
        for matrix, macs in zip(matrices, shares, strict=True):
            for part in matrix.parts:
                share = macs * part.rows / matrix.rows
                fed = self._calls.feeds(part.place, self.origins)
                self._seen.add(product.kind, matrix, part, share, live, fed)

    def multiplied(self, what: str, macs: int) -> None:
        self._seen.macs[what] += macs

    def refused(self, parameter: str, reason: str) -> None:
        self._seen.refusals.setdefault(parameter, reason)

    def reached(self, parameter: str, operation: str) -> None:
        self._seen.operations.setdefault(parameter, set()).add(operation)

    def stranger(self, text: str) -> None:
        self._seen.strangers[text] = None

    def _irregular(self, product: Product, live: bool, reason: str) -> None:
        self.multiplied("derived" if live else "constant", product.macs)
        if live:
            for name in self.origins.of(product.weight).names & self.origins.parameters.keys():
                self.refused(name, reason)


class _Calls:
    """The plain modules that run at the moment, the innermost last."""

    def __init__(self, model: nn.Module, handles: list[RemovableHandle]) -> None:
        self._running: list[tuple[nn.Module, bool]] = []
        for module in model.modules():
            if plain(module):
                handles.append(module.register_forward_pre_hook(self._begin, with_kwargs=True))
                handles.append(module.register_forward_hook(self._end, always_call=True))

    def feeds(self, place: Place, origins: Origins) -> bool:
        """Whether the product with the weight at `place` is that of a plain module that runs, with
        its one input."""
        if not self._running:
            return False
        module, alone = self._running[-1]
        weights = [origins.parameters[name] for name in place.parameters]
        own: Any = module.weight
        return (
            alone
            and any(w.data_ptr() == own.data_ptr() for w in weights)
            and (prod(place.sizes) == own.numel())
        )

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._running.append((module, len(args) + len(kwargs) == 1))

    def _end(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        self._running.pop()
