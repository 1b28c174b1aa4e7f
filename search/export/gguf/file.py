"""gguf: one file with weights, sizes and tokenizer, as llama.cpp runs it."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from apportion.compressors.errors import ModelError, OutputError
from apportion.db.files import write_atomically, write_text
from apportion.evaluators.data.text.pretrained import PREFIX
from apportion.search.export.compressed_model import CompressedModel
from apportion.search.export.formats import Format, Runner, forget
from apportion.search.export.gguf.architecture import Architecture
from apportion.search.export.gguf.blocks import stored
from apportion.search.export.gguf.tokenizer import Vocabulary
from apportion.search.runs.pipeline import ModelProblem

TYPES = "tensor-types.txt"
"""The profile as llama-quantize reads it: a line `TENSOR=TYPE` for each weight."""
_FLOATS = ("F32", "F16", "BF16")


class Gguf(Format):
    """Each weight as the smallest of GGUF's types that holds it to the bit."""

    file, runtime, tolerance = "model.gguf", "torch, with the weights of the GGUF file,", 0.0

    def check(self, problem: ModelProblem) -> None:
        if importlib.util.find_spec("gguf") is None:
            raise ModelError("export format gguf: install apportion[gguf]")
        if problem.channels is not None:
            raise ModelError(
                "export format gguf: llama.cpp's sizes are those of all blocks, and a model with "
                "channel levels has others in each"
            )
        whole = Architecture(problem.workload.model)
        Vocabulary(_tokenizer(problem), whole.config.vocab_size)

    def write(self, subject: CompressedModel, path: Path) -> Sequence[str]:
        if subject.activations:
            raise ModelError(
                "export format gguf: llama.cpp has no grids for inputs, and "
                f"{next(iter(subject.activations))!r} is at a level that quantizes these"
            )
        whole = Architecture(subject.model)
        parts = list(_parts(subject, whole))
        write_atomically(path, lambda temporary: _save(temporary, subject, whole, parts))
        _compare(path, parts)
        lines = [f"{part.tensor}={part.type.lower()}\n" for part in parts if part.matrix]
        write_atomically(path.with_name(TYPES), lambda file: write_text(file, "".join(lines)))
        return _notes(subject, parts)

    def load(self, subject: CompressedModel, path: Path) -> Runner:
        model = subject.fresh(path.parent)
        forget(model)
        whole, found = Architecture(model), _tensors(path)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                tensor = whole.tensor(name)
                values, order = found[tensor], whole.order(tensor, len(parameter))
                back = slice(None) if order is None else np.argsort(order)
                parameter.copy_(torch.from_numpy(values[back].copy()))
        return model


@dataclass(frozen=True, slots=True)
class _Part:
    """A tensor of the file: `weight`, float32, with its rows in the file's order, as `type`."""

    layer: str
    tensor: str
    weight: Tensor
    type: str
    data: np.ndarray

    @property
    def matrix(self) -> bool:
        return self.weight.dim() > 1


def _parts(subject: CompressedModel, whole: Architecture) -> Iterator[_Part]:
    """Shared parameters come once."""
    grids = subject.quantized()
    for name, parameter in subject.model.named_parameters():
        layer, tensor = name.removesuffix(".weight"), whole.tensor(name)
        weight, grid = parameter.detach().float().contiguous(), None
        if layer in grids and name != layer:
            grid = grids[layer].weight
        order = whole.order(tensor, len(weight))
        if order is not None:
            rows = torch.from_numpy(order)
            weight, grid = weight[rows], None if grid is None else grid.rows(rows)
        made = stored(weight, grid)
        yield _Part(layer, tensor, weight, made.type, made.data)
    if whole.factors is not None:
        yield _Part("", "rope_freqs.weight", whole.factors, "F32", whole.factors.numpy())


