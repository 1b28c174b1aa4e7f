"""Where a layer's weight stands in a model: a whole parameter, or a regular part of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from torch import Tensor, nn

from apportion.compressors.errors import ModelError


@dataclass(frozen=True, slots=True)
class Place:
    """The weight [sizes] holds, at [i, j, ...], element offset + i strides[0] + j strides[1] + ...
    of the parameter's values in row-major order. `parameters`: all names under which the model has
    these values."""

    parameters: tuple[str, ...]
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    def of(self, parameter: Tensor) -> Tensor:
        """The part [sizes] of a contiguous parameter, as a view."""
        return parameter.as_strided(
            self.sizes, self.strides, parameter.storage_offset() + self.offset
        )

    def read(self, model: nn.Module) -> Tensor:
        """The weight [sizes], detached; a view where the parameter is contiguous. Raises
        ModelError."""
        return self.of(self._parameter(model, self.parameters[0]).detach().contiguous())

    def write(self, model: nn.Module, weight: Tensor) -> None:
        """Put `weight` (as many values as `sizes`) there, in place, under all names. Raises
        ModelError."""
        for name in self.parameters:
            parameter = self._parameter(model, name).detach()
            reach = sum((n - 1) * s for n, s in zip(self.sizes, self.strides, strict=True))
            if self.offset + reach >= parameter.numel():
                raise ModelError(f"parameter {name!r} of the model is too small for its layer")
            whole = parameter.contiguous()  # itself, or a copy
            self.of(whole).copy_(weight.reshape(self.sizes))
            if whole.data_ptr() != parameter.data_ptr():
                parameter.copy_(whole)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Place:
        lists = {key: tuple(content[key]) for key in ("parameters", "sizes", "strides")}
        return cls(**lists, offset=int(content["offset"]))

    @staticmethod
    def _parameter(model: nn.Module, name: str) -> Tensor:
        try:
            return model.get_parameter(name)
        except AttributeError:
            raise ModelError(f"the model has no parameter {name!r}") from None


def module_weight(modules: Sequence[str], shape: tuple[int, ...]) -> Place:
    """The whole `weight` of modules that share it."""
    names = tuple(f"{name}.weight".lstrip(".") for name in modules)
    return Place(names, shape, row_major(shape))


def row_major(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a contiguous tensor of these sizes."""
    return tuple(prod(sizes[d + 1 :]) for d in range(len(sizes)))
