"""What runs a folder of compressed-tensors, from the runtimes' own sources: the table that the
model card shows, and what one of them will not load.

vLLM: `_get_scheme_from_parts` of vllm/model_executor/layers/quantization/compressed_tensors/
compressed_tensors.py and the schemes beside it, as of 2026-08 (WNA16, WNA8, WNA4; pull
request 46389 for the bits that Marlin does not have); MARLIN_SUPPORTED_GROUP_SIZES; its
documentation of INT8 and FP8. transformers: quantizers/quantizer_compressed_tensors.py of 5.24."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from apportion.compressors import formats
from apportion.db.layers.format import LayerRecord
from apportion.db.layers.profile import Profile
from apportion.evaluators.workloads.partners import partners
from apportion.search.export.compressed_model import CompressedModel
from apportion.search.export.schemes import Scheme

AS_OF = (
    "vLLM of August 2026 (which computes in half precision; in brackets: least compute "
    "capability), transformers 5.24. llama.cpp reads GGUF alone."
)
_MARLIN = (32, 64, 128)
"""Columns of a group; or whole rows."""
_NONE = "not loaded"
_HUMMING = "Humming kernels (7.5; the package humming, and vLLM since June 2026)"
_FLOATS = {
    "fp8": "weights alone, FP8 Marlin (compute capability 7.5)",
    "mxfp4": "MXFP4, by Marlin with inputs in halves (8.0); newer processors may round inputs too",
    "mxfp6": f"{_NONE}: no scheme",
    "mxfp8": "MXFP8 (7.5); inputs are rounded to MXFP8 too, so that outputs differ from these",
    "nvfp4": "weights alone, FP4 Marlin or FP4 units (7.5)",
}


def vllm(scheme: Scheme) -> str:
    """What vLLM runs a layer by; begins with `not loaded` where it does not."""
    own = scheme.quantization
    if own.format in _FLOATS:
        return _FLOATS[own.format]
    if scheme.encoding == "int-quantized":
        return "INT8 products (7.5 to 9.0; not on Blackwell)"
    if own.weight_bits == 1:
        return f"{_NONE}: packed weights have 2 to 8 bits"
    if own.activation_bits is not None:
        if own.token and own.activation_bits in (4, 8):
            return f"integer products by {_HUMMING}"
        return f"{_NONE}: inputs of packed weights have 4 or 8 bits and a scale for each token"
    form = formats.find(own.format)
    if own.weight_bits not in (4, 8):
        return _HUMMING
    if form is not None and form.block not in _MARLIN:
        return "no Marlin kernel for such groups (32, 64, 128): slower, or refused"
    return "Marlin (7.5)"


def kernels(
    profile: Profile, schemes: Mapping[str, Scheme], layers: Mapping[str, LayerRecord]
) -> list[dict[str, str]]:
    """A row for each level and kind of layer, in the order of the profile."""
    rows: dict[tuple[str, ...], int] = {}
    for name, level in profile.items():
        by = _unquantized(level.sparsity is not None)
        if name in schemes:
            by = {
                "vLLM": vllm(schemes[name]),
                "transformers": "decompressed at the first call, products in floats",
            }
        key = (str(level), layers[name].kind, by["vLLM"], by["transformers"])
        rows[key] = rows.get(key, 0) + 1
    heads = ("level", "kind", "vLLM", "transformers")
    return [
        {**dict(zip(heads, key, strict=True)), "layers": str(count)} for key, count in rows.items()
    ]


def _unquantized(sparse: bool) -> dict[str, str]:
    said = "as dense: zeros are multiplied" if sparse else "in floats"
    return {"vLLM": said, "transformers": said}


def differing(subject: CompressedModel, schemes: Mapping[str, Scheme]) -> list[str]:
    """What vLLM will not load, or runs by the scheme of another layer, a sentence each."""
    problem = subject.problem
    layers, workload = problem.database.layers, problem.workload
    lost = [name for name, scheme in schemes.items() if vllm(scheme).startswith(_NONE)]
    notes = []
    if lost:
        notes.append(
            f"vLLM does not load {len(lost)} of the layers, such as {lost[0]} at "
            f"{subject.profile[lost[0]]}; transformers does."
        )
    configs = {name: scheme.config() for name, scheme in schemes.items()}
    sets = partners(workload.model, layers.values(), workload.traced_pass())
    apart = [s for s in sets if len(list(groupby(s, key=configs.get))) > 1]
    if apart:
        notes.append(
            f"vLLM fuses layers that read the same tensor, which must have one format, and "
            f"{len(apart)} sets of these do not, such as {', '.join(apart[0])}: it refuses the "
            "folder, or misreads it; transformers does not. `layers: {tie: auto}` in the job keeps "
            "them alike."
        )
    return notes