def _save(path: Path, subject: CompressedModel, whole: Architecture, parts: list[_Part]) -> None:
    import gguf

    problem = subject.problem
    writer = gguf.GGUFWriter(str(path), whole.name)
    writer.add_name(problem.job.workload.name.removeprefix(PREFIX).rstrip("/").rpartition("/")[2])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(_most(parts))
    whole.describe(writer)
    Vocabulary(_tokenizer(problem), whole.config.vocab_size).describe(writer)
    for part in parts:
        kind = gguf.GGMLQuantizationType[part.type]
        writer.add_tensor(part.tensor, part.data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _most(parts: list[_Part]) -> int:
    """llama.cpp's number for a file that is mostly of the type that most weights have."""
    import gguf

    sizes: Counter[str] = Counter()
    for part in parts:
        sizes[part.type] += part.weight.numel()
    name = sizes.most_common(1)[0][0]
    known = {"F32": "ALL_F32", "MXFP4": "MOSTLY_MXFP4_MOE"}
    return int(gguf.LlamaFileType[known.get(name, f"MOSTLY_{name}")])


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """By name, as gguf's own reader and dequantizer give them, float32."""
    import gguf

    return {
        own.name: gguf.dequantize(own.data, own.tensor_type).reshape(own.shape[::-1])
        for own in gguf.GGUFReader(path).tensors
    }


def _compare(path: Path, parts: list[_Part]) -> None:
    """Raises OutputError where the file holds other weights than the model."""
    found = _tensors(path)
    for part in parts:
        if not np.array_equal(found[part.tensor], part.weight.numpy()):
            raise OutputError(
                path, f"gguf reads other weights of {part.tensor} than the model has: please report"
            )


def _tokenizer(problem: ModelProblem) -> str:
    """Its name, as jobs have it. Raises ModelError."""
    workload = problem.job.workload
    name = getattr(workload.data, "tokenizer", None)
    if name is None and workload.name.startswith(PREFIX):
        name = workload.name.removeprefix(PREFIX)
    if name is None:
        raise ModelError(
            f"export format gguf: model {workload.name!r} brings no tokenizer, and the job has no "
            "workload.data.tokenizer"
        )
    return str(name)


def _notes(subject: CompressedModel, parts: list[_Part]) -> list[str]:
    """What is in the file, and what of the profile is not."""
    sizes: Counter[str] = Counter()
    for part in parts:
        sizes[part.type] += part.data.nbytes
    whole = sum(sizes.values())
    notes = [
        f"tensors of {whole:,} bytes: "
        + ", ".join(f"{kind} {size:,}" for kind, size in sizes.most_common())
        + "; each weight is the model's to the bit, as gguf's own reader gives it."
    ]
    counted = _counted(subject)
    if abs(whole - counted) > 0.01 * counted:
        notes.append(
            f"The metric `bits` counts {counted:,.0f} bytes, the file has {whole:,}: floats are "
            "counted as float32, and codes and masks of levels that GGUF has no type for as the "
            "layer database stores them."
        )
    levels = {name: str(level) for name, level in subject.profile.items() if not level.is_dense}
    left = [
        f"{part.layer} ({levels[part.layer]}, {part.type})"
        for part in parts
        if part.layer in levels and part.type in _FLOATS and part.matrix
    ]
    if left:
        some = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        notes.append(f"GGUF has no type for the levels of these layers, which are floats: {some}.")
    if set(sizes) - set(_FLOATS):
        notes.append(
            "llama.cpp rounds what it multiplies with quantized weights to 8 bits, so that its "
            "outputs are not quite those that were measured here."
        )
    return notes


def _counted(subject: CompressedModel) -> float:
    """Bytes of the weights as the metric `bits` has them."""
    database, model = subject.problem.database, subject.model
    bits = 8.0 * _size(model)
    for name, level in subject.profile.items():
        bits += database.entry(name, level).bits - 32 * database.layers[name].size
    return bits / 8


def _size(model: nn.Module) -> int:
    return sum(own.numel() * own.element_size() for own in model.parameters())
