"""The layers of a model that can be compressed, and the matrix that each of their weights is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from apportion.compressors.place import Place, module_weight


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One weight that can be compressed: a matrix that a product multiplies with its inputs.

    name: its module's, with a suffix where a module has several weights.
    kind: conv1d, conv_transpose2d, linear, embedding, ...
    shape: (rows, channels, *kernel), as which databases keep it. As a matrix it has `rows` rows of
        `columns` weights, ordered kernel position x input channel (channel last), so that blocks
        and N:M patterns run along input channels.
    groups: the rows of group g (of `groups`, in equal shares) multiply the inputs of that group.
    aliases: other names of the very same weight.
    place: where it stands in the model; None: it is the whole `weight` of the module `name`.
    by_module: whether what its modules are given is what it is multiplied with (padded, if the
        module says so), so that a hook on them sees it, and can quantize it.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    groups: int
    rows: int
    columns: int
    aliases: tuple[str, ...] = ()
    place: Place | None = None
    by_module: bool = True

    @property
    def where(self) -> Place:
        return self.place or module_weight((self.name, *self.aliases), self.shape)

    @property
    def is_table(self) -> bool:
        """Whether rows of the weight are looked up: its Hessian is diagonal."""
        return self.kind == "embedding"

    @property
    def is_module_weight(self) -> bool:
        """Whether it is a convolution's or linear module's weight as it stands, so that the module
        can be run in a smaller shape."""
        own = module_weight((self.name, *self.aliases), self.shape)
        return self.by_module and self.where == own and self.kind in ("conv1d", "conv2d", "linear")

    @property
    def hessian_shape(self) -> tuple[int, ...]:
        return (self.rows, 1) if self.is_table else (self.groups, self.columns, self.columns)


def to_matrix(weight: Tensor, spec: LayerSpec) -> Tensor:
    """weight [rows, channels, *kernel], or as its place holds it -> [rows, columns], channel
    last."""
    return weight.reshape(spec.shape).movedim(1, -1).reshape(spec.rows, spec.columns)


def from_matrix(matrix: Tensor, spec: LayerSpec) -> Tensor:
    """The inverse of `to_matrix`; contiguous."""
    kernel = spec.shape[2:]
    return matrix.reshape(spec.shape[0], *kernel, spec.shape[1]).movedim(-1, 1).contiguous()


def layer_modules(
    model: nn.Module, layers: Iterable[LayerSpec]
) -> Iterator[tuple[LayerSpec, nn.Module]]:
    """Each layer with each module that has its weight: several, where weights are tied."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for layer in layers:
        own = (modules[name] for name in (layer.name, *layer.aliases))
        for module in dict.fromkeys(own):
            yield layer, module


@contextmanager
def hooked() -> Iterator[list[RemovableHandle]]:
    """A list for hook handles; all are removed in the end, whatever happens."""
    handles: list[RemovableHandle] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()
