"""Profile: layer -> level, for every layer; its JSON and SPDY text forms."""

from __future__ import annotations

from collections.abc import Mapping

from apportion.compressors.errors import LevelError, ProfileError
from apportion.compressors.levels import Level, parse_level

Profile = dict[str, Level]
"""Layer name -> level, in the model's layer order."""


def check_profile(
    profile: Mapping[str, Level], levels: Mapping[str, list[str]], source: str = "given"
) -> None:
    """Raise ProfileError unless `profile` names exactly the layers of `levels`, each at one of its
    levels."""
    if missing := [name for name in levels if name not in profile]:
        raise ProfileError(source, f"no level for layer {missing[0]!r}" + _more(missing))
    if unknown := [name for name in profile if name not in levels]:
        raise ProfileError(source, f"unknown layer {unknown[0]!r}" + _more(unknown))
    for name, level in profile.items():
        if str(level) not in levels[name]:
            raise ProfileError(
                source,
                f"layer {name!r} has no level {str(level)!r} (it has {', '.join(levels[name])})",
            )


def to_json(profile: Mapping[str, Level]) -> dict[str, str]:
    return {name: str(level) for name, level in profile.items()}


def from_json(content: object, source: str) -> Profile:
    """Read layer -> level from JSON content, bare or under the key `profile` (as export writes it).
    Raises ProfileError."""
    if isinstance(content, dict) and isinstance(content.get("profile"), dict):
        content = content["profile"]
    if not isinstance(content, dict) or not all(
        isinstance(level, str) for level in content.values()
    ):
        raise ProfileError(source, 'expected a JSON object {"layer": "level", ...}')
    try:
        return {name: parse_level(level) for name, level in content.items()}
    except LevelError as error:
        raise ProfileError(source, str(error)) from error


def to_spdy(profile: Mapping[str, Level]) -> str:
    """The text format of SPDY's tools: a line `0.7500 layer1.0.conv1` per layer, the fraction of
    weights removed first. Raises ProfileError for levels that a sparsity alone does not
    describe."""
    lines = []
    for name, level in profile.items():
        if level.quantization is not None or level.channels:
            raise ProfileError(
                "as SPDY text", f"layer {name!r} is at {level}; the format holds sparsities only"
            )
        lines.append(f"{level.fraction_removed:.4f} {name}")
    return "\n".join(lines) + "\n"


def from_spdy(text: str, levels: Mapping[str, list[str]], source: str) -> Profile:
    """Read SPDY text against the levels at hand: each line takes the layer's unstructured (or
    dense) level whose sparsity prints the same to four decimals. Raises ProfileError."""
    profile: Profile = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        fields = line.split()
        if len(fields) != 2:
            raise ProfileError(source, f"line {number}: expected 'SPARSITY LAYER', got {line!r}")
        fraction, name = fields
        if name not in levels:
            raise ProfileError(source, f"line {number}: unknown layer {name!r}")
        if name in profile:
            raise ProfileError(source, f"line {number}: layer {name!r} stands twice")
        found = [level for level in map(parse_level, levels[name]) if _matches(level, fraction)]
        if not found:
            raise ProfileError(
                source, f"line {number}: layer {name!r} has no level of sparsity {fraction}"
            )
        profile[name] = found[0]
    return profile


def _matches(level: Level, fraction: str) -> bool:
    unstructured = level.is_dense or (level.sparsity is not None and level.sparsity.kind == "unstr")
    try:
        return (
            unstructured
            and level.quantization is None
            and f"{level.fraction_removed:.4f}" == f"{float(fraction):.4f}"
        )
    except ValueError:
        return False


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
