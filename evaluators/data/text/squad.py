"""Questions, contexts and answers in SQuAD's JSON (Rajpurkar et al. 2016, 2018)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from apportion.compressors.errors import DataError, DocumentError
from apportion.db.documents.json_reader import read_json
from apportion.evaluators.data import forms
from apportion.evaluators.data.dataset import Splits
from apportion.evaluators.data.files import local_file
from apportion.evaluators.data.registry import Context, reads
from apportion.evaluators.data.text.config import SquadData
from apportion.evaluators.data.text.parts import locations, splits
from apportion.evaluators.data.text.ragged import RaggedDataset
from apportion.evaluators.data.text.tokenizer import load_tokenizer
from apportion.evaluators.data.text.windows import Question, Windows, cut, fields

_MOST = 1 << 30
"""Bytes of a file at most: SQuAD 2.0's training questions are 42 million."""


@reads(SquadData)
def read_squad(config: SquadData, context: Context) -> Splits:
    if context.form != forms.ANSWERS:
        raise DataError(
            "workload.data.kind",
            f"squad has questions with answers, which task {context.task} does not take",
        )
    tokenizer = load_tokenizer(config, context)
    parts: dict[str, Windows] = {}
    for part, location in locations(config).items():
        questions = read_questions(location, part)
        parts[part] = cut(tokenizer, questions, config.stride, part)
    width = max(windows.longest for windows in parts.values())
    return splits(
        {part: RaggedDataset(fields(tokenizer, found, width)) for part, found in parts.items()}
    )


def read_questions(location: str, part: str) -> list[Question]:
    """All questions of a file, in its order. Raises DataError, which names the paragraph."""
    where, path = f"workload.data.{part}", local_file(location)
    if not path.is_file():
        raise DataError(where, f"{path}: no such file")
    try:
        content = read_json(path, _MOST)
        found = list(_questions(content))
    except (DocumentError, ValueError) as error:
        raise DataError(where, f"{path} is not in SQuAD's format: {error}") from error
    if not found:
        raise DataError(where, f"{path} has no questions")
    return found


def _questions(content: Any) -> Iterator[Question]:
    for a, article in enumerate(_list(content, "data", "the file")):
        for p, paragraph in enumerate(_list(article, "paragraphs", f"data.{a}")):
            place = f"data.{a}.paragraphs.{p}"
            context = _text(paragraph, "context", place)
            for q, asked in enumerate(_list(paragraph, "qas", place)):
                at = f"{place}.qas.{q}"
                question = _text(asked, "question", at)
                answers = [] if asked.get("is_impossible") else _list(asked, "answers", at)
                right = tuple(_answer(each, context, at) for each in answers)
                yield Question(question, context, right)


def _answer(answer: Any, context: str, place: str) -> tuple[str, int]:
    text = _text(answer, "text", f"{place}.answers")
    start = answer.get("answer_start")
    if not isinstance(start, int) or isinstance(start, bool):
        raise ValueError(f"{place}.answers: answer_start is {start!r:.40}, not a whole number")
    if context[start : start + len(text)].lower() != text.lower():
        raise ValueError(
            f"{place}.answers: {text!r:.60} does not stand at character {start} of the context"
        )
    return text, start


def _list(content: Any, key: str, place: str) -> list[Any]:
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise ValueError(f"{place} has no list {key!r}")
    return found


def _text(content: Any, key: str, place: str) -> str:
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, str) or not found.strip():
        raise ValueError(f"{place} has no text {key!r}")
    return found
