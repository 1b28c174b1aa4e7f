"""The sections of `workload.data` that name texts, and tables."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from apportion.db.documents.section import SEEDS, Section
from apportion.evaluators.data.location import Location

Column = Annotated[int, Field(strict=True, ge=0)] | str
"""By its name, or by its number from 0 in a csv file without a line of names."""


class TextSection(Section):
    """What all of them have."""

    calibration: Location = Field(description="What to compress and search with: a file, or a URL.")
    test: Location = Field(description="What only reports look at.")
    train: Location | None = Field(
        None, description="For fine-tuning; default: the calibration data."
    )
    tokenizer: str | None = Field(
        None,
        min_length=1,
        description="A tokenizer's id on the hub, or a folder that save_pretrained wrote; default: "
        "that of `workload.model: huggingface:NAME`.",
    )
    sequence: int = Field(
        256,
        ge=4,
        description="Tokens of a sample at most: longer texts are cut, running text is cut into "
        "pieces of just so many.",
    )


class TextData(TextSection):
    """Plain text in UTF-8, for language models: cut into pieces of `sequence` tokens, what is left
    over dropped."""

    kind: Literal["text"]
    seed: int = Field(0, ge=0, lt=SEEDS, description="Of the tokens that masked-lm replaces.")


class TableData(TextSection):
    """Tables of texts, or of numbers, with what is asked of them: csv, jsonl (an object in each
    line) or parquet."""

    kind: Literal["csv", "jsonl", "parquet"]
    text: Column | tuple[Column, Column] | None = Field(
        None,
        description="The column of texts, or the two of texts that belong together. In a csv file "
        "without a line of names: their numbers, from 0.",
    )
    features: tuple[Column, ...] | None = Field(
        None,
        min_length=1,
        description="Instead of texts: the columns of numbers that the model takes, in its order.",
    )
    label: Column | tuple[Column, ...] | None = Field(
        None,
        description="The column of classes (numbers, or names) or of similarities; several for "
        "tasks with several targets; none for language models.",
    )
    scale: float = Field(
        1.0,
        gt=0,
        description="The highest similarity that there is: sentence-similarity divides by it. 5 "
        "for STS-B.",
    )
    seed: int = Field(0, ge=0, lt=SEEDS, description="Of the tokens that masked-lm replaces.")

    @model_validator(mode="after")
    def _numbers_or_names(self) -> TableData:
        if (self.text is None) == (self.features is None):
            raise ValueError(
                "either `text`, the columns of texts, or `features`, the columns of numbers, is "
                "needed"
            )
        columns = (*self.texts, *(self.features or ()), *self.labels)
        numbered = {isinstance(column, int) for column in columns}
        if len(numbered) > 1:
            raise ValueError("columns are named, or numbered, not both")
        if numbered == {True} and self.kind != "csv":
            raise ValueError(f"columns of {self.kind} files have names; numbers are for csv files")
        return self

    @model_validator(mode="after")
    def _of_texts(self) -> TableData:
        if self.features is None:
            return self
        if odd := {"tokenizer", "sequence", "scale", "seed"} & self.model_fields_set:
            raise ValueError(f"`{min(odd)}` is for tables of texts; leave it out with `features`")
        columns = (*self.features, *self.labels)
        if twice := [column for column in columns if columns.count(column) > 1]:
            raise ValueError(f"column {twice[0]!r} is asked for twice")
        return self

    @property
    def texts(self) -> tuple[Column, ...]:
        if self.text is None:
            return ()
        return self.text if isinstance(self.text, tuple) else (self.text,)

    @property
    def labels(self) -> tuple[Column, ...]:
        if self.label is None:
            return ()
        return self.label if isinstance(self.label, tuple) else (self.label,)


class SquadData(TextSection):
    """Questions with contexts and answers, in SQuAD's JSON (1.1 or 2.0). A context too long for one
    sample is read in windows that overlap."""

    kind: Literal["squad"]
    sequence: int = Field(
        384, ge=4, description="Tokens of a sample at most: a question and a window of its context."
    )
    stride: int = Field(
        128, ge=0, description="Tokens of the context that a window shares with the one before it."
    )
