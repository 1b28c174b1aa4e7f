"""Running text as pieces of one length, without padding, and tokens masked in them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from apportion.compressors.errors import DataError
from apportion.evaluators.data.dataset import TensorDataset
from apportion.evaluators.data.text.tokenizer import Tokenizer

_BLOCK = 1 << 22
"""Characters that are tokenized at once; blocks end where lines do."""
_MASKED, _REPLACED, _RANDOM = 0.15, 0.8, 0.1
"""Share of the tokens that are asked for; of these, how many stand as the mask, and how many as a
random token (Devlin et al. 2019, section 3.1)."""


def pack(
    tokenizer: Tokenizer, documents: Sequence[str], part: str, masked: int | None
) -> TensorDataset:
    """Documents one after the other, the tokenizer's end of text between them, as pieces of
    `sequence` tokens [n, sequence]; what is left over is dropped.

    Args:
        tokenizer: whose tokens, and how many.
        documents: the texts.
        part: what they are for: calibration, say.
        masked: None for a model that goes from left to right: its first token of all begins the
            text, where it has one. Else the seed by which tokens are masked; every piece then has
            the special tokens at its beginning and end.

    Raises:
        DataError: there are fewer tokens than one piece needs, or no token that masks.
    """
    before, after = _around(tokenizer)
    stream = list(itertools.chain.from_iterable(_tokens(tokenizer, documents, part)))
    if masked is None:
        stream, before, after = before + stream, [], []
    room = tokenizer.sequence - len(before) - len(after)
    count = len(stream) // room if room > 0 else 0
    if not count:
        raise DataError(
            f"workload.data.{part}",
            f"{len(stream)} tokens, fewer than one sample needs (workload.data.sequence: "
            f"{tokenizer.sequence})",
        )
    pieces = torch.tensor(stream[: count * room]).reshape(count, room)
    special = [torch.tensor(each, dtype=torch.int64).expand(count, -1) for each in (before, after)]
    ids = torch.cat([special[0], pieces, special[1]], dim=1)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    kinds = "token_type_ids"
    if kinds in tokenizer.own.model_input_names and tokenizer.context.takes(kinds):
        batch[kinds] = torch.zeros_like(ids)
    if masked is not None:
        batch["input_ids"], batch["labels"] = mask(tokenizer, ids, masked)
    return TensorDataset(batch)


def mask(tokenizer: Tokenizer, ids: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens [n, length] with some replaced, and what stood there, -100 elsewhere; at least one in
    every sample. Raises DataError for a tokenizer without a token that masks."""
    token = tokenizer.own.mask_token_id
    if token is None:
        raise DataError(
            "workload.data.tokenizer",
            f"{tokenizer.name!r} has no token that masks (mask_token), which task "
            f"{tokenizer.context.task} needs",
        )
    generator = torch.Generator().manual_seed(seed)
    special = torch.isin(ids, torch.tensor(tokenizer.own.all_special_ids))
    chance = torch.rand(ids.shape, generator=generator).masked_fill(special, 1.0)
    asked = (chance < _MASKED) | (chance == chance.amin(1, keepdim=True)) & ~special
    how = torch.rand(ids.shape, generator=generator)
    anything = torch.randint(len(tokenizer.own), ids.shape, generator=generator)
    found = torch.where(asked & (how < _REPLACED), token, ids)
    found = torch.where(asked & (how >= 1 - _RANDOM), anything, found)
    return found, torch.where(asked, ids, -100)


def _tokens(tokenizer: Tokenizer, documents: Sequence[str], part: str) -> Iterator[list[int]]:
    total, done = sum(map(len, documents)), 0
    end = tokenizer.own.eos_token_id if len(documents) > 1 else None
    for document in documents:
        for block in _blocks(document):
            yield tokenizer.own(block, add_special_tokens=False, verbose=False)["input_ids"]
            done += len(block)
            tokenizer.context.progress(f"tokenize: {part}", done, total)
        if end is not None:
            yield [end]


def _blocks(text: str) -> Iterable[str]:
    start = 0
    while start < len(text):
        end = len(text)
        if end - start > _BLOCK:
            end = text.find("\n", start + _BLOCK) + 1 or len(text)
        yield text[start:end]
        start = end


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    bare = tokenizer.own("a", add_special_tokens=False)["input_ids"]
    full = tokenizer.own("a")["input_ids"]
    at = next(i for i in range(len(full) + 1) if full[i : i + len(bare)] == bare)
    return full[:at], full[at + len(bare) :]
