"""A folder of transformers' whose quantized layers are stored in codes, as the library
compressed-tensors has them: what transformers with that library loads, and vLLM by its sources."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apportion.compressors.errors import ConfigurationError, ModelError, first_line
from apportion.compressors.grids import GridOptions
from apportion.compressors.levels import Level
from apportion.evaluators.data.text.pretrained import quiet
from apportion.evaluators.models.huggingface import Logits
from apportion.search.export.compressed_model import CompressedModel
from apportion.search.export.formats import Runner
from apportion.search.export.huggingface import HuggingFace, inner
from apportion.search.export.kernels import differing, kernels
from apportion.search.export.schemes import HALVES, Scheme, check_module, scheme_of
from apportion.search.export.stored_codes import stored, stored_input
from apportion.search.jobs.job import Job
from apportion.search.runs.pipeline import ModelProblem

_NAME = "compressed-tensors"
_ROUNDED = 0.02
"""Of outputs, where weights come back in bfloat16 (nvfp4): eight bits of each are right."""


class CompressedTensors(HuggingFace):
    """Config groups of layers that have the same scheme; dense and sparse layers are ignored by the
    library, and stored as they are."""

    name = file = _NAME
    on_device = False

    def check_job(self, job: Job) -> None:
        super().check_job(job)
        _library()
        if job.layers.levels or job.layers.bits or job.layers.sparsity:
            return  # which of the levels a search may choose is known when layers are
        for level in job.database.expanded():
            try:
                scheme_of(level, job.database.options().grid)
            except ModelError as error:
                raise ModelError(
                    f"export format {self.name}: level {str(level)!r}: {error}"
                ) from error

    def check(self, problem: ModelProblem) -> None:
        super().check_job(problem.job)
        _library()

    def check_level(self, problem: ModelProblem, layer: str, level: Level) -> None:
        if scheme_of(level, _options(problem)) is not None:
            check_module(problem.workload.model, problem.database.layers[layer])

    def write(self, subject: CompressedModel, path: Path) -> Sequence[str]:
        notes = [*super().write(subject, path)]
        folder, schemes = self.folder(subject, path), _schemes(subject)
        self.tolerance = 0.0
        formats = {scheme.quantization.format for scheme in schemes.values()}
        if "nvfp4" in formats:
            self.tolerance = _ROUNDED
        if subject.activations:  # a last bit of a sum may be a step of the next layer's input
            self.tolerance = None
        halves = sorted(formats & HALVES)
        named = {_own(subject.model, layer): scheme for layer, scheme in schemes.items()}
        _configure(folder / "config.json", inner(subject.model), named, bool(halves))
        if halves:
            notes.append(
                f"transformers decompresses {', '.join(halves)} to bfloat16, in which config.json "
                "therefore has it load the model; the outputs were compared in float32."
            )
        return [*notes, *differing(subject, schemes), *self._size_notes(subject, path)]

    def state(self, subject: CompressedModel) -> dict[str, Tensor]:
        """With codes in place of quantized weights."""
        state, grids = super().state(subject), subject.grids()
        for name, scheme in _schemes(subject).items():
            record, own = subject.problem.database.layers[name], _own(subject.model, name)
            weight = state.pop(f"{own}.weight").reshape(record.shape)
            try:
                made = stored(weight, grids[name], scheme)
            except ModelError as error:
                raise ModelError(f"export format {_NAME}: layer {name!r}: {error}") from error
            if name in subject.activations:
                made |= stored_input(subject.activations[name])
            state |= {f"{own}.{key}": tensor for key, tensor in made.items()}
        return state

    def load(self, subject: CompressedModel, path: Path) -> Runner:
        import transformers

        auto = getattr(transformers, subject.problem.workload.task.auto)
        folder = self.folder(subject, path)
        try:
            with quiet(), _silent():
                made, info = auto.from_pretrained(
                    folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
                )
                if getattr(made, "hf_quantizer", None) is not None:  # as its first call would
                    made.hf_quantizer.compressor.decompress_model(made)
            quantized = [m for m in made.modules() if hasattr(m, "quantization_scheme")]
            for module in quantized:
                module.weight.data = module.weight.data.float()
        except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
            raise ModelError(
                f"export format {_NAME}: transformers does not load what was written "
                f"({first_line(error)})"
            ) from error
        lost = sorted(info["unexpected_keys"]) + sorted(info["missing_keys"])
        if len(quantized) != len(_schemes(subject)) or any("weight_" in key for key in lost):
            raise ModelError(
                f"export format {_NAME}: transformers loads {len(quantized)} of "
                f"{len(_schemes(subject))} quantized layers ({', '.join(lost[:3])})"
            )
        for module in made.modules():
            config: Any = getattr(module, "config", None)
            if getattr(config, "use_cache", False):
                config.use_cache = False
        return Logits(made.eval()) if isinstance(subject.model, Logits) else made.eval()

    def kernels(self, subject: CompressedModel) -> list[dict[str, str]]:
        return kernels(subject.profile, _schemes(subject), subject.problem.database.layers)

    def _size_notes(self, subject: CompressedModel, path: Path) -> list[str]:
        """What is stored in another size than it is counted."""
        zeros = [n for n, level in subject.profile.items() if level.sparsity is not None]
        if not zeros:
            return []
        space = subject.problem.full_space
        candidate = [
            names.index(str(subject.profile[layer]))
            for layer, names in zip(space.layers, space.levels, strict=True)
        ]
        counted = space.total("bits", candidate) / 8
        return [
            f"{len(zeros)} sparse layers, such as {zeros[0]}, are stored with their zeros, for "
            f"which no runtime has kernels: {self.size(path):,} bytes, where bits counts "
            f"{counted:,.0f}."
        ]


def _options(problem: ModelProblem) -> GridOptions:
    return problem.job.database.options().grid


def _schemes(subject: CompressedModel) -> dict[str, Scheme]:
    """Quantized layer -> its scheme."""
    options = _options(subject.problem)
    found = {name: scheme_of(level, options) for name, level in subject.profile.items()}
    return {name: scheme for name, scheme in found.items() if scheme is not None}


def _own(model: nn.Module, layer: str) -> str:
    """The layer's module as transformers names it."""
    return layer.removeprefix("classifier.") if isinstance(model, Logits) else layer


def _configure(file: Path, model: nn.Module, schemes: dict[str, Scheme], halves: bool) -> None:
    """Say in config.json how modules are stored."""
    if not schemes:
        return
    groups: dict[str, dict[str, Any]] = {}
    for name, scheme in schemes.items():
        config = scheme.config()
        group = groups.setdefault(json.dumps(config), {"targets": [], **config})
        group["targets"].append(name)
    targets = {target for group in groups.values() for target in group["targets"]}
    encodings = {scheme.encoding for scheme in schemes.values()}
    content = json.loads(file.read_text(encoding="utf-8"))
    if halves:
        content["dtype"] = "bfloat16"
    content["quantization_config"] = {
        "quant_method": _NAME,
        "format": encodings.pop() if len(encodings) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "config_groups": {f"group_{i}": group for i, group in enumerate(groups.values())},
        "ignore": [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and name not in targets
        ],
    }
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _library() -> None:
    """Raises ConfigurationError without the library."""
    try:
        import compressed_tensors  # noqa: F401 - whether it is there
    except ImportError as error:
        raise ConfigurationError(
            f"export format {_NAME} needs the package {_NAME}: install apportion[{_NAME}]"
        ) from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the library's progress bars, which no switch turns off."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
