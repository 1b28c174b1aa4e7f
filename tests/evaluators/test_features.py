"""Columns of numbers for models of tables: classes, targets, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from apportion.compressors.errors import DataError, JobError
from apportion.evaluators.data.load import load_splits
from apportion.evaluators.data.registry import Context
from apportion.evaluators.data.text.config import TableData
from apportion.evaluators.tasks.registry import make_task
from apportion.search.jobs.job_file import parse_model_job
from tests.tables import write

ROWS = [(0.5, -1, "yes", 1), (2, 1e3, "no", 0), (-3, 0, "yes", 1)]
NAMES = ("age", "size", "kind", "on")


def context(kind: str, **more: Any) -> Context:
    task = make_task(kind)
    return Context("mine", task.identity, task.form, **more)


def table(folder: Path, rows: Any = ROWS, **keys: Any) -> TableData:
    kind = keys.setdefault("kind", "csv")
    file = write(folder, kind, rows, names=NAMES[: len(rows[0])])
    given = {"features": ("size", "age"), "label": "kind", "calibration": file, "test": file}
    return TableData(**{**given, **keys})


def whole(config: TableData, found: Context) -> Any:
    data = load_splits(config, found).test
    return data.subset(range(len(data))).batch


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_classes_of_rows_of_numbers(kind: str, tmp_path: Path) -> None:
    config = table(tmp_path, kind=kind)
    features, labels = whole(config, context("image-classification"))
    assert features.tolist() == [[-1.0, 0.5], [1000.0, 2.0], [0.0, -3.0]]  # in the order asked for
    assert features.dtype == torch.float32
    assert labels.tolist() == [1, 0, 1]
    assert labels.dtype == torch.int64
    named = context("image-classification", classes=("yes", "maybe", "no"))
    assert whole(config, named)[1].tolist() == [0, 2, 0]
    assert whole(table(tmp_path, kind=kind, label="on"), named)[1].tolist() == [1, 0, 1]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("task", ["regression", "multi-label"])
def test_targets_of_rows_of_numbers(kind: str, task: str, tmp_path: Path) -> None:
    yes, no = (1, 0) if kind == "csv" else (True, False)
    rows = [(0.5, -1, yes, 1), (2, 1e3, no, 0)]
    config = table(tmp_path, rows, kind=kind, features=("age",), label=("on", "kind"))
    features, targets = whole(config, context(task))
    assert features.shape == (2, 1)
    assert targets.tolist() == [[1.0, 1.0], [0.0, 0.0]]
    assert targets.dtype == torch.float32


def test_columns_without_names(tmp_path: Path) -> None:
    file = tmp_path / "bare.csv"
    file.write_text("1,2,7\n3,4,8\n")
    config = TableData(kind="csv", calibration=str(file), test=str(file), features=(1, 0), label=2)
    features, labels = whole(config, context("image-classification"))
    assert features.tolist() == [[2.0, 1.0], [4.0, 3.0]]
    assert labels.tolist() == [7, 8]


@pytest.mark.parametrize(
    ("rows", "keys", "task", "said"),
    [
        ([(1, 2, 0), (1, "x", 0)], {}, "regression", "csv: row 2 has 'x' in column 'size'; a num"),
        ([(1, 2, 0), ("", 1, 0)], {}, "regression", "csv: row 2 has nothing in column 'age'"),
        ([(1, 2, 0), ("NA", 1, 0)], {}, "regression", "csv: row 2 has 'NA' in column 'age'"),
        ([(1, "nan", 0)], {}, "regression", "csv: row 1 has 'nan' in column 'size'"),
        ([(1, 2, "inf")], {}, "regression", "csv: row 1 has 'inf' in column 'kind'"),
        ([(1, "1_000", 0)], {}, "regression", "row 1 has '1_000' .*write 1000, without _"),
        ([(1, '"1,5"', 0)], {}, "regression", "row 1 has '1,5' .*write 1.5, with a point"),
        ([(1, 1e39, 0)], {}, "regression", "row 1 has '1e\\+39' .* needed that float32 holds"),
        ([(1, 2, 0)], {"label": "kin"}, "regression", "csv has no column 'kin'; its columns are a"),
        ([(1, 2, 0)], {"label": None}, "regression", "label: task regression needs 1 column or mo"),
        (
            [(1, 2, 0, 1)],
            {"label": ("kind", "on")},
            "image-classification",
            "label: task image-classification needs 1 column of classes, not 2",
        ),
        (
            [(1, 2, 0)],
            {},
            "causal-lm",
            "features: csv with features has .* task causal-lm does not",
        ),
        ([(1, 2, 0)], {}, "text-classification", "image-classification .for classes of any rows"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, rows: Any, keys: dict[str, Any], task: str, said: str
) -> None:
    with pytest.raises(DataError, match=said) as caught:
        load_splits(table(tmp_path, rows, **keys), context(task))
    assert "\n" not in str(caught.value)


def test_values_that_are_not_there_in_other_files(tmp_path: Path) -> None:
    rows: list[Any] = [(1, 2, 0), (None, 2, 0)]
    for kind in ("jsonl", "parquet"):
        with pytest.raises(DataError, match=f"{kind}: row 2 has nothing in column 'age'"):
            load_splits(table(tmp_path, rows, kind=kind), context("regression"))
    rows = [(1.0, 2, 0), (float("nan"), 2, 0)]
    with pytest.raises(DataError, match="parquet: row 2 has nan in column 'age'"):
        load_splits(table(tmp_path, rows, kind="parquet"), context("regression"))
    with pytest.raises(DataError, match=r"jsonl: row 1 has \[1, 2\] in column 'age'"):
        load_splits(table(tmp_path, [([1, 2], 2, 0)], kind="jsonl"), context("regression"))


def test_a_class_that_only_the_test_rows_have_is_refused(tmp_path: Path) -> None:
    other = write(tmp_path, "csv", [(1, 2, "yes"), (1, 2, "nope")], "other", NAMES[:3])
    with pytest.raises(DataError, match=r"test: .*other.csv: row 2 has the unknown class 'nope'"):
        load_splits(table(tmp_path, test=other), context("image-classification"))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "either `text`, .*, or `features`, .*, is needed"),
        ({"text": "a", "features": ["b"]}, "either `text`"),
        ({"features": ["a"], "tokenizer": "x"}, "`tokenizer` is for tables of texts"),
        ({"features": ["a", "y"]}, "column 'y' is asked for twice"),
        ({"features": ["a", 1]}, "columns are named, or numbered, not both"),
        ({"features": []}, "at least 1 item"),
        ({"feature": ["a"], "text": "a"}, r"csv.feature: .*did you mean 'features'"),
    ],
)
def test_sections_that_make_no_sense_are_refused(
    tmp_path: Path, keys: dict[str, Any], said: str
) -> None:
    data = {"kind": "csv", "calibration": "a", "test": "b", "label": "y", **keys}
    with pytest.raises(JobError, match=said):
        parse_model_job({"workload": {"model": "m", "data": data}}, tmp_path / "job.yaml")
