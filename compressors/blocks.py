"""Calibration block by block, for models that are too large for their device: all batches wait
before the same block, so that only that block need be on the device, and one block's inputs are
kept (with what the model itself holds on to, as shortcuts around it)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from apportion.compressors.calibration import Calibration, Inside
from apportion.compressors.errors import ConfigurationError
from apportion.compressors.layers import hooked
from apportion.compressors.progress import Progress, silent


@dataclass(frozen=True)
class BlockPass(Calibration):
    """blocks: names of the modules before which a batch waits for the others (`blocks_of` finds
    some). device: where a block is while it works; None: where it is.

    Each batch has a thread, of which one runs at a time. What is set for a thread alone, as
    autocast, belongs into `forward`.
    """

    blocks: Sequence[str] = ()
    device: str | None = None

    def run(
        self,
        model: nn.Module,
        inside: Inside | None = None,
        progress: Progress = silent,
        what: str = "run the calibration data",
    ) -> int:
        """As `Calibration.run`. Raises ConfigurationError for a block that the model lacks."""
        modules = dict(model.named_modules())
        for name in self.blocks:
            if name not in modules:
                raise ConfigurationError(f"calibration by blocks: the model has no module {name!r}")
        total, passes, stage = 0, list[_Pass](), 0
        with hooked() as handles:
            for name in self.blocks:
                handles.append(modules[name].register_forward_pre_hook(_wait))
                if self.device is not None:
                    handles += _moved(modules[name], torch.device(self.device))
            try:
                for batch in self.batches():
                    total += self.samples(batch)
                    passes.append(_Pass(partial(self.one, model, batch, inside)))
                while passes:
                    progress(what, stage, max(len(self.blocks) + 1, stage + 1))
                    with self._on_device([one.block for one in passes]):
                        passes = [one for one in passes if one.resume()]
                    stage += 1
            finally:
                for one in passes:
                    one.stop()
        progress(what, 1, 1)
        return total

    @contextmanager
    def _on_device(self, blocks: Sequence[nn.Module | None]) -> Iterator[None]:
        """The blocks on the device for a while."""
        moved = dict.fromkeys(block for block in blocks if block is not None and self.device)
        homes = {block: next(block.parameters()).device for block in moved}
        try:
            for block in moved:
                block.to(self.device)
            yield
        finally:
            for block, home in homes.items():
                block.to(home)


def blocks_of(model: nn.Module) -> list[str]:
    """The children of the list of modules (ModuleList or Sequential) that holds most parameters; []
    without one."""
    lists = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in model.named_modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 1
    }
    if not lists:
        return []
    largest = max(lists, key=lambda name: (lists[name], -len(name)))
    children = model.get_submodule(largest).named_children()
    return [
        f"{largest}.{child}".lstrip(".")
        for child, block in children
        if next(block.parameters(), None) is not None
    ]


class _Pass:
    """One batch on its way. `block`: before which it waits."""

    def __init__(self, run: Callable[[], None]) -> None:
        self.block: nn.Module | None = None
        self._run = run
        self._error: BaseException | None = None
        self._go, self._rests = threading.Event(), threading.Event()
        self._done = self._stopped = False
        self._threads = torch.get_num_threads()  # which a new thread does not take over
        self._thread = threading.Thread(target=self._work, daemon=True)

    def resume(self) -> bool:
        """Go on to the next block. Whether there is one; raises what the pass raised."""
        self._go_on()
        if self._error is not None:
            raise self._error
        return not self._done

    def stop(self) -> None:
        """End a pass that waits."""
        if self._thread.is_alive():
            self._stopped = True
            self._go_on()

    def wait(self, block: nn.Module) -> None:
        """Called in the pass's thread: until it is resumed."""
        self.block = block
        self._rests.set()
        self._go.wait()
        self._go.clear()
        if self._stopped:
            raise _StoppedError

    def _go_on(self) -> None:
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.set()
        self._rests.wait()
        self._rests.clear()
        if self._done:
            self._thread.join()

    def _work(self) -> None:
        _LOCAL.running = self
        torch.set_num_threads(self._threads)
        try:
            self._run()
        except _StoppedError:
            pass
        except BaseException as error:  # whatever the model raises: told where the pass is resumed
            self._error = error
        finally:
            self._done = True
            self._rests.set()


class _StoppedError(BaseException):
    """Unwinds a pass that is not wanted any more."""


_LOCAL = threading.local()


def _wait(module: nn.Module, _inputs: tuple[Any, ...]) -> None:
    _LOCAL.running.wait(module)


def _moved(module: nn.Module, device: torch.device) -> list[Any]:
    """Hooks that bring a block's inputs to the device, and its outputs back."""
    homes: dict[int, torch.device] = {}

    def to(tree: Any, where: torch.device) -> Any:
        return tree_map(lambda t: t.to(where) if isinstance(t, Tensor) else t, tree)

    def before(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        first = next((t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)), None)
        homes[threading.get_ident()] = first.device if first is not None else device
        return to(args, device), to(kwargs, device)

    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        return to(output, homes[threading.get_ident()])

    return [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after),
    ]
