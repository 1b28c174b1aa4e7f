"""Rows of text, or of numbers, with what is asked of them, from csv, jsonl and parquet files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from apportion.compressors.errors import DataError
from apportion.evaluators.data import forms
from apportion.evaluators.data.dataset import Splits
from apportion.evaluators.data.registry import Context, reads
from apportion.evaluators.data.tables.columns import read_columns
from apportion.evaluators.data.tables.features import read_features
from apportion.evaluators.data.tables.labels import number_classes, numbers
from apportion.evaluators.data.text.config import TableData
from apportion.evaluators.data.text.packing import pack
from apportion.evaluators.data.text.parts import locations, splits
from apportion.evaluators.data.text.ragged import Fields, RaggedDataset
from apportion.evaluators.data.text.tokenizer import Tokenizer, load_tokenizer, longest

Rows = dict[str, list[list[Any]]]
"""Part -> its columns, those of texts first."""


@reads(TableData)
def read_table(config: TableData, context: Context) -> Splits:
    if config.features is not None:
        files = locations(config)
        return splits(read_features(config.kind, files, config.features, config.labels, context))
    if context.form not in _FORMS:
        raise DataError(
            "workload.data.kind",
            f"{config.kind} has texts with labels, which task {context.task} does not take",
        )
    texts, labels, make = _FORMS[context.form]
    for key, found, wanted in (
        ("text", config.texts, texts),
        ("label", config.labels, labels),
    ):
        if len(found) not in wanted:
            raise DataError(
                f"workload.data.{key}",
                f"task {context.task} needs {_columns(wanted)}, not {len(found)}",
            )
    names = (*config.texts, *config.labels)
    rows = {
        part: read_columns(config.kind, location, names, part)
        for part, location in locations(config).items()
    }
    for part, columns in rows.items():
        for name, column in zip(config.texts, columns, strict=False):
            if odd := [row for row, text in enumerate(column) if not isinstance(text, str)]:
                raise DataError(
                    f"workload.data.{part}",
                    f"row {odd[0] + 1} has {column[odd[0]]!r:.60} in column {name!r}; a text is "
                    "needed",
                )
    return make(config, load_tokenizer(config, context), rows)


def _classes(config: TableData, tokenizer: Tokenizer, rows: Rows) -> Splits:
    given = number_classes(
        locations(config),
        {part: columns[-1] for part, columns in rows.items()},
        tokenizer.context.classes,
    )
    inputs = _together(config, tokenizer, rows)
    return splits(
        {
            part: RaggedDataset({**inputs[part], "labels": torch.tensor(labels)})
            for part, labels in given.items()
        }
    )


def _targets(config: TableData, tokenizer: Tokenizer, rows: Rows) -> Splits:
    inputs, count = _together(config, tokenizer, rows), len(config.texts)
    return splits(
        {
            part: RaggedDataset({**inputs[part], "labels": _numbers(config, part, columns[count:])})
            for part, columns in rows.items()
        }
    )


def _pairs(config: TableData, tokenizer: Tokenizer, rows: Rows) -> Splits:
    encoded = {
        f"{part} {side}": tokenizer.encode(columns[at], None, part)
        for part, columns in rows.items()
        for at, side in enumerate(("first", "second"))
    }
    width = longest(encoded)
    return splits(
        {
            part: RaggedDataset(
                {
                    **{
                        side: tokenizer.fields(encoded[f"{part} {side}"], width)
                        for side in ("first", "second")
                    },
                    "score": _numbers(config, part, columns[2:])[:, 0] / config.scale,
                }
            )
            for part, columns in rows.items()
        }
    )


def _packed(config: TableData, tokenizer: Tokenizer, rows: Rows) -> Splits:
    seed = config.seed if tokenizer.context.form == forms.MASKED else None
    return splits({part: pack(tokenizer, columns[0], part, seed) for part, columns in rows.items()})


_FORMS: Mapping[
    str,
    tuple[tuple[int, ...], tuple[int, ...], Callable[[TableData, Tokenizer, Rows], Splits]],
] = {
    forms.CLASSES: ((1, 2), (1,), _classes),
    forms.TARGETS: ((1, 2), tuple(range(1, 1000)), _targets),
    forms.PAIRS: ((2,), (1,), _pairs),
    forms.TOKENS: ((1,), (0,), _packed),
    forms.MASKED: ((1,), (0,), _packed),
}
"""Form -> how many columns of texts, and of labels, it has, and what makes it of rows."""


def _together(config: TableData, tokenizer: Tokenizer, rows: Rows) -> dict[str, Fields]:
    """The inputs of a model that reads the text, or both texts, of a row as one."""
    both = len(config.texts) == 2
    encoded = {
        part: tokenizer.encode(columns[0], columns[1] if both else None, part)
        for part, columns in rows.items()
    }
    width = longest(encoded)
    return {part: tokenizer.fields(found, width) for part, found in encoded.items()}


def _numbers(config: TableData, part: str, columns: list[list[Any]]) -> torch.Tensor:
    """float32 [N, columns]."""
    pairs, file = zip(config.labels, columns, strict=True), locations(config)[part]
    table = [numbers(part, file, name, column) for name, column in pairs]
    return torch.tensor(table).T.contiguous()


def _columns(counts: tuple[int, ...]) -> str:
    if len(counts) > 2:
        return f"{counts[0]} column or more"
    return " or ".join("no column" if not n else f"{n} column{'s' * (n > 1)}" for n in counts)
