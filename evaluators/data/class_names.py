"""Classes of the data among the names that a model has for its own."""

from __future__ import annotations

from collections.abc import Sequence


def by_name(classes: Sequence[str], names: Sequence[str]) -> dict[str, int] | None:
    """Class -> index in `names`, if every one of `classes` is one of them, and no two the same."""
    known: dict[str, set[int]] = {}
    for index, name in enumerate(names):
        # Hugging Face's labels of ImageNet are lists of synonyms
        for each in {name, *name.split(",")}:
            known.setdefault(_plain(each), set()).add(index)
    found = {each: known.get(_plain(each), set()) for each in classes}
    if any(len(places) != 1 for places in found.values()):
        return None
    labels = {each: places.pop() for each, places in found.items()}
    return labels if len(set(labels.values())) == len(labels) else None


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())
