"""Export: a run's picked profile as files that other tools read, with the accuracy they have.

profile.json        layer -> level, costs, fitness, accuracies, provenance
profile.txt         the text format of SPDY's tools, where the levels are sparsities
model.safetensors   the stitched model's state dict, corrected as the job asks
model.onnx          the same model with its quantized layers in integers, run and compared before it is kept
"""

from __future__ import annotations

import copy
import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from compressors.corrections import correct, needs_dense, record
from compressors.errors import OutputError, ProfileError, UnknownNameError
from compressors.progress import Progress
from db.database import LayerDatabase
from db.files import write_atomically, write_bytes, write_json, write_text
from db.profile import Profile, to_json, to_spdy
from evaluators import onnx_model
from evaluators.data import Split
from evaluators.workloads import Workload
from search.pipeline import ModelProblem
from search.run import RunResult

_AFTER = {"batchnorm": "retuned", "statistics": "statistics corrected", "bias": "bias corrected"}
"""Names of the accuracies after each correction."""
FILES = ("profile.json", "profile.txt", "model.safetensors", "model.onnx")
FORMATS = ("safetensors", "onnx")
_SAME = 0.1
"""Points of test accuracy by which an exported model may differ from the one that it stands for."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: the files by name, and the content of profile.json."""

    files: dict[str, Path]
    content: dict[str, Any]


def export(
    result: RunResult,
    problem: ModelProblem,
    out: str | Path,
    progress: Progress | None = None,
    formats: Sequence[str] = ("safetensors",),
) -> Exported:
    """Stitch the picked profile of `result`, correct the model on the workload's training images as the job asks, measure the
    test accuracy (percent) dense, stitched and after each correction, and write the profile and the model in `formats` to the
    folder `out`. An ONNX model is run in ONNX Runtime on the test images. Raises UnknownNameError, and OutputError, also for an
    ONNX model whose accuracy is another; then nothing is left behind."""
    out = Path(out)
    check_formats(formats)
    profile = problem.profile(result.pick.candidate)
    workload = problem.workload
    with _staging(out) as folder:
        model = copy.deepcopy(workload.model)
        accuracy = {"dense": test_accuracy(model, workload.test, workload.batch_size, progress, "test dense")}
        corrections = problem.job.corrections.export
        recorded = record(model, _training(workload)) if needs_dense(corrections) else {}
        problem.database.stitch(model, profile)
        accuracy["stitched"] = test_accuracy(model, workload.test, workload.batch_size, progress, "test stitched")
        for name in corrections:
            correct(name, model, lambda: _training(workload), recorded)
            after = _AFTER[name]
            accuracy[after] = test_accuracy(model, workload.test, workload.batch_size, progress, f"test {after}")
        if "onnx" in formats:
            proto = _to_onnx(model, problem, profile)
            accuracy["onnx"] = _onnx_accuracy(proto, workload, progress)
            if abs(accuracy["onnx"] - list(accuracy.values())[-2]) > _SAME:
                raise OutputError(
                    out / "model.onnx",
                    f"ONNX Runtime gives {accuracy['onnx']:.2f} % test accuracy instead of {list(accuracy.values())[-2]:.2f} %",
                )
            write_atomically(folder / "model.onnx", lambda path: write_bytes(path, proto.SerializeToString()))
        content = {
            "profile": to_json(profile),
            "budgets": problem.bounds(),
            "costs": problem.ratios(result.pick.candidate),
            "fitness": {"name": problem.job.fitness, "batchnorm": problem.job.batchnorm, "value": result.pick.fitness},
            "accuracy": accuracy,
            "activations": _activations(problem.database, profile),
            "provenance": _provenance(result, problem),
        }
        write_json(folder / "profile.json", content)
        try:
            text = to_spdy(profile)
        except ProfileError:
            text = ""  # quantized levels: the format cannot say them
        if text:
            write_atomically(folder / "profile.txt", lambda path: write_text(path, text))
        if "safetensors" in formats:
            write_atomically(folder / "model.safetensors", lambda path: save_model(model, str(path)))
    return Exported({name: out / name for name in FILES if (out / name).is_file()}, content)


