"""Trees of tensors: what batches, a model's inputs and its outputs are. A tree is a tensor, or a
tuple, list or dict of trees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map

Tree = Any


def arguments(inputs: Tree) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a model is called with: a dict's values by keyword, a tuple's one by one, anything else
    as the one argument."""
    if isinstance(inputs, dict):
        return (), inputs
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def tensors(tree: Tree) -> list[Tensor]:
    """The tensors, in order; whatever else the tree holds is left out."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def named(tree: Tree) -> Iterator[tuple[str, Any]]:
    """Every leaf with its path, such as ['mask'] or [0]."""
    for path, leaf in tree_flatten_with_path(tree)[0]:
        yield keystr(path), leaf


def mapped(change: Callable[[Tensor], Any], tree: Tree) -> Tree:
    """The tree with `change(tensor)` in place of every tensor."""
    return tree_map(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def cut(tree: Tree, index: slice | Tensor) -> Tree:
    """The tree of some samples."""
    return mapped(lambda tensor: tensor[index], tree)


def placed(tree: Tree, device: str | torch.device) -> Tree:
    """The tree on a device."""
    return mapped(lambda tensor: tensor.to(device), tree)


def joined(trees: Sequence[Tree]) -> Tree:
    """Batches of one structure as one batch."""
    return tree_map(lambda *parts: torch.cat(parts), *trees)


def shapes(tree: Tree) -> str:
    """The shape of one sample, for messages: [3, 32, 32], or one for each tensor."""
    if isinstance(tree, Tensor):
        return str(list(tree.shape[1:]))
    return ", ".join(f"{name.strip('[]')} {shapes(leaf)}" for name, leaf in named(tree))


def dynamic(inputs: Tree, axes: Sequence[str], dim: Callable[[str], Any]) -> Any:
    """The dynamic shapes of a model's inputs, as torch.export takes them: the leading dimensions of
    every tensor are called `axes`, and `dim(name)` is what torch.export calls one of that name."""
    made = {name: dim(name) for name in axes}

    def of(tensor: Tensor) -> dict[int, Any]:
        return {d: made[name] for d, name in enumerate(axes) if d < tensor.dim()}

    shapes = mapped(of, inputs)
    return shapes if isinstance(inputs, (dict, tuple)) else (shapes,)
