"""Which way is better, through a whole job: a metric that is to fall and one that is to rise. What
reports call best is held against the metric of every profile that was scored, computed anew."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from apportion.compressors.levels import parse_level
from apportion.db.layers.database import LayerDatabase
from apportion.db.runs.store import RunStore, StoredTrial
from apportion.evaluators.tasks.regression import Regression
from apportion.evaluators.tasks.task import Metric
from apportion.evaluators.workloads.workload import load_workload
from apportion.search.cli.main import main
from apportion.search.jobs.job_file import load_model_job
from apportion.search.report.figures import job_figures
from apportion.search.web.report import page
from tests.vision import nets

SPREAD = ["dense", "unstr-0.50", "unstr-0.90", "w2"]


def job_file(folder: Path, task: str, data: str) -> Path:
    content = nets.job(folder, "mlp", task, data)
    content["database"]["levels"] = SPREAD
    content["search"] = {
        "algorithms": ["random", "local", "race"],
        "evaluations": 16,
        "seeds": [0, 1],
        "picks": 1,
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(content | {"fitness": "error"}))
    return path


def measured(job: Path, candidates: set[tuple[int, ...]]) -> dict[tuple[int, ...], float]:
    """The metric on the calibration data of each profile, stitched and run without the scorer."""
    config = load_model_job(job)
    workload = load_workload(config.workload)
    database = LayerDatabase.open(config.database.path)
    task, batch, found = workload.task, workload.calibration.subset(range(64)).batch, {}
    for candidate in candidates:
        levels = {
            name: parse_level(texts[index])
            for (name, texts), index in zip(database.levels().items(), candidate, strict=True)
        }
        database.stitch(workload.model, levels)
        with torch.no_grad():
            rows = task.rows(task.forward(workload.model, batch), batch)
        found[candidate] = task.measure(rows)
    return found


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def full(store: RunStore, run: str) -> list[StoredTrial]:
    """The trials that were scored on all samples, and to the end."""
    return [t for t in store.trials(run) if t.fidelity == 1.0 and math.isfinite(t.fitness)]


@pytest.mark.parametrize(
    ("task", "data", "title", "sign"),
    [
        ("regression", "number_splits", "root mean squared error, lower is better", -1),
        ("multi-label", "label_splits", "macro F1, %", 1),
    ],
)
def test_what_is_called_best_has_the_better_metric(
    task: str, data: str, title: str, sign: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = job_file(tmp_path, task, data)
    searched = json.loads(told(capsys, "search", job, "--json"))
    place = ("--store", searched["store"])
    store = RunStore(searched["store"])
    trials = [trial for run in store.runs() for trial in full(store, run.id)]
    metric = measured(job, {trial.candidate for trial in trials})
    by_fitness = sorted(trials, key=lambda trial: trial.fitness)
    best, worst = by_fitness[0], by_fitness[-1]

    # the direction of the fitness is the metric's own
    assert sign * metric[best.candidate] > sign * metric[worst.candidate]
    if task == "regression":  # the fitness is the metric's square here, on the same samples
        for trial in by_fitness:
            assert trial.fitness == pytest.approx(metric[trial.candidate] ** 2)

    # league, comparison, page: the best first, and as best
    compared = json.loads(told(capsys, "compare", *place, "--json"))
    figures = job_figures(store, searched["job"])
    for rows in (searched["league"], compared["standings"], figures["league"]):
        assert min(row["best"] for row in rows) == best.fitness
        assert [row["median"] for row in rows] == sorted(row["median"] for row in rows)
        for row in rows:
            own = [
                min(t.fitness for t in full(store, run.id))
                for run in store.runs()
                if run.algorithm == row["algorithm"]
            ]
            assert row["best"] == min(own)
    for test in compared["comparison"]["pairwise"]:
        ranks = compared["comparison"]["ranks"]
        assert ranks[test["better"]] <= ranks[test["worse"]]
    assert figures["summary"]["best"] == best.fitness
    assert figures["trials"][0]["fitness"] == best.fitness
    assert figures["space"]["task"] == task
    assert figures["space"]["metric"] == title
    assert title in page(figures)
    for curve in figures["curves"]:
        assert curve["median"] == sorted(curve["median"], reverse=True)

    # the pick of the best run, shown and exported
    run = next(row["run"] for row in searched["league"] if row["best"] == best.fitness)
    assert store.run(run).best == best.fitness
    shown = json.loads(told(capsys, "show", run, *place, "--json"))
    assert (shown["fitness"], shown["metric"]) == (best.fitness, title)
    text = told(capsys, "show", run, *place)
    assert f"metric: {title}\n" in text
    assert "(error, lower is better)" in text
    printed = told(capsys, "export", run, "-o", tmp_path / "out", *place)
    content = json.loads((tmp_path / "out" / "profile.json").read_text())
    measure = Metric(**content["metric"])
    assert measure.title == title
    words = f"{measure.name} (lower is better)" if sign < 0 else measure.name
    assert f"test {words}, dense: {measure.text(content[measure.name]['dense'])}\n" in printed
    card = (tmp_path / "out" / "model_card.md").read_text()
    assert f"## Test {title}\n" in card
    assert f"| stitched | {measure.number(content[measure.name]['stitched'])} |" in card
    for said in (printed, card, text, page(figures)):
        assert not any(word in said.lower() for word in ("accuracy", "image", "top-1"))


NUMBERS: list[tuple[Any, str, str]] = [
    (0.88, ".4g", "0.88"),
    (31234.56, ".4g", "31235"),
    (1.5e-5, ".4g", "1.5e-05"),
    (-31234.56, ".4g", "-31235"),
    (25.4123, ".3f", "25.412"),
    (1e30, ".3f", "1e+30"),
    (float("inf"), ".3f", "inf"),
    (float("nan"), ".3f", "undefined"),
    (None, ".4g", "undefined"),
]


@pytest.mark.parametrize(("value", "digits", "text"), NUMBERS)
def test_numbers_of_every_size_are_readable(value: Any, digits: str, text: str) -> None:
    metric = Metric("m", "s", higher_is_better=False, tolerance=0, digits=digits)
    assert metric.number(value) == text
    assert metric.text(value) == (text if text == "undefined" else f"{text} s")
    assert metric.title == "m, s, lower is better"


def test_values_without_a_bound_agree_by_their_size() -> None:
    metric = Metric("m", "", higher_is_better=False, tolerance=1e-6, relative=1e-3)
    assert metric.agree(50_000, 50_040)
    assert not metric.agree(50_000, 50_060)
    assert not metric.agree(0.001, 0.00101)
    assert metric.agree(float("inf"), float("inf"))
    assert not metric.agree(float("inf"), 5)
    assert not metric.agree(5, float("inf"))
    assert not metric.agree(float("nan"), 5)


class Undefined(Regression):
    """Its metric is no number, as a rank correlation of equal values is none."""

    def measure(self, rows: Tensor) -> float:  # noqa: ARG002
        return math.nan


def test_an_undefined_metric_is_exported_as_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = job_file(tmp_path, f"{__name__}:Undefined", "number_splits")
    searched = json.loads(told(capsys, "search", job, "--json"))
    run, place = searched["league"][0]["run"], ("--store", searched["store"])
    printed = told(capsys, "export", run, "-o", tmp_path / "out", *place)
    assert "stitched: undefined\n" in printed
    content = json.loads((tmp_path / "out" / "profile.json").read_text())
    assert content["root mean squared error"] == {"dense": None, "stitched": None}
    assert "| stitched | undefined |" in (tmp_path / "out" / "model_card.md").read_text()
    again = told(capsys, "export", run, "-o", tmp_path / "out", *place, "--json")
    assert json.loads(again)["exports"] == content["exports"]
