"""Export: a chosen profile as files that other tools read, each loaded again and run before it is
kept.

profile.json        layer -> level, costs, fitness, values of the metric, files, provenance
model_card.md       the same for readers, with the front matter that model hubs read
model.safetensors   the stitched model's state dict, corrected as the job asks
shapes.json         of a smaller model, what `apportion.resize` gives the model's class before
                    that is loaded
rewind.safetensors  of a smaller model, the early weights that `recovery.rewind` set it back to
huggingface/        the same as transformers' from_pretrained takes it, with its tokenizer
compressed-tensors/ the same with quantized layers in codes, as transformers and vLLM have them
model.gguf          the same as llama.cpp takes it, with its tokenizer and tensor-types.txt
model.packed        the same, packed: db/layers/packed.py
model.pt2           the model as a program of torch.export
model.onnx          the model with its quantized layers in integers
profile.txt, .csv, .yaml
                    the profile for other tools: SPDY's text (where the levels are sparsities), a
                    table, maps and lists
"""

from __future__ import annotations

import copy
import importlib.metadata
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apportion.compressors.corrections import correct, needs_dense, possible, record
from apportion.compressors.errors import ModelError, ProfileError
from apportion.compressors.levels import Level, parse_level
from apportion.compressors.progress import Progress, silent
from apportion.compressors.threads import device_for
from apportion.db.files import finite, write_atomically, write_json, write_text
from apportion.db.layers.profile import Profile, to_json, to_spdy
from apportion.db.layers.profile_files import to_csv, to_yaml
from apportion.evaluators.data import trees
from apportion.evaluators.data.dataset import Batch
from apportion.evaluators.training.config import RecoveryConfig
from apportion.evaluators.training.recovery import check_held, check_recovery, early_weights
from apportion.evaluators.workloads.evaluate import evaluate
from apportion.evaluators.workloads.workload import TUNING, Workload
from apportion.search.export.card import model_card
from apportion.search.export.compressed_model import CompressedModel
from apportion.search.export.recover import recover
from apportion.search.export.registry import PROFILE, resolve
from apportion.search.export.smaller_model import SmallerModel
from apportion.search.export.staging import SUMMARY, staging, summary
from apportion.search.export.verify import running, verify
from apportion.search.jobs.channel_checks import check_smaller_recovery
from apportion.search.jobs.job import Job
from apportion.search.runs.loop import RunResult
from apportion.search.runs.pipeline import ModelProblem
from apportion.search.space.space import Candidate

__all__ = [
    "Chosen",
    "Exported",
    "check_formats",
    "check_job",
    "export",
    "exported_before",
    "score_profile",
]

