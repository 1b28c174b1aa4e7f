"""JSON without its surprises: no key may stand twice, no number is infinite, and nothing is nested
deeper than what reads it can follow."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from apportion.compressors.errors import DocumentError
from apportion.db.documents.text import MOST, read_text

_DEEPEST = 50
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


def read_json(path: Path, most: int = MOST) -> Any:
    """What a file of up to `most` bytes says. Raises DocumentError."""
    return json_content(read_text(path, most))


def json_content(text: str) -> Any:
    """What a JSON document says. Raises DocumentError."""
    try:
        content = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except RecursionError:
        raise DocumentError(f"nested more than {_DEEPEST} deep") from None
    except ValueError as error:
        raise DocumentError(f"not readable as JSON: {error}") from error
    if _depth(text) > _DEEPEST:
        raise DocumentError(f"nested more than {_DEEPEST} deep")
    if "\\ud" in text.lower():
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise DocumentError("half a character (a lone surrogate)") from None
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DocumentError(f"the key {twice!r:.60} stands twice")
    return content


def _constant(name: str) -> Any:
    raise DocumentError(f"{name} is no number of JSON")


def _depth(text: str) -> int:
    """How deep the brackets of readable JSON are nested."""
    depth = deepest = 0
    for character in re.sub(r"[^][{}]+", "", _STRING.sub("", text)):
        depth += 1 if character in "[{" else -1
        deepest = max(deepest, depth)
    return deepest
