"""Batch-norm folded into the convolution or linear layer before it, where that is exact."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.utils._pytree import tree_leaves

from apportion.compressors.activations import InputQuantizer
from apportion.compressors.calibration import call
from apportion.compressors.errors import ModelError

_NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.Linear: nn.BatchNorm1d,
}
"""What is folded -> the batch-norm that normalises its output channels. Subclasses may compute
something else, so that only these very types count."""
_ROUNDING = 1e-3
"""By how much outputs may differ, as a share of the largest: two roundings of the same numbers."""


def fold_batchnorm(model: nn.Module, inputs: Any) -> nn.Module:
    """A copy of `model` in eval mode, traced by torch.fx, in which each batch-norm is folded into
    the layer whose output goes to it alone. A layer that is called twice, whose weight something
    else reads too, or whose output goes elsewhere as well keeps its batch-norm. Raises ModelError
    for a model that torch.fx cannot trace, or whose outputs for `inputs` (a tensor, a tuple of
    arguments or a dict of keywords) the folding changes."""
    model = copy.deepcopy(model).eval()
    expected, flat = _outputs(model, inputs)
    try:
        traced = fx.symbolic_trace(model)
    except Exception as error:  # whatever the model's own code raises when it is traced
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"torch.fx cannot trace it ({reason})") from error
    uses = _uses(traced)
    for node in list(traced.graph.nodes):
        pair = _pair(node, traced, uses, flat)
        if pair is None:
            continue
        layer, norm = pair
        before = node.all_input_nodes[0]
        fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        made = fuse(layer, _affine(norm))  # type: ignore[type-var, arg-type]
        traced.set_submodule(str(before.target), made)
        uses.update(tensor.data_ptr() for tensor in made.parameters())
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    folded = fx.GraphModule(traced, traced.graph).eval()
    _check(folded, inputs, expected)
    return folded


def _outputs(model: nn.Module, inputs: Any) -> tuple[list[Tensor], set[str]]:
    """The model's outputs, and the layers all of whose outputs are [n, channels]: batch-norm
    normalises the second dimension, which is a linear layer's last in no other shape."""
    ranks: dict[str, set[int]] = {}

    def note(name: str, output: Tensor) -> None:
        ranks.setdefault(name, set()).add(output.dim())

    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: note(name, output))
        for name, module in model.named_modules()
        if type(module) is nn.Linear
    ]
    try:
        with torch.no_grad():
            outputs = _tensors(call(model, inputs))
    finally:
        for handle in handles:
            handle.remove()
    return outputs, {name for name, found in ranks.items() if found == {2}}


def _uses(traced: fx.GraphModule) -> Counter[int]:
    """How often the graph reads each tensor, by its address: through a module, or by itself."""
    found: Counter[int] = Counter()
    for node in traced.graph.nodes:
        if node.op == "call_module":
            for tensor in traced.get_submodule(node.target).parameters():
                found[tensor.data_ptr()] += 1
        elif node.op == "get_attr":
            value = traced
            for part in node.target.split("."):
                value = getattr(value, part)
            if isinstance(value, Tensor):
                found[value.data_ptr()] += 1
    return found


def _pair(
    node: fx.Node, traced: fx.GraphModule, uses: Counter[int], flat: set[str]
) -> tuple[nn.Module, nn.Module] | None:
    """The layer and the batch-norm of `node`, if folding them is exact."""
    if node.op != "call_module" or len(node.all_input_nodes) != 1:
        return None
    before = node.all_input_nodes[0]
    if before.op != "call_module" or len(before.users) != 1:
        return None
    layer, norm = (traced.get_submodule(str(each.target)) for each in (before, node))
    if _NORMS.get(type(layer)) is not type(norm) or not norm.track_running_stats or norm.training:
        return None
    if isinstance(layer, nn.Linear) and before.target not in flat:
        return None
    if any(_hooked(module) for module in (layer, norm)):
        return None
    # its weight and bias are read once: by this call
    if any(uses[tensor.data_ptr()] != 1 for tensor in layer.parameters()):
        return None
    return layer, norm


def _affine(norm: nn.Module) -> nn.Module:
    """The batch-norm with a weight and a bias, which torch's folding into linear layers needs."""
    if norm.weight is not None:
        return norm
    made: Any = copy.copy(norm)
    made._parameters = {
        "weight": nn.Parameter(torch.ones_like(made.running_var)),
        "bias": nn.Parameter(torch.zeros_like(made.running_mean)),
    }
    return made


def _hooked(module: nn.Module) -> bool:
    """Whether something else happens when it is called. A quantizer without a grid does nothing."""
    before = [
        hook
        for hook in module._forward_pre_hooks.values()
        if not (isinstance(hook, InputQuantizer) and hook.grid is None)
    ]
    return bool(module._forward_hooks or before)


def _check(folded: nn.Module, inputs: Any, expected: list[Tensor]) -> None:
    with torch.no_grad():
        found = _tensors(call(folded, inputs))
    for ours, theirs in zip(found, expected, strict=True):
        difference, scale = float((ours - theirs).abs().max()), float(theirs.abs().max())
        if not difference <= _ROUNDING * scale:
            raise ModelError(
                f"with batch-norm folded its outputs differ by up to {difference:.3g}, of "
                f"{scale:.3g}"
            )


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
