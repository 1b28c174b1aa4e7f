"""The tokenizer of a model, and texts as its tokens."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from apportion.compressors.errors import DataError, first_line
from apportion.evaluators.data.registry import Context
from apportion.evaluators.data.text.config import TextSection
from apportion.evaluators.data.text.pretrained import PREFIX, pretrained, quiet
from apportion.evaluators.data.text.ragged import Fields, Ragged

log = logging.getLogger(__name__)

_AT_ONCE = 1000
"""Texts tokenized between two reports of progress."""
Encoded = dict[str, list[list[int]]]
"""What the tokenizer gives: input_ids and the like, a list for each sample."""


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of Hugging Face.

    Args:
        own: it.
        name: for messages.
        sequence: tokens of a sample at most.
        context: of the job.
    """

    own: Any
    name: str
    sequence: int
    context: Context

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None, part: str) -> Encoded:
        """Texts, or pairs of them, as tokens with the special ones around them, `sequence` at most;
        a warning says how many were cut. `part` is what they are for: calibration, say. Raises
        DataError for one without any token."""
        made: Encoded = {}
        cut = 0
        for at in range(0, len(texts), _AT_ONCE):
            some = range(at, min(at + _AT_ONCE, len(texts)))
            found = self._called(texts, pairs, some)
            long = [row for row in some if len(found["input_ids"][row - at]) > self.sequence]
            if long:
                shorter = self._called(texts, pairs, long, truncation=True)
                for key, rows in shorter.items():
                    for row, ids in zip(long, rows, strict=True):
                        found[key][row - at] = ids
            for key, rows in found.items():
                made.setdefault(key, []).extend(rows)
            cut += len(long)
            self.context.progress(f"tokenize: {part}", some.stop, len(texts))
        if empty := [row for row, ids in enumerate(made["input_ids"]) if not ids]:
            raise DataError(
                f"workload.data.{part}",
                f"the text of row {empty[0] + 1} has no token: {texts[empty[0]]!r:.60}",
            )
        if cut:
            log.warning(
                "workload.data.%s: %d of %d texts are cut after %d tokens (workload.data.sequence)",
                part,
                cut,
                len(texts),
                self.sequence,
            )
        return made

    def _called(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None,
        rows: Iterable[int],
        truncation: bool = False,
    ) -> Encoded:
        rows = list(rows)
        given = [[each[row] for row in rows] for each in (texts, pairs) if each is not None]
        limit = {"truncation": True, "max_length": self.sequence} if truncation else {}
        return dict(self.own(*given, verbose=False, **limit))

    def fields(self, encoded: Encoded, width: int) -> Fields:
        """As the inputs of a model, padded to `width`. Raises DataError for a tokenizer that has no
        padding."""
        pad = self.own.pad_token_id
        if pad is None and any(len(ids) < width for ids in encoded["input_ids"]):
            raise DataError(
                "workload.data.tokenizer", f"{self.name!r} has no token for padding (pad_token)"
            )
        pads = {"input_ids": pad or 0, "token_type_ids": self.own.pad_token_type_id}
        kinds = {"input_ids": np.int32}
        return {
            key: Ragged.of(rows, kinds.get(key, np.int8), width, pads.get(key, 0))
            for key, rows in encoded.items()
            if key in ("input_ids", "attention_mask", "token_type_ids") and self.context.takes(key)
        }


def load_tokenizer(config: TextSection, context: Context) -> Tokenizer:
    """The section's tokenizer, or that of the model. Raises DataError."""
    name = config.tokenizer
    if name is None:
        if not context.model.startswith(PREFIX):
            raise DataError(
                "workload.data.tokenizer",
                f"required, as model {context.model!r} brings none: an id on the hub, or a folder "
                "that save_pretrained wrote",
            )
        name = context.model.removeprefix(PREFIX)
    try:
        source = pretrained(name)
        from transformers import AutoTokenizer

        with quiet():
            own = AutoTokenizer.from_pretrained(
                source.name, use_fast=True, trust_remote_code=False, **source.options
            )
    except Exception as error:  # not there, no network, or what its file's own library raises
        raise DataError(
            "workload.data.tokenizer",
            f"{name!r} has no tokenizer ({first_line(error)}); an id on the hub, a folder that "
            "save_pretrained wrote, or a GGUF file is needed",
        ) from error
    return Tokenizer(own, name, config.sequence, context)


def longest(parts: Mapping[str, Encoded]) -> int:
    """Tokens of the longest sample of all parts."""
    return max(len(ids) for encoded in parts.values() for ids in encoded["input_ids"])
