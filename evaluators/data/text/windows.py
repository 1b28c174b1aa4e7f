"""Questions with windows of their contexts: the samples of question answering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from apportion.compressors.errors import DataError
from apportion.evaluators.data.text.ragged import Fields, Ragged
from apportion.evaluators.data.text.tokenizer import Encoded, Tokenizer

_AT_ONCE = 256
"""Questions tokenized between two reports of progress."""
Span = tuple[int, int]


@dataclass(frozen=True)
class Question:
    """A question, its context, and the answers that are right: their texts, and where in the
    context they begin, in characters. No answer: the context has none."""

    question: str
    context: str
    answers: tuple[tuple[str, int], ...]


@dataclass
class Windows:
    """A row for each window, in the order of the questions.

    Args:
        encoded: inputs of the model.
        spans: of each token of the context, where in `context` it begins and ends; (-1, -1) for
            all others.
        context: the characters of the context that the window shows.
        answers: the right answers of the question, each ended by a zero character.
        place: first and last token of the first answer; the null token twice where the window
            shows it not in full.
        null: which token stands for no answer.
        question: its number.
        optional: whether the file has questions without answers.
    """

    encoded: Encoded = field(default_factory=dict)
    spans: list[list[Span]] = field(default_factory=list)
    context: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    place: list[Span] = field(default_factory=list)
    null: list[int] = field(default_factory=list)
    question: list[int] = field(default_factory=list)
    optional: bool = False

    @property
    def longest(self) -> int:
        """Tokens of the longest window."""
        return max(map(len, self.encoded["input_ids"]))


def cut(tokenizer: Tokenizer, questions: Sequence[Question], stride: int, part: str) -> Windows:
    """Windows of `sequence` tokens at most, each sharing `stride` tokens of the context with the
    one before. Raises DataError for a question that leaves no room for that, and where the
    windows do not show all of a context."""
    if not tokenizer.own.is_fast:
        raise DataError(
            "workload.data.tokenizer",
            f"{tokenizer.name!r} cannot say where in a text its tokens stand: a fast tokenizer "
            "(tokenizer.json) is needed",
        )
    made = Windows(optional=any(not each.answers for each in questions))
    for at in range(0, len(questions), _AT_ONCE):
        some = questions[at : at + _AT_ONCE]
        asked = [each.question.strip() for each in some]
        _check_room(tokenizer, asked, stride, part, at)
        found = tokenizer.own(
            asked,
            [each.context for each in some],
            truncation="only_second",
            max_length=tokenizer.sequence,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        _check_ends(tokenizer, some, found, part, at)
        for window, number in enumerate(found["overflow_to_sample_mapping"]):
            _add(made, tokenizer, found, window, some[number])
            made.question.append(at + number)
        tokenizer.context.progress(f"tokenize: {part}", at + len(some), len(questions))
    return made


def fields(tokenizer: Tokenizer, windows: Windows, width: int) -> Fields:
    """As fields of a data set, padded to `width` tokens."""
    place = torch.tensor(windows.place, dtype=torch.int64)
    count = len(windows.question)
    return {
        **tokenizer.fields(windows.encoded, width),
        "spans": Ragged.of(windows.spans, np.int32, width, -1),
        "context": _characters(windows.context),
        "answers": _characters(windows.answers),
        "start": place[:, 0],
        "end": place[:, 1],
        "null": torch.tensor(windows.null),
        "question": torch.tensor(windows.question),
        "optional": torch.full((count,), windows.optional),
    }


def _characters(texts: Sequence[str]) -> Ragged:
    """Code points."""
    width = max(1, *map(len, texts))
    return Ragged.of([[ord(c) for c in text] for text in texts], np.int32, width, 0, torch.int32)


def _add(made: Windows, tokenizer: Tokenizer, found: Any, window: int, asked: Question) -> None:
    for key in tokenizer.own.model_input_names:
        if key in found:
            made.encoded.setdefault(key, []).append(found[key][window])
    belongs = found.sequence_ids(window)
    spans = [
        span if belongs[i] == 1 else (-1, -1)
        for i, span in enumerate(found["offset_mapping"][window])
    ]
    inside = [span for span in spans if span[0] >= 0]
    first, last = (inside[0][0], inside[-1][1]) if inside else (0, 0)
    ids = found["input_ids"][window]
    special = tokenizer.own.cls_token_id
    null = ids.index(special) if special in ids else 0
    place = (null, null)
    if asked.answers:
        text, start = asked.answers[0]
        end = start + len(text)
        if inside and first <= start and end <= last:
            shown = [i for i, span in enumerate(spans) if span[0] >= 0]
            place = (
                max(i for i in shown if spans[i][0] <= start),
                min(i for i in shown if spans[i][1] >= end),
            )
    made.spans.append([(a - first, b - first) if a >= 0 else (-1, -1) for a, b in spans])
    made.context.append(asked.context[first:last])
    made.answers.append("".join(f"{text}\0" for text in dict.fromkeys(a for a, _ in asked.answers)))
    made.place.append(place)
    made.null.append(null)


def _check_room(
    tokenizer: Tokenizer, asked: Sequence[str], stride: int, part: str, first: int
) -> None:
    special = tokenizer.own.num_special_tokens_to_add(pair=True)
    lengths = [len(ids) for ids in tokenizer.own(asked, add_special_tokens=False)["input_ids"]]
    worst = max(range(len(asked)), key=lengths.__getitem__)
    needed = lengths[worst] + special + stride + 1
    if needed > tokenizer.sequence:
        raise DataError(
            f"workload.data.{part}",
            f"question {first + worst + 1} has {lengths[worst]} tokens: with a stride of {stride} "
            f"workload.data.sequence must be {needed} or more, not {tokenizer.sequence}",
        )


def _check_ends(
    tokenizer: Tokenizer, asked: Sequence[Question], found: Any, part: str, first: int
) -> None:
    """The tokenizers library of 0.23.1 and 0.23.2 loses most windows of long texts."""
    ends = [0] * len(asked)
    for window, number in enumerate(found["overflow_to_sample_mapping"]):
        spans = zip(found.sequence_ids(window), found["offset_mapping"][window], strict=True)
        ends[number] = max([ends[number], *(end for which, (_, end) in spans if which == 1)])
    for number, each in enumerate(asked):
        if ends[number] >= len(each.context.rstrip()):
            continue
        whole = tokenizer.own(
            each.context, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )["offset_mapping"]
        if whole and whole[-1][1] > ends[number]:  # not just characters that have no token
            raise DataError(
                f"workload.data.{part}",
                f"question {first + number + 1}: the installed tokenizers library gives windows of "
                f"the first {ends[number]} of the context's {len(each.context)} characters alone, "
                "as its versions 0.23.1 and 0.23.2 do: install another one",
            )