def check_formats(formats: Sequence[str]) -> None:
    """Raises UnknownNameError."""
    for name in formats:
        if name not in FORMATS:
            raise UnknownNameError("export format", name, FORMATS)


def _to_onnx(model: nn.Module, problem: ModelProblem, profile: Profile) -> Any:
    """`model` as ONNX, its grids stretched as corrections stretched its rows."""
    database = problem.database
    modules = dict(model.named_modules(remove_duplicate=False))
    quantized = {}
    for name, level in profile.items():
        grid, activation = database.grid(name, level), database.entry(name, level).activation
        if grid is not None:
            weight = modules[name].weight
            assert isinstance(weight, Tensor)
            grid = onnx_model.stretched(grid, database.weight(name, level), weight.detach())
        if grid is not None or activation is not None:
            for own in (name, *database.layers[name].aliases):
                quantized[own] = onnx_model.Quantized(grid, activation)
    example = next(iter(problem.workload.test.batches(2)))[0]
    return onnx_model.to_onnx(model, example, quantized)


def _onnx_accuracy(proto: Any, workload: Workload, progress: Progress | None) -> float:
    opened = onnx_model.session(proto, torch.get_num_threads())
    right = seen = 0
    for inputs, labels in workload.test.batches(workload.batch_size):
        right += int((onnx_model.run(opened, inputs).argmax(1) == labels).sum())
        seen += len(labels)
        if progress:
            progress("test onnx", seen, len(workload.test))
    return 100.0 * right / seen


def _training(workload: Workload) -> Iterator[Tensor]:
    return (inputs for inputs, _ in workload.train.batches(workload.batch_size))


def test_accuracy(model: nn.Module, test: Split, batch_size: int, progress: Progress | None = None, what: str = "test") -> float:
    """Accuracy of `model` (as it is, eval mode) on `test` in percent; higher is better."""
    right = seen = 0
    with torch.inference_mode():
        for inputs, labels in test.batches(batch_size):
            right += int((model(inputs).argmax(1) == labels).sum())
            seen += len(labels)
            if progress:
                progress(what, seen, len(test))
    return 100.0 * right / seen


def _activations(database: LayerDatabase, profile: Profile) -> dict[str, dict[str, Any]]:
    """Layer -> grid of its input, where the profile quantizes that: the state dict does not hold it."""
    grids = {name: database.entry(name, level).activation for name, level in profile.items()}
    return {name: asdict(grid) for name, grid in grids.items() if grid is not None}


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A folder beside `out` whose files move into `out` when all of them are there."""
    created: Path | None = None
    try:
        existed = out.exists()
        out.mkdir(parents=True, exist_ok=True)
        if not existed:
            created = out
        staging = Path(tempfile.mkdtemp(prefix=".export-", dir=out))
    except OSError as error:
        raise OutputError(out, error.strerror or str(error)) from error
    try:
        yield staging
        for name in FILES:
            if (staging / name).exists():
                os.replace(staging / name, out / name)
            else:
                (out / name).unlink(missing_ok=True)  # of an earlier export; it would not belong to this one
        created = None
    except OSError as error:
        raise OutputError(out, error.strerror or str(error)) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if created is not None:
            shutil.rmtree(created, ignore_errors=True)


def _provenance(result: RunResult, problem: ModelProblem) -> dict[str, Any]:
    return {
        "job": problem.id,
        "problem": problem.key,
        "run": result.run.id,
        "algorithm": result.run.algorithm,
        "parameters": result.run.parameters,
        "seed": result.run.seed,
        "evaluations": result.evaluations,
        "database": problem.database.fingerprint,
        "model": problem.database.model_fingerprint,
        "calibration": problem.database.calibration_fingerprint,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("apportion", "torch", "numpy", "scipy")},
        },
    }
