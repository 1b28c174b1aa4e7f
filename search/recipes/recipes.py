"""Recipes: the rows of a published table made anew, one profile each, with what was published
beside what is measured. Theirs are the files beside this one; docs/RECIPES.md is the table of
them."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from apportion.compressors.errors import ApportionError, ConfigurationError, UnknownNameError
from apportion.compressors.levels import DENSE, parse_level
from apportion.compressors.progress import Progress, silent
from apportion.db.layers.profile import Profile
from apportion.db.runs.sqlite import sqlite_url
from apportion.db.runs.store import RunStore
from apportion.evaluators.costs.budgets import parse_budget
from apportion.evaluators.data.files import is_url
from apportion.evaluators.data.text.pretrained import PREFIX
from apportion.evaluators.models.build import is_file_name
from apportion.search.export.exporting import (
    Chosen,
    Exported,
    export,
    exported_before,
    score_profile,
)
from apportion.search.jobs.channels import ChannelsConfig
from apportion.search.jobs.job import Job
from apportion.search.jobs.job_file import explain, parse_model_job, read_content, resolve_paths
from apportion.search.runs.pipeline import ModelProblem, prepare, run_search


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Row(_Section):
    """One row of the table: every layer (or channel group) at `level` that can be at it, or the
    best profile within `budgets`."""

    name: str = Field(pattern=r"^[\w.+:-]+$")
    level: str | None = None
    budgets: dict[str, float | str] | None = None
    published: float | None = Field(
        None,
        description="The metric's value in its unit, of the exported model; none "
        "where only a figure shows it.",
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Row:
        if (self.level is None) == (self.budgets is None):
            raise ValueError("a row has either a level or budgets")
        try:  # now, and not when its turn comes after hours
            if self.level is not None:
                parse_level(self.level)
            for name, value in (self.budgets or {}).items():
                parse_budget(name, value)
        except ApportionError as error:
            raise ValueError(str(error)) from error
        return self


class Recipe(_Section):
    """`job`: a job file's content but for the row's budgets, its paths relative to the folder of
    the user's data."""

    title: str
    source: str = Field(description="The paper and the table.")
    job: dict[str, Any]
    needs_weights: bool = Field(
        False,
        description="Whether the user must name weights, as none are to be had for its model.",
    )
    rows: tuple[Row, ...] = Field(min_length=1)
    _file: Path = PrivateAttr(Path("recipe"))

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        names = [row.name for row in self.rows]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"rows: two are called {twice[0]!r}")
        for key in ("workload", "database"):
            if not isinstance(self.job.get(key), dict):
                raise ValueError(f"job.{key}: required key is missing")
        return self

    @property
    def needs_data(self) -> bool:
        return bool(self.job["workload"].get("data", {}).get("kind") != "digits")


