"""YAML without its surprises: scalars by YAML 1.2's core schema (2:4 and no are text, 040 is 40),
keys are text as they are written, none may stand twice, and no document takes long to read.

It is built from PyYAML's events; tags make no objects."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

import yaml

from apportion.compressors.errors import DocumentError

MOST = 1 << 20
"""Bytes of a YAML file: larger ones take seconds to parse, and nobody writes them by hand."""
_DEEPEST = 50
_MOST_NODES = 200_000
"""Values of a document, those that aliases repeat counted each time."""
_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TEXT_TAGS = ("!", "tag:yaml.org,2002:str")
_CONSTANTS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?[0-9]{1,4000}|0o[0-7]{1,4000}|0x[0-9a-fA-F]{1,4000}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

Place = tuple[str, ...]


def yaml_content(text: str, texts: Collection[Place] = ()) -> Any:
    """What a document says: dictionaries with text as keys, lists, text, numbers, truth values,
    None. `texts`: places whose scalars are text whatever they look like, as keys from the top with
    `*` for a list's entries. Raises DocumentError, which names the line."""
    if len(text.encode("utf-8", "replace")) > MOST:
        raise DocumentError(f"has more than {MOST >> 20} MiB, which is too large for YAML")
    try:
        return _Builder(yaml.parse(text, Loader=_PARSER), texts).document()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise DocumentError(f"not readable as YAML: {where}{problem}") from error


class _Builder:
    def __init__(self, events: Iterator[Any], texts: Collection[Place]) -> None:
        self._events, self._texts = events, texts
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._nodes = 0

    def document(self) -> Any:
        next(self._events)  # the stream begins
        if isinstance(event := next(self._events), yaml.StreamEndEvent):
            return None
        content = self._node(next(self._events), ())
        next(self._events)  # the document ends
        if not isinstance(event := next(self._events), yaml.StreamEndEvent):
            raise _error(event, "a second document begins; one is needed")
        return content

    def _node(self, event: Any, place: Place) -> Any:
        if isinstance(event, yaml.AliasEvent):
            return self._repeated(event)
        if len(place) >= _DEEPEST:
            raise _error(event, f"nested more than {_DEEPEST} deep")
        before = self._nodes
        self._count(event, 1)
        if isinstance(event, yaml.ScalarEvent):
            content = self._scalar(event, place)
        else:
            if event.tag not in (None, "!", *_COLLECTIONS):
                raise _error(event, f"the tag {event.tag!r} is not taken")
            is_map = isinstance(event, yaml.MappingStartEvent)
            content = self._mapping(place) if is_map else self._sequence(place)
        if event.anchor is not None:
            self._anchors[event.anchor] = content, self._nodes - before
        return content

    def _repeated(self, event: yaml.AliasEvent) -> Any:
        if event.anchor not in self._anchors:
            raise _error(event, f"the alias *{event.anchor} is not defined before this")
        content, size = self._anchors[event.anchor]
        self._count(event, size)
        return content

    def _count(self, event: yaml.Event, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > _MOST_NODES:
            raise _error(event, f"more than {_MOST_NODES} values, those of aliases included")

    def _sequence(self, place: Place) -> list[Any]:
        content = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            content.append(self._node(event, (*place, "*")))
        return content

    def _mapping(self, place: Place) -> dict[str, Any]:
        content: dict[str, Any] = {}
        merged: list[dict[str, Any]] = []
        lines: dict[str, int] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise _error(event, "a key must be text")
            key, line = _whole(event), _line(event)
            if lines.setdefault(key, line) != line or key in content:
                raise _error(
                    event, f"the key {key!r:.60} stands twice (first in line {lines[key]})"
                )
            value = self._node(following := next(self._events), (*place, key))
            if key == "<<" and event.implicit[0]:
                merged += _to_merge(following, value)
            else:
                content[key] = value
        for other in merged:
            content = {**other, **content}
        return content

    def _scalar(self, event: yaml.ScalarEvent, place: Place) -> Any:
        text = _whole(event)
        if event.tag not in (None, *_TEXT_TAGS):
            raise _error(event, f"the tag {event.tag!r} is not taken")
        if event.tag is not None or not event.implicit[0] or place in self._texts:
            return text
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        if _INTEGER.fullmatch(text):
            return int(text, 0 if text[:2] in ("0o", "0x") else 10)
        if _FLOAT.fullmatch(text):
            return float(text)
        if match := _INFINITE.fullmatch(text):
            return float((match[1] or "") + (match[2] or match[3]))
        return text


_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


def _to_merge(event: yaml.Event, value: Any) -> list[dict[str, Any]]:
    """The mappings of a merge key; the first of several holds."""
    several = value if isinstance(value, list) else [value]
    if not all(isinstance(one, dict) for one in several):
        raise _error(event, "<< needs a mapping, or a list of them")
    return several


def _whole(event: yaml.ScalarEvent) -> str:
    text: str = event.value
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _error(event, "half a character (a lone surrogate)") from None
    return text


def _error(event: yaml.Event, reason: str) -> DocumentError:
    return DocumentError(f"line {_line(event)}: {reason}")


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0
