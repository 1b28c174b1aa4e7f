"""`apportion.prepare`: a model, a task from functions and data that a program has in memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset

import apportion
from apportion.compressors.errors import ApportionError, DataError
from apportion.evaluators.data.loaders import as_dataset
from apportion.evaluators.scoring.stitched import StitchedScorer
from apportion.evaluators.workloads.checks import check_together
from apportion.evaluators.workloads.workload import load_workload

CLASSES = 3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(8, 16), nn.Linear(5, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head((self.left(left) + self.right(right)).relu())}


def batch(count: int = 96) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    left = torch.randn(count, 8, generator=generator)
    right = torch.randn(count, 5, generator=generator)
    with torch.no_grad():
        label = Net()(left, right)["logits"].argmax(1)
    return {"left": left, "right": right, "label": label}


def logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    found: Tensor = model(batch["left"], batch["right"])["logits"]
    return found


def loss(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(logits, batch["label"], reduction="none")


def accuracy(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return (logits.argmax(1) == batch["label"]).float()


def task(**changes: Any) -> apportion.Task:
    given = {"forward": logits, "loss": loss, "metric": accuracy, "divergence": "kl", **changes}
    return apportion.Task(**given)


def prepared(folder: Path, **changes: Any) -> Any:
    data = batch()
    given = {
        "task": task(),
        "calibration": [data],
        "test": [data],
        "levels": ["dense", "w8", "w4", "w2"],
        "budgets": {"bits": "2x"},
        "database": folder / "database",
        "search": {"algorithms": ["ga"], "evaluations": 12},
        **changes,
    }
    return apportion.prepare(Net(), **given)


def test_a_search_is_the_same_the_second_time_and_its_export_right(tmp_path: Path) -> None:
    found = []
    for store in ("one", "one", "two"):
        with prepared(tmp_path) as problem:
            runs = apportion.RunStore(f"sqlite:///{tmp_path}/{store}.sqlite")
            (result,) = apportion.run_search(problem, runs)
            found.append((result.pick.candidate, result.pick.fitness))
            out = apportion.export(result, problem, tmp_path / f"out-{len(found)}")
    assert found[0] == found[1] == found[2]
    assert out.content["accuracy"]["dense"] == 1.0
    assert list(out.content["accuracy"]) == ["dense", "stitched"]  # no batch-norm to re-tune
    assert out.content["accuracy"]["stitched"] > 0.5


def test_batches_of_a_loader_and_of_a_list_are_the_same_data(tmp_path: Path) -> None:
    data = batch()
    rows = [{name: tensor[i] for name, tensor in data.items()} for i in range(96)]
    keys = []
    for number, given in enumerate(
        [[data], DataLoader(rows, batch_size=10), DataLoader(rows, batch_size=32, shuffle=True)]  # type: ignore[arg-type]
    ):
        with prepared(tmp_path / str(number), calibration=given, test=given) as problem:
            keys.append((problem.key, problem.database.fingerprint))
    assert len(set(keys)) == 1


def test_a_loaders_sampler_says_which_samples_there_are() -> None:
    data = TensorDataset(torch.arange(10.0)[:, None])
    own = as_dataset(DataLoader(data, sampler=SubsetRandomSampler([7, 2, 5])), "test")
    assert [float(row[0]) for row in next(own.batches(8))[0]] == [2, 5, 7]
    assert own.subset([2, 0]).batch[0].flatten().tolist() == [7, 2]


def test_a_stream_of_batches_is_read(tmp_path: Path) -> None:
    class Stream(IterableDataset[dict[str, Tensor]]):
        def __iter__(self) -> Iterator[dict[str, Tensor]]:
            data = batch()
            for i in range(96):
                yield {name: tensor[i] for name, tensor in data.items()}

    with prepared(tmp_path, test=DataLoader(Stream(), batch_size=20)) as problem:
        assert len(problem.workload.test) == 96


def test_scores_are_kept_for_these_functions_alone() -> None:
    def other(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return 2 * loss(logits, batch)

    def scaled(factor: float) -> Any:
        return lambda logits, batch: factor * loss(logits, batch)

    keys = [
        own.key()["task"]
        for own in (
            task(),
            task(loss=other),
            task(loss=scaled(2.0)),
            task(loss=scaled(3.0)),
            task(divergence="squares"),
            task(best=2.0),
        )
    ]
    assert len(set(keys)) == len(keys)
    assert task(loss=scaled(3.0)).key() == task(loss=scaled(3.0)).key()


def test_the_key_is_the_same_in_another_process() -> None:
    code = (
        "from tests.search.test_given import task;"
        "print(task(loss=lambda o, b: (o * 0).sum(1)).key()['task'])"
    )
    root = Path(__file__).parents[2]
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": lambda o, b: F.cross_entropy(o, b["label"])}, "loss has the shape []"),
        ({"loss": lambda o, b: loss(o, b) * float("nan")}, "loss of the dense model is not finite"),
        ({"loss": lambda o, b: loss(o, b) - 9}, "must be 0 or above"),
        ({"metric": lambda o, _: o.nothing}, "error failed"),
        ({"metric": lambda o, b: 1 + loss(o, b)}, "say best=..., or higher_is_better=False"),
        (
            {"metric": lambda o, b: -loss(o, b), "higher_is_better": False},
            "than its best value, 0, as lower is better; say best=..., or higher_is_better=True",
        ),
        ({"divergence": lambda o, d, _: (o - d).sum(1).abs() + 1}, "from itself"),
        ({"forward": lambda m, _: m.config.x}, "uses more of the model than calling it"),
        ({"forward": lambda _, b: b["left"]}, "does not call the model"),
        ({"forward": lambda m, b: m(b["left"], right=b["right"])}, "by position and by keyword"),
    ],
)
def test_functions_that_do_not_fit_are_told_in_a_line(
    changes: dict[str, Any], message: str
) -> None:
    own = task(**changes)
    data = as_dataset([batch()], "test")
    with pytest.raises(ApportionError) as caught:
        check_together(Net().eval(), "net", own, {"test": data})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (7, "is a int"),
        ([], "holds no batch"),
        ([{"a": torch.ones(2)}, {"b": torch.ones(2)}], "do not go together"),
        ([{"a": torch.ones(2, 3)}, {"a": torch.ones(2, 4)}], "do not go together"),
        (DataLoader(TensorDataset(torch.ones(0, 2))), "holds no sample"),
    ],
)
def test_data_that_do_not_fit_are_told_by_what_they_are_for(given: Any, message: str) -> None:
    with pytest.raises(DataError, match="calibration.*") as caught:
        as_dataset(given, "calibration")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": apportion.Task}, "task: an apportion.Task"),
        ({"workload": {"model": "digits_resnet"}}, "workload.model is given"),
        ({"levels": ["w99"]}, "w99"),
        ({"budgets": {"bytes": 1}}, "bytes"),
        ({"searches": {}}, "searches"),
    ],
)
def test_what_prepare_cannot_take_is_named(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ApportionError, match=message):
        prepared(tmp_path, **changes)
    assert not (tmp_path / "database").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.half(), r"parameter 'left.weight' is float16"),
        (lambda model: model.to("meta"), r"parameter 'left.weight' is on meta; .*model.cpu\(\)"),
        (lambda model: nn.init.constant_(model.head.bias, float("nan")), "holds NaN"),
    ],
)
def test_a_model_is_checked_as_one_of_a_job_is(change: Any, message: str, tmp_path: Path) -> None:
    model, data = Net(), batch()
    change(model)
    with pytest.raises(ApportionError, match=message):
        apportion.prepare(
            model,
            task=task(),
            calibration=[data],
            test=[data],
            levels=["dense", "w4"],
            budgets={"bits": "2x"},
            database=tmp_path / "database",
        )
    assert not (tmp_path / "database").exists()


def test_unknown_names_of_the_package_are_told() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = apportion.nothing
    assert all(getattr(apportion, name) for name in apportion.__all__)


@pytest.mark.parametrize("mode", ["running", "batch", "recalibrate"])
def test_a_model_without_batch_norm_is_scored_in_one_pass(mode: str, tmp_path: Path) -> None:
    with prepared(tmp_path) as problem:
        scorer = StitchedScorer(problem.workload, problem.database, "loss", mode)
        calls: list[int] = []
        scorer._model.get_submodule("head").register_forward_hook(lambda *_: calls.append(1))
        dense = tuple(0 for _ in problem.database.layers)
        scorer.score(dense)
    assert len(calls) == 1


def test_other_commands_tell_that_the_model_was_in_memory(tmp_path: Path) -> None:
    with prepared(tmp_path) as problem:
        config = problem.job.workload
    with pytest.raises(ApportionError, match=r"model 'Net' was in the memory of the program"):
        load_workload(config)
