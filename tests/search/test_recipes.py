"""Recipes: their files, and one made end to end on the embedded network."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from apportion.compressors.errors import ApportionError
from apportion.compressors.levels import expand_levels
from apportion.evaluators.costs.budgets import parse_budget
from apportion.search.cli.main import main
from apportion.search.recipes.recipes import job_of, load_recipe, recipe_files

SMALL: dict[str, Any] = {
    "title": "Small",
    "source": "nowhere",
    "job": {
        "workload": {"data": {"kind": "digits"}, "calibration_samples": 128},
        "database": {"levels": ["dense", "w4", "unstr-0.75"]},
        "errors": "loss",
        "search": {"algorithms": [{"dp": {"cold": True}}], "evaluations": 1},
    },
    "rows": [
        {"name": "w4", "level": "w4", "published": 97.5},
        {"name": "flops-2x", "budgets": {"flops": "2x"}},
    ],
}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return path


@pytest.mark.parametrize("name", recipe_files())
def test_a_recipe_that_comes_along_is_a_valid_job(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    data = None
    if recipe.needs_data:
        data = tmp_path / "data"
        for wanted in (
            "train",
            "val",
            "cifar10/calib1024.npz",
            "cifar10/train4096.npz",
            "cifar10/test5000.npz",
            *("train-v1.1.json", "dev-v1.1.json", "bert-3", "bert-6", "bert-12"),
            *("stsb_train.csv", "stsb_dev.csv", "all-MiniLM-L6-v2"),
            *("wiki.valid.txt", "wiki.test.txt", "SmolLM2-135M-Instruct"),
        ):
            (data / wanted).mkdir(parents=True)
    weights = "weights.safetensors" if recipe.needs_weights else None
    job = job_of(recipe, tmp_path / "out", data, weights)
    assert job.database.path == tmp_path / "out" / "database"
    levels = set(map(str, job.database.expanded()))
    for row in recipe.rows:
        if row.level is not None:
            assert {str(level) for level in expand_levels([row.level])} <= levels
        else:
            assert row.budgets
            solver = "milp" if job.database.has_channels else "dp"
            assert job.search.with_parameters() == [
                (solver, {"cold": True})
            ]  # and not the uniform profile, its first trial
            assert all(parse_budget(name, value) for name, value in row.budgets.items())


def test_a_recipe_is_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["recipe", str(write(tmp_path)), "-o", str(tmp_path / "out"), "--json"]
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)
    uniform, searched = first["rows"]
    assert (uniform["row"], uniform["published"]) == ("w4", 97.5)
    assert searched["costs"]["flops"] <= 0.5
    assert all(
        80 < row["accuracy"][name] <= 100 for row in first["rows"] for name in ("dense", "retuned")
    )
    assert json.loads((tmp_path / "out" / "recipe.json").read_text()) == first
    models = [tmp_path / "out" / name / "model.safetensors" for name in ("w4", "flops-2x")]
    written = [path.stat().st_mtime_ns for path in models]
    models[1].unlink()
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert (
        models[0].stat().st_mtime_ns == written[0]
    )  # what was there is read, what was not is made again
    assert models[1].stat().st_mtime_ns > written[1]


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"rows": [{"name": "a"}]}, [], "rows.0: a row has either a level or budgets"),
        ({"rows": [{"name": "a/b", "level": "w4"}]}, [], "rows.0.name: String should match"),
        (
            {"rows": [{"name": "a", "level": "w3"}]},
            [],
            "row 'a': no layer of the database has the level w3",
        ),
        ({"jobs": {}}, [], "jobs: unknown key 'jobs'; did you mean 'job'"),
        (
            {"job": {**SMALL["job"], "errors": "lost"}},
            [],
            "small.yaml, job: errors: Input should be 'layer', 'fisher', 'probe', 'loss' or 'kl'",
        ),
        (
            {"rows": [{"name": "a", "level": "w4"}, {"name": "a", "level": "dense"}]},
            [],
            "rows: two are called 'a'",
        ),
        ({"rows": [{"name": "a", "budgets": {"flop": 0.5}}]}, [], "did you mean 'flops'"),
        ({"job": {"workload": {}}}, [], "job.database: required key is missing"),
        ({}, ["--data", "/tmp"], "--data: this recipe brings its data along"),
    ],
)
def test_what_is_wrong_is_said(
    changes: dict[str, Any],
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert (
        main(["recipe", str(write(tmp_path, **changes)), "-o", str(tmp_path / "out"), *options])
        == 1
    )
    assert message in capsys.readouterr().err


def test_data_that_is_missing_is_named(tmp_path: Path) -> None:
    recipe = load_recipe("resnet18-nm")
    with pytest.raises(ApportionError, match="--data is missing: a folder with train, val"):
        job_of(recipe, tmp_path, None, None)
    (tmp_path / "train").mkdir()
    with pytest.raises(ApportionError, match=r"--data .*: no val in it"):
        job_of(recipe, tmp_path, tmp_path, None)
    with pytest.raises(ApportionError, match=r"a folder with bert-6, train-v1.1.json, dev-v1.1.js"):
        job_of(load_recipe("bert-squad-nm-6"), tmp_path, None, None)


def test_the_page_of_recipes_says_what_their_files_say() -> None:
    page = (Path(__file__).parents[2] / "docs" / "RECIPES.md").read_text()
    for name in recipe_files():
        assert f"`{name}`" in page
        assert all(
            f"| {row.published:.2f} |" in page
            for row in load_recipe(name).rows
            if row.published is not None
        )


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    """And no random network is pruned for days."""
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    with pytest.raises(ApportionError, match=r"--weights is missing: .* for darknet53"):
        job_of(load_recipe("darknet53-channels"), tmp_path / "out", tmp_path, None)


def test_rows_of_channel_levels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row's level is that of every group, also where another level that leaves as many channels
    gave it its name."""
    job = {
        "workload": {"data": {"kind": "digits"}, "calibration_samples": 64},
        "database": {
            "levels": ["dense", "channels-0.60", "channels-0.70", "w8a8", "channels-0.60+w8a8"],
            "channels": {"multiple": 4},
        },
        "recovery": {"finetune": {"epochs": 1}},
    }
    rows = [
        {"name": "most", "level": "channels-0.70"},
        {"name": "joint", "level": "channels-0.60+w8a8"},
    ]
    recipe = str(write(tmp_path, job=job, rows=rows))
    command = ["recipe", recipe, "-o", str(tmp_path / "out"), "--json"]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert all("fine-tuned" in row["accuracy"] for row in json.loads(first)["rows"])
    # 8 channels: 4 are left at either level, which is called by the first.
    profile = json.loads((tmp_path / "out" / "most" / "profile.json").read_text())["profile"]
    assert profile["layer1.0.conv1.channels"] == "channels-0.60"
    assert profile["layer3.0.conv1.channels"] == "channels-0.70"
    assert profile["conv1"] == "dense"
    profile = json.loads((tmp_path / "out" / "joint" / "profile.json").read_text())["profile"]
    assert profile["layer3.0.conv1.channels"] == "channels-0.60+w8a8"
    assert profile["conv1"] == "w8a8"  # which reads no group
    written = (tmp_path / "out" / "most" / "model.safetensors").stat().st_mtime_ns
    assert main(command) == 0
    assert capsys.readouterr().out == first
    assert (tmp_path / "out" / "most" / "model.safetensors").stat().st_mtime_ns == written


@pytest.mark.slow
def test_the_rows_on_the_real_network(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the layer errors as additive table: to measure the losses of 1,076 levels takes 20
    minutes."""
    content = yaml.safe_load(recipe_files()["cifar-resnet20"].read_text())
    content["job"]["errors"] = "layer"
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(content))
    assert (
        main(
            [
                "recipe",
                str(tmp_path / "quick.yaml"),
                "--data",
                str(shared_data),
                "-o",
                str(tmp_path / "out"),
                "--json",
            ]
        )
        == 0
    )
    rows = json.loads(capsys.readouterr().out)["rows"]
    for row in rows:
        if row["published"] is not None:
            assert row["accuracy"]["retuned"] > row["published"] - 0.75
    assert {row["row"]: row["costs"] for row in rows}["flops-4x"]["flops"] <= 0.25
