"""Small models with data that they are good at, for the contract of tasks on text."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from apportion.evaluators.data.config import DataConfig
from apportion.evaluators.data.dataset import TensorDataset
from apportion.evaluators.data.load import load_splits
from apportion.evaluators.data.registry import Context
from apportion.evaluators.data.text.config import SquadData, TableData, TextData
from apportion.evaluators.tasks.task import Task
from apportion.evaluators.tasks.text.causal_lm import CausalLM
from apportion.evaluators.tasks.text.masked_lm import MaskedLM
from apportion.evaluators.tasks.text.question_answering import QuestionAnswering, best_span
from apportion.evaluators.tasks.text.sentence_similarity import SentenceSimilarity
from apportion.evaluators.tasks.text.text_classification import TextClassification
from tests import language

COUNT = 16
Part = tuple[Task, nn.Module, TensorDataset]


def read(
    section: Callable[..., DataConfig], task: Task, content: str, **keys: Any
) -> TensorDataset:
    """What a reader makes of a file with this content."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").write_text(content)
        files = dict.fromkeys(("calibration", "test"), str(folder / "data"))
        tokenizer = language.save_tokenizer(folder / "tokenizer")
        config = section(**files, tokenizer=tokenizer, **keys)
        found = load_splits(config, Context("mine", task.identity, task.form)).test
    return found.subset(range(len(found)))


def outputs(task: Task, model: nn.Module, batch: Any) -> Any:
    with torch.no_grad():
        return task.forward(model, batch)


def classification() -> Part:
    task, model, rng = TextClassification(), language.classifier(), random.Random(0)
    rows = [f"{language.text(rng, 3 + i % 7)},{i % 3}" for i in range(COUNT)]
    data = read(TableData, task, "\n".join(["a,b", *rows]), kind="csv", text="a", label="b")
    right = outputs(task, model, data.batch).logits.argmax(1)
    wrong = torch.arange(COUNT) % 6 == 0
    return (
        task,
        model,
        TensorDataset({**data.batch, "labels": torch.where(wrong, (right + 1) % 3, right)}),
    )


def similarity(pooling: str) -> Part:
    task, model, rng = SentenceSimilarity(pooling), language.encoder(), random.Random(1)
    rows = [f"{language.text(rng, 3 + i % 5)},{language.text(rng, 4)},0.5" for i in range(COUNT)]
    data = read(TableData, task, "\n".join(rows), kind="csv", text=(0, 1), label=2)
    cosine = task.rows(outputs(task, model, data.batch), data.batch)[:, 0]
    noise = 0.01 * torch.randn(COUNT, generator=torch.Generator().manual_seed(0))
    return task, model, TensorDataset({**data.batch, "score": cosine.float() + noise})


def causal() -> Part:
    """Texts that the model writes itself."""
    task, model = CausalLM(), language.causal()
    ids = torch.randint(5, 45, (COUNT, 1), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(12) < torch.arange(COUNT)[:, None] % 5 + 8
    with torch.no_grad():
        while ids.shape[1] < 12:
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(2)], 1)
    ids = ids.masked_fill(~mask, 0)
    return task, model, TensorDataset({"input_ids": ids, "attention_mask": mask.long()})


def masked() -> Part:
    task, model, rng = MaskedLM(), language.masked(), random.Random(2)
    data = read(TextData, task, language.text(rng, COUNT * 14), kind="text", sequence=16)
    found = outputs(task, model, data.batch).logits.argmax(2)
    labels = torch.where(data.batch["labels"] >= 0, found, -100)
    return task, model, TensorDataset({**data.batch, "labels": labels})


def answering() -> Part:
    task, model, rng = QuestionAnswering(), language.answerer(), random.Random(3)
    contexts = [language.text(rng, 20 + i) for i in range(COUNT // 2)]
    with tempfile.TemporaryDirectory() as folder:
        paragraphs = [language.paragraph(c, c.split()[4], c.split()[9]) for c in contexts]
        language.write_squad(Path(folder) / "squad", paragraphs)
        text = (Path(folder) / "squad").read_text()
    data = read(SquadData, task, text, kind="squad", sequence=28, stride=6)
    batch = data.batch
    found = outputs(task, model, batch)
    inside = batch["spans"][..., 0] >= 0
    _, first, last = best_span(found.start_logits.double(), found.end_logits.double(), inside)
    answers = torch.zeros(len(data), 200, dtype=torch.int32)
    for i, span in enumerate(batch["spans"]):
        shown = batch["context"][i, int(span[first[i], 0]) : int(span[last[i], 1])]
        answers[i, : len(shown)] = shown
    # each window a question of its own, answered as the model does
    return (
        task,
        model,
        TensorDataset(
            {
                **batch,
                "start": first,
                "end": last,
                "answers": answers,
                "question": torch.arange(len(data)),
            }
        ),
    )
