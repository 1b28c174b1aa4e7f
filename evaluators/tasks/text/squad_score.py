"""SQuAD's arithmetic: how much an answer has in common with the right ones (Rajpurkar et al. 2016,
section 6.1; the official evaluation scripts of versions 1.1 and 2.0)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def words(text: str) -> list[str]:
    """In lower case, without punctuation and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def f1(answer: str, right: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of the answer's words, for the right answer that it
    fits best, 0 to 1, higher is better. Where none is right, an empty answer is."""
    return max((_f1(words(answer), words(each)) for each in right), default=float(not answer))


def _f1(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    common = sum((Counter(found) & Counter(wanted)).values())
    if not common:
        return 0.0
    precision, recall = common / len(found), common / len(wanted)
    return 2 * precision * recall / (precision + recall)
