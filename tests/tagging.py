"""A task, its model and its data as a user would write them: tags of tokens, in dict batches with
padding, for a model that takes keywords and gives a dict."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apportion.evaluators.data.dataset import Splits, TensorDataset
from apportion.evaluators.tasks.distribution import Distribution
from apportion.evaluators.tasks.task import Metric, Task

WORDS, TAGS, LENGTH = 40, 5, 12
Batch = dict[str, Tensor]


class Tagging(Task):
    """Means over the tokens that are there; the metric over all tokens of all sentences."""

    metric = Metric("tag accuracy", "%", higher_is_better=True, tolerance=0.5, digits=".1f")

    def inputs(self, batch: Batch) -> Batch:
        return {"input_ids": batch["input_ids"], "mask": batch["mask"]}

    def loss(self, outputs: Batch, batch: Batch) -> Tensor:
        scores = outputs["tags"].double().transpose(1, 2)
        return _mean(F.cross_entropy(scores, batch["wanted"], reduction="none"), batch)

    def divergence(self, outputs: Batch, dense: Batch, batch: Batch) -> Tensor:
        target = dense["tags"].double().log_softmax(2)
        found = outputs["tags"].double().log_softmax(2)
        return _mean(F.kl_div(found, target, reduction="none", log_target=True).sum(2), batch)

    def distributions(self, outputs: Batch, batch: Batch) -> list[Distribution]:
        share = batch["mask"] / batch["mask"].sum(1, keepdim=True)
        return [Distribution(outputs["tags"], share)]

    def error(self, outputs: Batch, batch: Batch) -> Tensor:
        return _mean((outputs["tags"].argmax(2) != batch["wanted"]).double(), batch)

    def rows(self, outputs: Batch, batch: Batch) -> Tensor:
        tokens = batch["mask"].sum(1).double()
        return torch.stack([self.error(outputs, batch) * tokens, tokens], 1)

    def measure(self, rows: Tensor) -> float:
        wrong, tokens = rows.sum(0).tolist()
        return 100 * (1 - wrong / tokens)


def _mean(values: Tensor, batch: Batch) -> Tensor:
    """Of values [n, length] over the tokens that are there."""
    return (values * batch["mask"]).sum(1) / batch["mask"].sum(1)


class Tagger(nn.Module):
    """Tags [n, length, TAGS] from a token and the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 16)
        self.mix = nn.Conv1d(16, 32, 2, padding=1)
        self.norm = nn.BatchNorm1d(32)
        self.hidden = nn.Linear(32, 32)
        self.tags = nn.Linear(32, TAGS)

    def forward(self, *, input_ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        x = self.words(input_ids) * mask[..., None]
        x = self.norm(self.mix(x.transpose(1, 2)))[..., :LENGTH].relu().transpose(1, 2)
        return {"tags": self.tags(self.hidden(x).relu())}


def tagger() -> nn.Module:
    """The same weights every time."""
    generator, model = torch.Generator().manual_seed(0), Tagger()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                bound = 3 / parameter[0].numel() ** 0.5
                parameter.uniform_(-bound, bound, generator=generator)
            else:
                parameter.uniform_(0.5, 1, generator=generator)
    return model.eval()


def sentences(count: int, seed: int) -> TensorDataset:
    """Sentences whose right tags are the dense model's own, but for every eighth."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, WORDS, (count, LENGTH), generator=generator)
    length = torch.randint(3, LENGTH + 1, (count, 1), generator=generator)
    mask = (torch.arange(LENGTH) < length).float()
    with torch.no_grad():
        wanted = tagger()(input_ids=ids, mask=mask)["tags"].argmax(2)
    noise = torch.rand(count, LENGTH, generator=generator) < 1 / 8
    wanted = torch.where(noise, (wanted + 1) % TAGS, wanted)
    return TensorDataset({"input_ids": ids, "mask": mask, "wanted": wanted})


def splits() -> Splits:
    return Splits(sentences(700, 1), sentences(200, 2))


def job_content(folder: Any, **changes: Any) -> dict[str, Any]:
    """A small job on all of this."""
    return {
        "workload": {
            "model": "tests.tagging:tagger",
            "task": {"kind": "tests.tagging:Tagging"},
            "data": {"kind": "python", "function": "tests.tagging:splits"},
            "calibration_samples": 64,
            "batch_size": 32,
        },
        "database": {
            "path": str(folder / "database"),
            "levels": ["dense", "unstr-0.50", "unstr-0.75", "rtn:w4"],
        },
        "budgets": {"bits": 0.6},
        "search": {"algorithms": ["random"], "evaluations": 20},
        **changes,
    }