_AFTER = {
    "batchnorm": "retuned",
    "statistics": "statistics corrected",
    "bias": "bias corrected",
    "rewind": "rewound",
    "lintune": "lintuned",
    "adaprune": "adapruned",
    "finetune": "fine-tuned",
}
"""What the metric's values after each step are called."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A candidate to export, its fitness, and where it comes from."""

    candidate: Candidate
    fitness: float
    origin: dict[str, Any]

    @classmethod
    def of(cls, result: RunResult) -> Chosen:
        """The pick of a run."""
        origin = {
            "run": result.run.id,
            "algorithm": result.run.algorithm,
            "parameters": result.run.parameters,
            "seed": result.run.seed,
            "evaluations": result.evaluations,
        }
        return cls(result.pick.candidate, result.pick.fitness, origin)


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: the files by name, and the content of profile.json."""

    files: dict[str, Path]
    content: dict[str, Any]


def export(
    chosen: Chosen | RunResult,
    problem: ModelProblem,
    out: str | Path,
    progress: Progress = silent,
    formats: Sequence[str] = ("safetensors",),
    recovery: RecoveryConfig | None = None,
) -> Exported:
    """Stitch a profile, correct the model on the workload's training data and train it, measure the
    task's metric on test data dense, stitched and after each step, and write profile and model.
    Each written model is loaded in what runs it and compared (`verify`). A training that is
    interrupted goes on at its last whole epoch: its state is in OUT.recovery until the export is
    there.

    Args:
        chosen: a run's result, whose pick is taken, or another profile.
        problem: what it is a profile of.
        out: the folder to write to.
        progress: told of each step.
        formats: names of what the model is written as.
        recovery: how to train; by default as the job says.

    Returns:
        The files, and what the profile file says.

    Raises:
        UnknownNameError: a format that is not known.
        ConfigurationError: two formats of one file, or a step of recovery that is not for channels.
        ModelError: a format cannot hold the model.
        OutputError: a file cannot be written, or is another model; then nothing is left in `out`.
    """
    out = Path(out)
    forms = resolve(formats)
    chosen = Chosen.of(chosen) if isinstance(chosen, RunResult) else chosen
    recovery = recovery or problem.job.recovery
    check_recovery(problem.workload, recovery)
    metric = problem.workload.task.metric
    if problem.channels is None:
        check_held(problem.workload.model, problem.database, recovery)
    else:
        check_smaller_recovery(recovery)
    profile = problem.profile(chosen.candidate)
    check_formats(formats, problem, profile)
    kind = CompressedModel if problem.channels is None else SmallerModel
    subject = kind(copy.deepcopy(problem.workload.model), problem, profile)
    dense = sum(
        tensor.numel() * tensor.element_size() for tensor in subject.model.state_dict().values()
    )
    training = out.with_name(f"{out.name}.recovery")
    with staging(out) as folder:
        values = _compress(subject, recovery, training, progress)
        exports = {}
        subject.write_shapes(folder)
        for form in forms:
            path = folder / form.file
            notes = form.write(subject, path)
            checked = verify(
                form, subject, path, list(values.values())[-1], out / form.file, progress
            )
            exports[form.file] = checked | {"of_dense": checked["bytes"] / dense}
            if notes:
                exports[form.file]["notes"] = list(notes)
            if kernels := form.kernels(subject):
                exports[form.file]["kernels"] = kernels
        content: dict[str, Any] = {
            "profile": to_json(subject.profile),
            "budgets": problem.bounds(),
            "costs": problem.ratios(chosen.candidate),
            "fitness": {
                "name": problem.job.fitness,
                "batchnorm": problem.job.batchnorm,
                "value": chosen.fitness,
            },
            metric.name: values,
            "metric": metric.to_json(),
            "exports": exports,
            "activations": {name: asdict(grid) for name, grid in subject.activations.items()},
            "steps": _steps(problem, recovery),
            "provenance": _provenance(chosen, problem),
        }
        card = model_card(content, problem.job.workload.name)
        texts = {"model_card.md": card, **_profiles(subject.profile, PROFILE in formats)}
        for file, text in texts.items():
            write_atomically(folder / file, lambda path, text=text: write_text(path, text))  # type: ignore[misc]
        content["written"] = [SUMMARY, *sorted(path.name for path in folder.iterdir())]
        write_json(folder / SUMMARY, finite(content))  # a metric may be undefined
    shutil.rmtree(training, ignore_errors=True)
    return Exported({name: out / name for name in content["written"]}, content)


def exported_before(chosen: Chosen, problem: ModelProblem, out: Path) -> Exported | None:
    """What `export` wrote to `out` for the same profile of the same problem, where all of it is
    still there."""
    expected = {
        "profile": to_json(problem.profile(chosen.candidate)),
        "metric": problem.workload.task.metric.to_json(),
        "steps": _steps(problem, problem.job.recovery),
        "provenance": _provenance(chosen, problem),
    }
    content = summary(out)
    if any(content.get(key) != value for key, value in expected.items()):
        return None
    files = {name: out / name for name in content["written"]}
    return Exported(files, content) if all(path.exists() for path in files.values()) else None


def score_profile(profile: Profile, problem: ModelProblem, source: str) -> Chosen:
    """A profile from elsewhere, one level of the database for each of its layers, scored as
    searches score."""
    whole = problem.full_space
    candidate = tuple(
        names.index(str(profile[layer]))
        for layer, names in zip(whole.layers, whole.levels, strict=True)
    )
    (score,) = problem.pool().evaluate([(candidate, 1.0)])
    return Chosen(candidate, score.fitness, {"imported": source})


def check_formats(
    formats: Sequence[str], problem: ModelProblem | None = None, profile: Profile | None = None
) -> None:
    """Whether the formats are known, and can hold what comes of `problem`: all that its search may
    choose, or a `profile`. Raises UnknownNameError, ConfigurationError, ModelError."""
    forms = resolve(formats)
    if problem is None:
        return
    for form in forms:
        form.check(problem)
        for layer, levels in _chosen_among(problem, profile):
            for level in levels:
                try:
                    form.check_level(problem, layer, level)
                except ModelError as error:
                    raise ModelError(
                        f"export format of {form.file}: layer {layer!r} at level {str(level)!r}: "
                        f"{error}"
                    ) from error


def check_job(formats: Sequence[str], job: Job) -> None:
    """The same of a job that nothing was built of yet. Raises what `check_formats` raises."""
    for form in resolve(formats):
        form.check_job(job)


def _chosen_among(
    problem: ModelProblem, profile: Profile | None
) -> Iterator[tuple[str, list[Level]]]:
    """Each layer with its levels; nothing where groups of channels are decided instead."""
    if problem.channels is not None:
        return
    if profile is not None:
        yield from ((layer, [level]) for layer, level in profile.items())
        return
    space = problem.full_space
    for members, choices in zip(problem.decisions.members, problem.decisions.choices, strict=True):
        for n, layer in enumerate(members):
            names = [space.levels[layer][choice[n]] for choice in choices]
            yield space.layers[layer], [parse_level(name) for name in names]


def _compress(
    subject: CompressedModel, recovery: RecoveryConfig, training: Path, progress: Progress
) -> dict[str, float]:
    """Stitch, correct and train `subject.model`; the metric on test data after each step.
    `training`: a folder for what is needed to go on with a training that was interrupted."""
    workload = subject.problem.workload
    device = device_for(subject.problem.job.workers.gpus)

    def measured(what: str) -> float:
        with running(subject.model, device):
            return evaluate(workload, subject.model, device, progress, f"test {what}")

    def training_data() -> Iterator[Batch]:
        for batch in _training(workload, subject.problem.job.workload.seed):
            yield trees.placed(batch, device)

    calibration = workload.correction_pass(training_data)

    def note(step: str) -> None:
        values[_AFTER[step]] = measured(_AFTER[step])

    values = {"dense": measured("dense")}
    corrections = possible(subject.problem.job.corrections.export, subject.model)
    with running(subject.model, device):
        recorded = record(subject.model, calibration) if needs_dense(corrections) else {}
    subject.stitch()
    values["stitched"] = measured("stitched")
    if recovery.rewind is not None:
        subject.rewind(early_weights(workload.model, recovery.rewind))
        note("rewind")
    for name in corrections:
        with running(subject.model, device):
            correct(name, subject.model, calibration, recorded)
        note(name)
    recover(subject, recovery, training, note, progress)
    return values


def _profiles(profile: Profile, every: bool) -> dict[str, str]:
    """File -> text."""
    texts = {"profile.csv": to_csv(profile), "profile.yaml": to_yaml(profile)} if every else {}
    with suppress(ProfileError):  # quantized levels: the format cannot say them
        texts["profile.txt"] = to_spdy(profile)
    return texts


def _training(workload: Workload, seed: int) -> Iterator[Batch]:
    """The data that corrections look at: all training samples, or as many random ones, read batch
    by batch."""
    train, size = workload.train, workload.batch_size
    if len(train) <= TUNING:
        return train.batches(size)
    order = np.random.default_rng(seed).permutation(len(train))[:TUNING].tolist()
    return (train.subset(order[at : at + size]).batch for at in range(0, TUNING, size))


def _steps(problem: ModelProblem, recovery: RecoveryConfig) -> dict[str, Any]:
    """What was done to the stitched model."""
    return {
        "corrections": list(problem.job.corrections.export),
        "recovery": recovery.model_dump(mode="json", exclude_none=True),
    }


def _provenance(chosen: Chosen, problem: ModelProblem) -> dict[str, Any]:
    return {
        "job": problem.id,
        "problem": problem.key,
        **chosen.origin,
        "database": problem.database.fingerprint,
        "model": problem.database.model_fingerprint,
        "calibration": problem.database.calibration_fingerprint,
        "versions": {
            "python": platform.python_version(),
            **{
                name: importlib.metadata.version(name)
                for name in ("apportion", "torch", "numpy", "scipy")
            },
        },
    }
