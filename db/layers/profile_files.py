"""Profiles in the files of other tools: tables (CSV) and maps or lists (YAML), beside our JSON and
SPDY's text.

What says a sparsity or bits instead of a level is matched with the levels at hand: the first of
those with that sparsity (to four decimals), weight bits and input bits, ExactOBS before its
data-free baselines, unstructured ones first. 32 bits, or none, mean not quantized."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from apportion.compressors.errors import DocumentError, LevelError, ProfileError
from apportion.compressors.levels import Level, parse_level
from apportion.db.documents.csv_reader import csv_rows
from apportion.db.documents.json_reader import json_content
from apportion.db.documents.text import number, read_text
from apportion.db.documents.yaml_reader import yaml_content
from apportion.db.layers.profile import Profile, check_profile, from_json, from_spdy, to_json

_FLOAT = 32
_NUMBERS = ("sparsity", "w_bit", "a_bit")
_RATES = "pruning_rate"
"""Sparsities as a list in layer order."""


def to_csv(profile: Mapping[str, Level]) -> str:
    """A row per layer: layer, level, sparsity, w_bit, a_bit."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(("layer", "level", *_NUMBERS))
    for name, level in profile.items():
        table.writerow((name, level, f"{level.fraction_removed:.6g}", *_bits(level)))
    return out.getvalue()


def to_yaml(profile: Mapping[str, Level]) -> str:
    """`levels` and `sparsity`: layer -> level, fraction removed; `pruning_rate`, `w_bit`, `a_bit`:
    lists in layer order."""
    bits = [_bits(level) for level in profile.values()]
    content = {
        "levels": to_json(profile),
        "sparsity": {name: level.fraction_removed for name, level in profile.items()},
        _RATES: [level.fraction_removed for level in profile.values()],
        "w_bit": [weight for weight, _ in bits],
        "a_bit": [activation for _, activation in bits],
    }
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=130)


def read_profile(path: Path, levels: Mapping[str, list[str]]) -> Profile:
    """Read a profile file by its suffix (.json, .yaml, .yml, .csv, .txt as SPDY writes it) and
    check it against `levels`. Raises ProfileError."""
    readers = {
        ".json": _read_json,
        ".yaml": _read_yaml,
        ".yml": _read_yaml,
        ".csv": _read_csv,
        ".txt": from_spdy,
    }
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise ProfileError(path, f"a suffix of {', '.join(readers)} is needed")
    try:
        profile = readers[suffix](read_text(path), levels, str(path))
    except DocumentError as error:
        raise ProfileError(path, str(error)) from error
    check_profile(profile, levels, str(path))
    return {name: profile[name] for name in levels}


def _read_json(text: str, _levels: Mapping[str, list[str]], source: str) -> Profile:
    return from_json(json_content(text), source)


def _read_yaml(text: str, levels: Mapping[str, list[str]], source: str) -> Profile:
    content = yaml_content(text)
    if not isinstance(content, dict):
        raise ProfileError(
            source,
            "expected a map of layer -> level or sparsity, or lists w_bit, a_bit, pruning_rate",
        )
    if isinstance(named := content.get("levels", content.get("profile")), dict):
        return from_json(named, source)
    if any(key in content for key in (*_NUMBERS, _RATES)):
        return _from_columns(content, levels, source)
    profile: Profile = {}
    for name, value in content.items():
        if isinstance(value, str):
            profile[name] = _level(value, source)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            profile[name] = _match(name, {"sparsity": value}, levels, source)
        else:
            raise ProfileError(
                source, f"layer {name!r}: a level or a sparsity is needed, not {value!r}"
            )
    return profile


def _from_columns(
    content: Mapping[str, Any], levels: Mapping[str, list[str]], source: str
) -> Profile:
    """A profile from maps or lists of sparsities and bits. A layer that one of the maps leaves out
    is not compressed in that way; one that all of them leave out is an error."""
    known = (*_NUMBERS, _RATES)
    given = {}
    for key, value in content.items():
        if key in known:
            given[key] = _by_layer(value, key, levels, source)
        elif isinstance(value, (dict, list)):
            raise ProfileError(source, f"{key}: unknown; known are {', '.join(known)}")
    rates = given.pop(_RATES, None)
    if rates is not None and given.setdefault("sparsity", rates) != rates:
        raise ProfileError(source, f"sparsity and {_RATES} differ; which one is meant?")
    named = {name for row in given.values() for name in row}
    return {
        name: _match(name, {key: row.get(name) for key, row in given.items()}, levels, source)
        for name in levels
        if name in named
    }


def _read_csv(text: str, levels: Mapping[str, list[str]], source: str) -> Profile:
    profile: Profile = {}
    for line, row in csv_rows(text, ["layer"]):
        if "level" not in row and not set(_NUMBERS) & set(row):
            raise ProfileError(
                source, f"a column 'level', or some of {', '.join(_NUMBERS)}, is needed"
            )
        name = row["layer"]
        if name in profile:
            raise ProfileError(source, f"line {line}: layer {name!r} stands twice")
        numbers = {key: row.get(key) or None for key in _NUMBERS}
        profile[name] = (
            _level(row["level"], source)
            if row.get("level")
            else _match(name, numbers, levels, source)
        )
    return profile


def _by_layer(
    value: object, key: str, levels: Mapping[str, list[str]], source: str
) -> dict[str, Any]:
    """Layer -> value, of a map or of a list in layer order."""
    if isinstance(value, dict):
        if unknown := [name for name in value if name not in levels]:
            raise ProfileError(source, f"{key}: unknown layer {unknown[0]!r}")
        return value
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ProfileError(source, f"{key}: a map or a list is needed, not {value!r}")
    if len(value) != len(levels):
        raise ProfileError(source, f"{key}: {len(value)} values for {len(levels)} layers")
    return dict(zip(levels, value, strict=True))


def _match(
    name: str, numbers: Mapping[str, Any], levels: Mapping[str, list[str]], source: str
) -> Level:
    if name not in levels:
        raise ProfileError(source, f"unknown layer {name!r}")
    sparsity, weight, activation = (
        _number(numbers.get(key), key, name, default, source)
        for key, default in zip(_NUMBERS, (0, _FLOAT, _FLOAT), strict=True)
    )
    found = [
        level
        for level in map(parse_level, levels[name])
        if _bits(level) == (weight, activation)
        and f"{level.fraction_removed:.4f}" == f"{sparsity:.4f}"
    ]
    if not found:
        what = f"{weight:g}-bit weights, {activation:g}-bit inputs and sparsity {sparsity:g}"
        raise ProfileError(
            source, f"layer {name!r} has no level of {what} (it has {', '.join(levels[name])})"
        )
    return min(found, key=_preference)


def _preference(level: Level) -> tuple[bool, bool]:
    sparsity, quantization = level.sparsity, level.quantization
    free = (sparsity is not None and sparsity.magnitude) or (
        quantization is not None and quantization.nearest
    )
    return free, sparsity is not None and sparsity.kind != "unstr"


def _bits(level: Level) -> tuple[int, int]:
    weight = level.quantization.weight_bits if level.quantization else None
    return weight or _FLOAT, level.activation_bits or _FLOAT


def _number(value: object, key: str, name: str, default: float, source: str) -> float:
    try:
        return default if value is None else number(value)
    except DocumentError as error:
        raise ProfileError(source, f"{key} of layer {name!r}: {error}") from error


def _level(text: str, source: str) -> Level:
    try:
        return parse_level(text)
    except LevelError as error:
        raise ProfileError(source, str(error)) from error
