"""Tasks, data and models that do not go together."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests import language
from tests.robustness.case import Case
from tests.robustness.whole import write
from tests.vision import nets

SEARCH = ("search", "FOLDER/job.yaml")


def _job(
    task: str, data: str = "tests.vision.nets:number_splits", model: str = "mlp", **changes: Any
) -> Callable[[Path], None]:
    """A job on small models of tests/vision/nets.py."""

    def prepare(folder: Path) -> None:
        content = nets.job(folder, model, task, "number_splits") | changes
        content["workload"]["data"]["function"] = data
        content["database"]["path"] = str(folder / "small")
        write(folder, content)

    return prepare


_ODD = "tests.robustness.odd:"
_OWN: list[tuple[str, Any, str]] = [
    ("a batch that the model refuses", _job("regression", f"{_ODD}narrow"), r"\[7\] do not run"),
    ("test batches that it refuses", _job("regression", f"{_ODD}narrow_test"), "test inputs.*do n"),
    ("one loss for all", _job(f"{_ODD}Mean"), "Mean: loss has the shape .*one value each"),
    ("an infinite loss", _job(f"{_ODD}Infinite"), "Infinite: loss of the dense model is not fin"),
    (
        "a loss that is NaN for one",
        _job(f"{_ODD}SometimesNaN", f"{_ODD}ordered", fitness="loss"),
        "SometimesNaN: loss of the dense model is not finite",
    ),
    ("a metric that raises", _job(f"{_ODD}Raising"), "Raising: metric '.*' failed .*no such row"),
    ("a metric that raises late", _job(f"{_ODD}RaisingLate"), "metric '.*' failed .*too many"),
    ("a metric of words", _job(f"{_ODD}Worded"), "Worded: metric '.*' .*number"),
    ("no test samples", _job("regression", f"{_ODD}none"), "test.*(empty|no sample|at least 1)"),
    ("no test rows", _job("regression", f"{_ODD}cut"), "test.*(empty|no sample|at least 1)"),
    (
        "a mask's class out of range",
        _job("semantic-segmentation", f"{_ODD}twice_the_class", "unet"),
        r"masks must hold classes 0\.\.3.*highest 77",
    ),
]


def _text(
    change: Callable[[Path, dict[str, Any]], object], task: str = "text-classification"
) -> Callable[[Path], None]:
    """A job on texts in which all is right, and one thing spoiled."""

    def prepare(folder: Path) -> None:
        rng = random.Random(0)
        rows = [f"{language.text(rng, 3 + i % 5)},{i % 3}" for i in range(16)]
        (folder / "rows.csv").write_text("\n".join(["a,b", *rows]))
        (folder / "text.txt").write_text(language.text(rng, 400))
        context = language.text(rng, 20)
        answers = language.paragraph(context, context.split()[4])
        language.write_squad(folder / "squad.json", [answers])
        data: dict[str, Any] = {
            "kind": "csv",
            "calibration": "rows.csv",
            "test": "rows.csv",
            "text": "a",
            "label": "b",
            "tokenizer": language.save_tokenizer(folder / "tokenizer"),
        }
        model = "classifier"
        if task in ("causal-lm", "masked-lm"):
            model = {"causal-lm": "causal", "masked-lm": "masked"}[task]
            files = {"calibration": "text.txt", "test": "text.txt", "sequence": 16}
            data = {"kind": "text", "tokenizer": data["tokenizer"], **files}
        if task == "question-answering":
            model = "answerer"
            files = {"calibration": "squad.json", "test": "squad.json"}
            data = {
                "kind": "squad",
                "tokenizer": data["tokenizer"],
                "sequence": 40,
                "stride": 8,
                **files,
            }
        content = nets.job(folder, model, task, "")
        content["workload"] |= {"model": f"tests.language:{model}", "data": data}
        content["database"]["path"] = str(folder / "small")
        change(folder, content["workload"])
        write(folder, content)

    return prepare


def _file(name: str, content: str) -> Callable[[Path, dict[str, Any]], None]:
    """Test data in a file of their own."""

    def change(folder: Path, workload: dict[str, Any]) -> None:
        (folder / name).write_text(content)
        workload["data"]["test"] = name

    return change


def _long_words(folder: Path, workload: dict[str, Any]) -> None:
    language.save_tokenizer(folder / "tokenizer", extra=100)
    _file("t.csv", "a,b\nextra99 bab,0\n")(folder, workload)


def _key(**keys: Any) -> Callable[[Path, dict[str, Any]], None]:
    return lambda _, workload: workload["data"].update(keys)


_NO_QUESTIONS = json.dumps({"version": "1.1", "data": []})
_TEXT: list[tuple[str, Any, str]] = [
    ("another tokenizer", _text(_long_words), "data.tokenizer: it gives the test texts tokens up"),
    (
        "more than positions",
        _text(_key(sequence=60), "causal-lm"),
        "data.sequence: the calibration",
    ),
    ("labels above", _text(_file("t.csv", "a,b\nbab,0\nbab,3\n")), "data.label: test labels must"),
    ("labels below", _text(_file("t.csv", "a,b\nbab,0\nbab,-1\n")), "data.label|data.test"),
    ("labels of words", _text(_file("t.csv", "a,b\nbab,0\nbab,good\n")), "data.label|data.test"),
    ("no test rows of text", _text(_file("t.csv", "a,b\n")), "workload.data.test: .*t.csv"),
    ("an empty csv file", _text(_file("t.csv", "")), "workload.data.test: .*t.csv"),
    ("an empty text", _text(_file("t.txt", ""), "causal-lm"), "workload.data.test: .*token"),
    ("blank text", _text(_file("t.txt", "\n \n"), "masked-lm"), "workload.data.test: .*token"),
    (
        "no test questions",
        _text(_file("t.json", _NO_QUESTIONS), "question-answering"),
        "workload.data.test: .*question",
    ),
    (
        "a task without labels' column",
        _text(_key(label="c")),
        "data.label: .*'c'|workload.data.*'c'",
    ),
    (
        "another task's model",
        _text(lambda _, w: w.update(model="tests.language:answerer")),
        "logits",
    ),
]


def _arrays(test: dict[str, Any], task: str, model: str) -> Callable[[Path], None]:
    """A job on numpy archives."""

    def prepare(folder: Path) -> None:
        images = np.zeros((8, nets.SIDE, nets.SIDE, 3), np.uint8)
        right = np.zeros((8, nets.SIDE, nets.SIDE), np.int64)
        np.savez(folder / "calib.npz", images=images, labels=right)
        np.savez(folder / "t.npz", **{"images": images, "labels": right, **test})
        content = nets.job(folder, model, task, "")
        content["workload"]["data"] = {"kind": "npz", "calibration": "calib.npz", "test": "t.npz"}
        content["database"]["path"] = str(folder / "small")
        write(folder, content)

    return prepare


_NONE = np.zeros((0, nets.SIDE, nets.SIDE, 3), np.uint8)
_ARRAYS: list[tuple[str, Any, str]] = [
    (
        "no test images",
        _arrays({"images": _NONE, "labels": _NONE[..., 0].astype(int)}, "semantic-segmentation",
                "unet"),
        "t.npz|test",
    ),
    (
        "test masks above the classes",
        _arrays({"labels": np.full((8, nets.SIDE, nets.SIDE), 4)}, "semantic-segmentation", "unet"),
        r"test masks must hold classes 0\.\.3",
    ),
]  # fmt: skip


def cases() -> Iterator[Case]:
    for group, content in (("task", _OWN), ("text", _TEXT), ("arrays", _ARRAYS)):
        for name, prepare, says in content:
            yield Case(f"{group}: {name}", prepare, SEARCH, says)