def recipe_files() -> dict[str, Path]:
    """Name -> file, of the recipes that come with apportion."""
    folder = Path(str(importlib.resources.files(__package__)))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(name: str) -> Recipe:
    """A recipe by its name, or from a file of the user's own. Raises UnknownNameError, JobError."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        files = recipe_files()
        if name not in files:
            raise UnknownNameError("recipe", name, files)
        path = files[name]
    try:
        recipe = Recipe.model_validate(read_content(path))
    except ValidationError as error:
        raise explain(Recipe, path, error) from error
    recipe._file = path
    return recipe


def job_of(
    recipe: Recipe,
    out: Path,
    data: Path | None,
    weights: str | None,
    workers: dict[str, float] | None = None,
) -> Job:
    """The recipe's job on the user's data, without budgets.

    Args:
        recipe: the recipe.
        out: the folder of database and runs.
        data: the user's data; None where the recipe brings its own.
        weights: a file, a URL or a name; None for what the recipe says.
        workers: the job's `workers`; None for what the recipe says.

    Returns:
        The job.

    Raises:
        JobError, ConfigurationError: data or weights are missing, or do not fit.
    """
    if recipe.needs_weights and weights is None:
        model = recipe.job["workload"].get("model")
        raise ConfigurationError(
            f"--weights is missing: a .safetensors or .pt file of trained weights for {model}"
        )
    if recipe.needs_data and data is None:
        raise ConfigurationError(f"--data is missing: a folder with {', '.join(_wanted(recipe))}")
    if not recipe.needs_data and data is not None:
        raise ConfigurationError("--data: this recipe brings its data along")
    if data is not None and (
        lacking := [name for name in _wanted(recipe) if not (data / name).exists()]
    ):
        raise ConfigurationError(f"--data {data}: no {', '.join(lacking)} in it")
    content = resolve_paths(recipe.job, (data or Path()).absolute())  # a copy
    if weights is not None:
        named = is_url(weights) or not is_file_name(weights)
        content["workload"]["weights"] = weights if named else str(Path(weights).absolute())
    out = out.absolute()
    content["database"]["path"] = str(out / "database")
    content["store"] = sqlite_url(out / "apportion.sqlite")
    if workers is not None:
        content["workers"] = {**content.get("workers", {}), **workers}
    return parse_model_job(content, f"{recipe._file}, job")


def run_recipe(
    recipe: Recipe, job: Job, out: Path, progress: Progress = silent
) -> Iterator[dict[str, Any]]:
    """Every row as soon as it is there: its name, the values of its metric, what was published, and
    costs as shares of dense. Its export is in the folder `out`/ROW; a row that is there already is
    read. Raises ApportionError."""
    for row in recipe.rows:
        content = _make(row, job, out / row.name.replace(":", "of"), progress).content
        yield {
            "row": row.name,
            "metric": content["metric"],
            content["metric"]["name"]: content[content["metric"]["name"]],
            "published": row.published,
            "costs": {metric: content["costs"][metric] for metric in _told(row)},
        }


def _make(row: Row, job: Job, out: Path, progress: Progress) -> Exported:
    # A uniform profile is not searched: its job needs no budgets, and no losses measured level by
    # level.
    change = {"errors": "layer"} if row.budgets is None else {"budgets": row.budgets}
    with prepare(job.model_copy(update=change), progress) as problem:
        chosen = _uniform(row, problem) if row.budgets is None else _searched(problem, progress)
        return exported_before(chosen, problem, out) or export(chosen, problem, out, progress)


def _searched(problem: ModelProblem, progress: Progress) -> Chosen:
    assert problem.job.store is not None  # job_of sets it
    results = run_search(problem, RunStore(problem.job.store), progress)
    return Chosen.of(min(results, key=lambda result: result.pick.fitness))


def _uniform(row: Row, problem: ModelProblem) -> Chosen:
    assert row.level is not None
    level = parse_level(row.level)
    if problem.channels is None:
        profile: Profile = {
            layer: level if str(level) in levels else DENSE
            for layer, levels in problem.database.levels().items()
        }
    else:
        rules = (problem.job.database.channels or ChannelsConfig()).rules()
        profile = problem.channels.uniform(level, rules)
    if all(level.is_dense for level in profile.values()):
        raise ConfigurationError(
            f"row {row.name!r}: no layer of the database has the level {row.level}"
        )
    return score_profile(profile, problem, f"all layers at {row.level}")


def _told(row: Row) -> list[str]:
    """The metrics that readers of the row care for."""
    return (
        [parse_budget(name, value).metric for name, value in row.budgets.items()]
        if row.budgets
        else ["bits"]
    )


def _wanted(recipe: Recipe) -> list[str]:
    """The files and folders that the user's data must have."""
    workload = recipe.job["workload"]
    data, model = workload.get("data", {}), str(workload.get("model", ""))
    own = f"{PREFIX}./"
    folders = [model.removeprefix(own)] if model.startswith(own) else []
    return folders + [
        str(data[key])
        for key in ("calibration", "train", "test", "root")
        if isinstance(data.get(key), str)
    ]
