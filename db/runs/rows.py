"""What stands in a run store's rows, checked as it is read: a file may be altered, or made by a
newer version."""

from __future__ import annotations

import hashlib
import json
import math
import operator
from collections.abc import Sequence
from typing import Any

from apportion.compressors.errors import StoreError
from apportion.compressors.levels import Candidate


def to_text(candidate: Candidate) -> str:
    """A candidate as it is stored."""
    return ",".join(map(str, candidate))


def to_digest(candidate: str) -> str:
    """What a candidate's text is found by: an index on the text itself would hold all of it, and
    PostgreSQL takes no entry of more than 2.7 kB."""
    return hashlib.sha256(candidate.encode()).hexdigest()[:32]


def check_numbers(url: str, where: str, **numbers: float) -> None:
    """Raises StoreError for one that is NaN, which no column takes: it equals nothing, itself
    included. Infinite ones are fine."""
    for name, number in numbers.items():
        if math.isnan(number):
            raise StoreError(url, f"{where}: {name} is not a number (NaN)")


def to_candidate(text: str, counts: Sequence[int] | None, url: str, where: str) -> Candidate:
    """The other way. `counts` is how many levels each layer has, None where that is not known.
    Raises StoreError, which names `where` it stands."""
    try:
        found = tuple(map(int, text.split(",")))
    except (ValueError, AttributeError):
        raise StoreError(
            url, f"{where}: the candidate {_short(text)} is no list of level indices; {_ALTERED}"
        ) from None
    if min(found) < 0:
        raise StoreError(url, f"{where}: level index {min(found)} is below 0; {_ALTERED}")
    if counts is None:
        return found
    if len(found) != len(counts):
        raise StoreError(
            url, f"{where}: a candidate of {len(found)} levels for {len(counts)} layers; {_ALTERED}"
        )
    if not all(map(operator.lt, found, counts)):
        layer, index = next((i, c) for i, c in enumerate(found) if c >= counts[i])
        raise StoreError(
            url,
            f"{where}: level index {index} of layer {layer}, valid are 0 to {counts[layer] - 1}; "
            f"{_ALTERED}",
        )
    return found


def to_mapping(text: str, url: str, where: str) -> dict[str, Any]:
    """A JSON object. Raises StoreError, which names `where` it stands."""
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise StoreError(url, f"{where}: no readable JSON ({reason}); {_ALTERED}") from None
    if not isinstance(found, dict):
        raise StoreError(url, f"{where}: no mapping but {_short(text)}; {_ALTERED}")
    return found


def level_counts(space: dict[str, Any] | None) -> list[int] | None:
    """How many levels each layer of a job's stored space has; None where that does not say."""
    levels = (space or {}).get("levels")
    if not isinstance(levels, list) or not all(isinstance(row, list) and row for row in levels):
        return None
    return [len(row) for row in levels]


_ALTERED = "the store was altered, or a newer version wrote it"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
