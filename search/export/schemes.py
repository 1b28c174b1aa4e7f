"""What the format compressed-tensors calls the levels: how weights and inputs are quantized, and in
which of its encodings they are stored. Without the library, so that a job is checked at its
start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from apportion.compressors import formats
from apportion.compressors.errors import ModelError
from apportion.compressors.grids import GridOptions
from apportion.compressors.levels import Level, Quantization
from apportion.db.layers.format import LayerRecord

VALID = (
    "wB, wBgG, wBaA, wBgGaA, wBaA-token and wBgGaA-token on symmetric grids (A up to 8), fp8, "
    "mxfp4, mxfp6, mxfp8, nvfp4, sparse levels and dense"
)
_FLOATS = {
    "fp8": "float-quantized",
    "mxfp4": "mxfp4-pack-quantized",
    "mxfp6": "mxfp6-pack-quantized",
    "mxfp8": "mxfp8-quantized",
    "nvfp4": "nvfp4-pack-quantized",
}
_GROUPS = "apportion.compressors.grids.group"
HALVES = frozenset({"mxfp4", "mxfp6", "mxfp8", "nvfp4"})
"""What the library decompresses to bfloat16; of nvfp4 alone that rounds: its scales are quotients,
those of the others powers of two."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """`encoding`: how weights are stored, as the library names it; `per`: whether the layer has one
    scale (tensor), or one for each row (channel) or group of columns (group, tensor_group)."""

    encoding: str
    per: str
    quantization: Quantization

    def config(self) -> dict[str, Any]:
        """A config group without its targets."""
        own, form = self.quantization, formats.find(self.quantization.format)
        weights: dict[str, Any] = {
            "num_bits": own.weight_bits,
            "type": "float" if own.format in _FLOATS else "int",
            "symmetric": True,
            "strategy": self.per,
            "dynamic": False,
        }
        if form is not None and form.block:
            weights["group_size"] = form.block
        if own.format in HALVES:
            weights["scale_dtype"] = (
                "torch.float8_e4m3fn" if own.format == "nvfp4" else "torch.uint8"
            )
        inputs = None
        if own.activation_bits is not None:
            inputs = {
                "num_bits": own.activation_bits,
                "type": "int",
                "symmetric": own.token,
                "strategy": "token" if own.token else "tensor",
                "dynamic": own.token,
            }
        return {
            "weights": weights,
            "input_activations": inputs,
            "output_activations": None,
            "format": self.encoding,
        }


def scheme_of(level: Level, options: GridOptions) -> Scheme | None:
    """How a level's weights are stored; None: as they are. `options`: of its grids. Raises
    ModelError for a level that has no scheme, which says why, and what is valid."""
    if level.quantization is None:
        return None
    own, form = level.quantization, formats.find(level.quantization.format)
    if why := _unfit(own, form, options):
        raise ModelError(f"{why}. Valid are {VALID}")
    if own.format in _FLOATS:
        per = {"fp8": options.per, "nvfp4": "tensor_group"}.get(own.format, "group")
        return Scheme(_FLOATS[own.format], per, own)
    if own.weight_bits == 8 and own.activation_bits and form is None:
        return Scheme("int-quantized", options.per, own)
    # Kernels for packed weights have scales per row or group: one for all is written row by row.
    return Scheme("pack-quantized", "channel" if form is None else "group", own)


def _unfit(own: Quantization, form: formats.Format | None, options: GridOptions) -> str:
    """Why there is no scheme; empty where there is one."""
    if own.weight_bits is None:
        return "its inputs alone are quantized, for which there is no encoding"
    if (own.activation_bits or 0) > 8:
        return f"its inputs have {own.activation_bits} bits, and runtimes up to 8"
    if own.format in _FLOATS:
        return ""
    if form is not None and form.where != _GROUPS:
        return f"the library has no codes of the format {own.format}"
    if not options.symmetric:
        return (
            "its grids have zero points, which transformers does not load from packed weights; "
            "database.grid: {symmetric: true} makes grids without"
        )
    return ""


def check_module(model: nn.Module, record: LayerRecord) -> None:
    """Whether a quantized weight of the layer could be stored. Raises ModelError."""
    for parameter, values in model.named_parameters():
        if values.dim() == 3 and "experts" in parameter.split("."):
            raise ModelError(
                f"the model's experts are stacked in {parameter!r}, and transformers loads no "
                "quantized layer beside such experts; valid are dense and sparse levels"
            )
    parameter = record.where.parameters[0]
    module, why = model.get_submodule(parameter.rpartition(".")[0]), ""
    if not isinstance(module, nn.Linear):
        why = f"its module is {type(module).__name__}"
    elif record.place is not None:
        why = f"its weight is a part of the parameter {parameter!r}"
    elif record.aliases:
        why = f"its weight is that of {', '.join(map(repr, record.aliases))} too"
    if why:
        raise ModelError(
            f"{why}, and only a Linear with a weight of its own is loaded quantized; name it in "
            "layers.skip, which keeps it dense"
        )
