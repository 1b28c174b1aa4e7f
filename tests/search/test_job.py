import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from apportion.compressors.errors import JobError
from apportion.evaluators.data.text.config import TextData
from apportion.search.jobs.job import Job
from apportion.search.jobs.job_file import json_schema, load_model_job

BASE: dict[str, Any] = {"workload": {"data": {"kind": "digits"}}, "database": {"path": "db"}}


def write(folder: Path, content: Any) -> Path:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_paths_are_relative_to_the_job_file(tmp_path: Path) -> None:
    data = {"kind": "npz", "calibration": "a.npz", "test": "/abs/b.npz"}
    workload = {"model": "cifar_resnet20", "weights": "w.safetensors", "data": data}
    job = load_model_job(write(tmp_path, {"workload": workload, "database": {"path": "../db"}}))
    assert job.workload.weights == str(tmp_path / "w.safetensors")
    assert str(job.workload.data.calibration) == str(tmp_path / "a.npz")  # type: ignore[union-attr]
    assert str(job.workload.data.test) == "/abs/b.npz"  # type: ignore[union-attr]
    assert job.database.path.resolve() == (tmp_path.parent / "db")
    assert job.store == f"sqlite:///{tmp_path / 'apportion.sqlite'}"


def test_folders_of_models_are_relative_to_the_job_file(tmp_path: Path) -> None:
    def named(model: str) -> str | None:
        workload = {"model": model, "data": {"kind": "digits"}}
        return load_model_job(write(tmp_path, {**BASE, "workload": workload})).workload.model

    assert named("huggingface:./mine") == f"huggingface:{tmp_path / 'mine'}"
    assert named("huggingface:../mine") == f"huggingface:{tmp_path / '../mine'}"
    assert named("huggingface:/abs/mine.gguf") == "huggingface:/abs/mine.gguf"
    assert named("huggingface:~/mine") == f"huggingface:{Path.home() / 'mine'}"
    assert named("huggingface:org/model") == "huggingface:org/model"  # on the hub


def test_folders_of_tokenizers_are_relative_to_the_job_file(tmp_path: Path) -> None:
    def named(tokenizer: str) -> str | None:
        files = {"calibration": "a.txt", "test": "b.txt"}
        data = {"kind": "text", **files, "tokenizer": tokenizer}
        workload = {"model": "huggingface:org/model", "task": {"kind": "causal-lm"}, "data": data}
        found = load_model_job(write(tmp_path, {**BASE, "workload": workload})).workload.data
        assert isinstance(found, TextData)
        assert found.calibration == str(tmp_path / "a.txt")
        return found.tokenizer

    assert named("./mine") == str(tmp_path / "mine")
    assert named("org/model") == "org/model"  # on the hub


def test_torchvision_weight_enums_are_no_paths(tmp_path: Path) -> None:
    workload = {
        "model": "torchvision:resnet18",
        "weights": "IMAGENET1K_V1",
        "data": {"kind": "digits"},
    }
    assert (
        load_model_job(write(tmp_path, {**BASE, "workload": workload})).workload.weights
        == "IMAGENET1K_V1"
    )


