"""What runs a layer at a level on this machine, to be timed: torch, or ONNX Runtime with its
integer kernels."""

from __future__ import annotations

import copy
import math
import platform
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from apportion.compressors.activations import ActivationGrid
from apportion.compressors.calibration import call
from apportion.compressors.errors import ConfigurationError, UnknownNameError
from apportion.compressors.levels import Level
from apportion.evaluators.data import trees
from apportion.evaluators.rewriting import onnx_model
from apportion.evaluators.rewriting.onnx_model import Quantized
from apportion.evaluators.rewriting.reduced import reduce_layers
from apportion.evaluators.tasks.task import Inputs

_WARM_UP, _REPEATS, _SECONDS = 5, 50, 0.2
"""Runs before the first that counts; then at least so many, and for at least so long."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Median seconds of one run, the distance between its quartiles, and the number of runs."""

    seconds: float
    spread: float
    repeats: int


class Runtime(ABC):
    """`name` says what runs, with its version; `has_fast_kernel(level)`, whether it has kernels
    that run a layer faster at `level`. Layers at filter levels run dense in the shape that is left
    (`reduced`). Anything else costs what dense costs."""

    name: str

    @abstractmethod
    def has_fast_kernel(self, module: nn.Module, level: Level) -> bool: ...

    @abstractmethod
    def prepare(
        self,
        model: nn.Module,
        inputs: Inputs,
        quantized: Mapping[str, Quantized],
        reduced: Collection[str],
        chained: bool,
    ) -> Callable[[], object]:
        """Make ready to run a model.

        Args:
            model: the model, or a single layer.
            inputs: what it is called with.
            quantized: its quantized layers by name.
            reduced: layers that run in the shapes that are left of them.
            chained: it is a single layer, whose outputs are quantized for the next one.

        Returns:
            A call that runs it once.
        """

    def chained(
        self,
        model: nn.Module,  # noqa: ARG002
        inputs: Inputs,  # noqa: ARG002
        quantized: Mapping[str, Quantized],  # noqa: ARG002
    ) -> set[str]:
        """The `quantized` layers that run in integers within the whole model because what follows
        them is quantized too."""
        return set()


class TorchRuntime(Runtime):
    """torch in eager mode, float32 on the CPU. On CUDA in float16, with the semi-structured kernels
    for linear layers at 2:4."""

    def __init__(self, threads: int, device: str = "cpu") -> None:
        self._threads, self._device = threads, torch.device(device)
        what = (
            torch.cuda.get_device_name(self._device) + ", float16"
            if self._device.type == "cuda"
            else "CPU, float32"
        )
        self.name = f"torch {torch.__version__} ({what})"

    def has_fast_kernel(self, module: nn.Module, level: Level) -> bool:
        sparse = str(level).removeprefix("mag:").removeprefix("sparsegpt:") == "2:4"
        shape = module.weight.shape if isinstance(module, nn.Linear) else (1, 1)
        return sparse and self._device.type == "cuda" and shape[0] % 64 == 0 and shape[1] % 64 == 0

    def prepare(  # quantized levels run as the floats they stand for
        self,
        model: nn.Module,
        inputs: Inputs,
        quantized: Mapping[str, Quantized],
        reduced: Collection[str],
        chained: bool,  # noqa: ARG002
    ) -> Callable[[], object]:
        cuda = self._device.type == "cuda"
        kind = torch.float16 if cuda else torch.float32
        placed = copy.deepcopy(model).eval()
        reduce_layers(placed, reduced, quantized)
        placed.to(self._device, kind)
        x = trees.placed(inputs, self._device)
        x = trees.mapped(lambda t: t.to(kind) if t.is_floating_point() else t, x)
        if cuda:
            for module in placed.modules():
                if isinstance(module, nn.Linear) and _is_two_of_four(module.weight):
                    module.weight = nn.Parameter(
                        torch.sparse.to_sparse_semi_structured(module.weight), requires_grad=False
                    )

        def run() -> None:
            with torch.inference_mode():
                call(placed, x)
            if cuda:
                torch.cuda.synchronize(self._device)

        return run


class OnnxRuntime(Runtime):
    """ONNX Runtime on the CPU: float32, and int8 for layers whose weights and inputs are both
    quantized to 8 bits or fewer."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self.name = f"onnxruntime {onnx_model.version()} (CPU)"

    def has_fast_kernel(self, module: nn.Module, level: Level) -> bool:  # noqa: ARG002
        quantization = level.quantization
        bits = (quantization.weight_bits, level.activation_bits) if quantization else (None, None)
        if quantization and (quantization.format or quantization.token):  # runs in floats
            return False
        return all(b is not None and b <= 8 for b in bits)

    def prepare(
        self,
        model: nn.Module,
        inputs: Inputs,
        quantized: Mapping[str, Quantized],
        reduced: Collection[str],
        chained: bool,
    ) -> Callable[[], object]:
        grids = (q.activation for q in quantized.values() if chained)
        grid = next((own for own in grids if isinstance(own, ActivationGrid)), None)
        opened = onnx_model.session(
            onnx_model.to_onnx(model, inputs, quantized, reduced, grid), self._threads
        )
        return lambda: onnx_model.run(opened, inputs)

    def chained(
        self, model: nn.Module, inputs: Inputs, quantized: Mapping[str, Quantized]
    ) -> set[str]:
        return onnx_model.in_integers(onnx_model.to_onnx(model, inputs, quantized))


def open_runtime(name: str, threads: int) -> Runtime:
    """torch, cuda, or onnxruntime. Raises UnknownNameError, ConfigurationError."""
    if name == "torch":
        return TorchRuntime(threads)
    if name == "onnxruntime":
        return OnnxRuntime(threads)
    if name == "cuda":
        if not torch.cuda.is_available():
            raise ConfigurationError("runtime cuda: torch finds no CUDA device on this machine")
        return TorchRuntime(threads, "cuda")
    raise UnknownNameError("runtime", name, ["torch", "cuda", "onnxruntime"])


def time_run(run: Callable[[], object]) -> Timing:
    """Warm up, then run until the median can be trusted."""
    for _ in range(_WARM_UP):
        run()
    times: list[float] = []
    while len(times) < _REPEATS or math.fsum(times) < _SECONDS:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    low, middle, high = statistics.quantiles(times, n=4)
    return Timing(middle, high - low, len(times))


def machine() -> str:
    """Host and processor."""
    return f"{platform.node()}, {platform.processor() or platform.machine()}, {platform.system()}"


def _is_two_of_four(weight: Tensor) -> bool:
    if weight.shape[0] % 64 or weight.shape[1] % 64:
        return False
    return bool(((weight.reshape(-1, 4) != 0).sum(1) <= 2).all())
