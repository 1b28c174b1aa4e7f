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
    "wB, wBgG, wBaA and wBgGaA on symmetric grids (A up to 8), fp8, mxfp4, mxfp6, mxfp8, nvfp4, "
    "sparse levels and dense"
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
                "symmetric": False,
                "strategy": "tensor",
                "dynamic": False,
            }
        return {
            "weights": weights,
            "input_activations": inputs,
            "output_activations": None,
            "format": self.encoding,
        }


def scheme_of(level: Level, options: GridOptions) -> Scheme | None:
    """How a level's weights are stored; None: as they are. `options`: of its grids. Raises
    ModelError for a level that has no scheme, which says why."""
    own = level.quantization
    if own is None:
        return None
    if own.weight_bits is None:
        raise ModelError("its inputs alone are quantized, for which there is no encoding")
    if (own.activation_bits or 0) > 8:
        raise ModelError(f"inputs of {own.activation_bits} bits; runtimes have up to 8")
    if own.format in _FLOATS:
        per = {"fp8": options.per, "nvfp4": "tensor_group"}.get(own.format, "group")
        return Scheme(_FLOATS[own.format], per, own)
    form = formats.find(own.format)
    if form is not None and form.where != _GROUPS:
        raise ModelError(f"the format {own.format} is none that the library has codes for")
    if not options.symmetric:
        raise ModelError(
            "its grids have zero points, which transformers does not load from packed weights; "
            "database.grid: {symmetric: true} makes grids that it does"
        )
    if own.weight_bits == 8 and own.activation_bits and not own.format:
        return Scheme("int-quantized", options.per, own)
    # Kernels for packed weights have scales per row or group: one for all is written row by row.
    return Scheme("pack-quantized", "group" if own.format else "channel", own)


def check_module(model: nn.Module, name: str, record: LayerRecord) -> None:
    """Whether a quantized weight of the layer could be stored. Raises ModelError."""
    if record.place is not None:
        raise ModelError(
            f"its weight is a part of the parameter {record.where.parameters[0]!r}, of which the "
            "format has no parts"
        )
    if record.aliases:
        raise ModelError(
            f"its weight is that of {', '.join(map(repr, record.aliases))} too, and what is tied "
            "is loaded unquantized"
        )
    module = model.get_submodule(name)
    if not isinstance(module, nn.Linear):
        raise ModelError(
            f"its module is a {type(module).__name__}, and what is loaded quantized is Linear alone"
        )