def test_a_job_round_trips_through_json(tmp_path: Path) -> None:
    job = load_model_job(
        write(tmp_path, {**BASE, "search": {"algorithms": ["dp", {"ga": {"population": 8}}]}})
    )
    assert Job.model_validate(json.loads(json.dumps(job.model_dump(mode="json")))) == job


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"bugdets": {}}, "bugdets", "unknown key 'bugdets'; did you mean 'budgets'"),
        ({"search": {"evalutions": 3}}, "search.evalutions", "did you mean 'evaluations'"),
        (
            {"workload": {"data": {"kind": "digits"}, "modle": "x"}},
            "workload.modle",
            "did you mean 'model'",
        ),
        (
            {
                "workload": {
                    "model": "cifar_resnet20",
                    "data": {"kind": "npz", "calibration": "a", "tests": "b"},
                }
            },
            "workload.data.npz",
            "",
        ),
        ({"workload": {"data": {"kind": "digit"}}}, "workload.data", "digit"),
        (
            {"workload": {"data": {"kind": "imagefolder", "calibration": "a", "test": "b"}}},
            "workload",
            "model is missing",
        ),
        ({"budgets": {"flop": 0.5}}, "budgets", "unknown metric 'flop'; did you mean 'flops'"),
        ({"budgets": {"flops": 0}}, "budgets", "above 0 and at most 1; got 0"),
        ({"budgets": {"flops": 1.5}}, "budgets", "above 0 and at most 1; got 1.5"),
        (
            {"budgets": {"flops": "half"}},
            "budgets",
            "budget 'flops': expected a share of the dense model",
        ),
        ({"budgets": {"bits": "3 parsec"}}, "budgets", "unknown unit 'parsec'; valid: x, %, KB"),
        ({"budgets": {"flops": "0.5x"}}, "budgets", "must be 1x or more"),
        ({"budgets": {"speedup": "3x"}}, "", "a latency budget needs times"),
        ({"budgets": {"speedup": "3x", "latency": 0.5}}, "budgets", "bounded twice"),
        ({"workload": {"table": "a.txt", "eror": "quadratic"}}, "", "key"),
        ({"fitness": "los"}, "fitness", "unknown fitness 'los'; did you mean 'loss'"),
        ({"batchnorm": "bach"}, "batchnorm", "did you mean 'batch'"),
        ({"errors": "losses"}, "errors", "'probe', 'loss' or 'kl'"),
        (
            {"database": {"path": "db", "levels": ["dense", "unstr-1.5"]}},
            "database.levels",
            "level 'unstr-1.5'",
        ),
        (
            {"database": {"path": "db", "levels": ["unstr-0.5"]}},
            "database.levels",
            "'dense' must be among the levels",
        ),
        ({"database": {}}, "database.path", "required key is missing"),
        (
            {"search": {"algorithms": ["spdi"]}},
            "search.algorithms",
            "unknown algorithm 'spdi'; did you mean 'spdy'",
        ),
        (
            {"search": {"algorithms": [{"ga": {}, "dp": {}}]}},
            "search.algorithms",
            "written {name: {parameter: value}}",
        ),
        ({"search": {"evaluations": 0}}, "search.evaluations", "greater than or equal to 1"),
        ({"search": {"seeds": [0, 0]}}, "search.seeds", "different whole numbers"),
        ({"workers": {"count": -1}}, "workers.count", "greater than or equal to 0"),
        ({"workers": {"count": 2, "at_least": 3}}, "workers", "3 workers of the 2"),
        ({"workers": {"count": 100000}}, "workers.count", "less than or equal to 10000"),
        (
            {"search": {"evaluations": True}},
            "search.evaluations",
            "a number is needed, not a truth",
        ),
        ({"search": {"evaluations": "300"}}, "search.evaluations", "a whole number is needed, not"),
        ({"search": {"evaluations": "1_000"}}, "search.evaluations", "(write 1000, without _)"),
        ({"search": {"evaluations": 10**30}}, "search.evaluations", "less than or equal"),
        ({"search": {"seeds": [0, True]}}, "search.seeds", "a number is needed, not a truth"),
        ({"search": {"seeds": [2**63]}}, "search.seeds", "below 2^63"),
        ({"search": {"seeds": [10**40]}}, "search.seeds", ""),
        ({"search": {"algorithms": ["ga", "ga"]}}, "search.algorithms", "'ga' is named twice"),
        ({"search": {"algorithms": ["ga", {"ga": {}}]}}, "search.algorithms", "named twice"),
        (
            {"workload": {"data": {"kind": "digits"}, "seed": 2**63}},
            "workload.seed",
            "less than 9223372036854775808",
        ),
        (
            {"workload": {"data": {"kind": "digits"}, "batch_size": True}},
            "workload.batch_size",
            "not a truth value",
        ),
        ({"budgets": {"flops": True}}, "budgets", "a number is needed, not a truth value"),
        ({"budgets": {"flops": "0,25"}}, "budgets", "(write 0.25, with a point)"),
        ({"budgets": {"flops": "1_000_000"}}, "budgets", "(write 1000000, without _)"),
        ({"budgets": {"flops": "1e999"}}, "budgets", "a finite number"),
        ({"workers": {"deadline": float("inf")}}, "workers.deadline", "finite"),
        ({"layers": {"bits": {"*": [True, 8]}}}, "layers.bits", "a number is needed"),
        ({"recovery": {"finetune": {"epochs": True}}}, "recovery.finetune.epochs", "not a truth"),
        (
            {
                "workload": {
                    "model": "cifar_resnet20",
                    "data": {"kind": "imagefolder", "calibration": "a", "test": "b", "size": True},
                }
            },
            "workload.data.imagefolder.size",
            "not a truth value",
        ),
    ],
)
def test_bad_jobs_name_the_field(
    tmp_path: Path, change: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(JobError) as caught:
        load_model_job(write(tmp_path, {**BASE, **change}))
    assert caught.value.field.startswith(field)
    assert message in str(caught.value)
    assert str(tmp_path / "job.yaml") in str(caught.value)


def test_unknown_keys_inside_a_kind_of_data_name_the_nearest(tmp_path: Path) -> None:
    data = {"kind": "npz", "calibration": "a", "test": "b", "trian": "c"}
    with pytest.raises(JobError, match="unknown key 'trian'; did you mean 'train'"):
        load_model_job(
            write(tmp_path, {**BASE, "workload": {"model": "cifar_resnet20", "data": data}})
        )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("database: {path: db, levels: [dense, 2:4, 4:8]}", ("dense", "2:4", "4:8")),
        ("database: {path: db, levels: [dense, w4]}\nlayers: {first: 2:4}", "2:4"),
        ("database: {path: db}\nlayers: {skip: [0, 2, 1.10]}", ("0", "2", "1.10")),
        ("database: {path: db}\nlayers: {tie: [[0, 2], [1.0]]}", (("0", "2"), ("1.0",))),
        ("database: {path: db}\nlayers: {levels: {0: [dense, 2:4]}}", {"0": ("dense", "2:4")}),
        ("database: {path: db}\nlayers: {sparsity: {1.10: [0, 0.5]}}", {"1.10": (0, 0.5)}),
        ("database: {path: db}\nbudgets: {flops: 040M}", {"flops": "040M"}),
        ("database: {path: db}\nsearch: {evaluations: 1e3}", 1000),
        ("database: {path: db}\nsearch: {evaluations: 010}", 10),
    ],
)
def test_what_is_written_without_quotes_is_what_was_meant(
    tmp_path: Path, text: str, found: Any
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"workload: {{data: {{kind: digits}}}}\n{text}\n")
    job = load_model_job(path)
    layers = job.layers
    assert found in (
        job.database.levels,
        layers.first,
        layers.skip,
        layers.tie,
        layers.levels,
        layers.sparsity,
        job.budgets,
        job.search.evaluations,
    )


def test_a_key_that_stands_twice(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        "workload: {data: {kind: digits}}\ndatabase: {path: db}\nsearch:\n  seeds: [0]\n"
        "  seeds: [1]\n"
    )
    with pytest.raises(JobError, match=r"job.yaml: line 5: the key 'seeds' stands twice \(first"):
        load_model_job(path)


def test_files_that_are_no_jobs(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="No such file"):
        load_model_job(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(JobError, match="not readable as YAML"):
        load_model_job(tmp_path / "bad.yaml")
    with pytest.raises(JobError, match="a job is a mapping"):
        load_model_job(write(tmp_path, ["a"]))


def test_the_published_schema_takes_what_load_takes(job_file: Callable[..., Path]) -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(job_file().read_text()), schema)
    for example in (Path(__file__).parents[2] / "examples").glob("*.yaml"):
        content = yaml.safe_load(example.read_text())
        jsonschema.validate(content, schema)
        load_model_job(example)
    published = json.loads((Path(__file__).parents[2] / "docs" / "job.schema.json").read_text())
    assert published == schema, "docs/job.schema.json is not what `apportion schema` prints"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**BASE, "bugdets": {}}, schema)
