"""What an algorithm's parameters may be: names, types and ranges, read from its constructor."""

from __future__ import annotations

import inspect
import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any

from apportion.compressors.errors import ConfigurationError, nearest


@dataclass(frozen=True, slots=True)
class Between:
    """The range of a number that it annotates: `least` and `most` are in it."""

    least: float
    most: float


Count = Annotated[int, Between(1, 10_000)]
"""How many candidates at once: more would be made before the first one is scored."""
Several = Annotated[int, Between(2, 10_000)]
Times = Annotated[int, Between(0, 10_000)]
Share = Annotated[float, Between(0, 1)]
Part = Annotated[float, Between(0.001, 1)]
"""A share that is more than nothing."""
Weight = Annotated[float, Between(0, 1000)]


def check_parameters(name: str, cls: type, parameters: dict[str, Any]) -> None:
    """Raise ConfigurationError for a parameter that algorithm `name`, class `cls`, does not take:
    its keyword-only arguments are the parameters, with the types that they are annotated with."""
    signature = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    hints = typing.get_type_hints(cls.__init__, include_extras=True)  # type: ignore[misc]
    valid = [key for key, value in signature.items() if value.kind is value.KEYWORD_ONLY]
    for key, value in parameters.items():
        if key not in valid:
            close = nearest(key, valid)
            hint = f"; did you mean {close!r}?" if close else ""
            raise ConfigurationError(
                f"algorithm {name!r} has no parameter {key!r}{hint} (valid: "
                f"{', '.join(sorted(valid))})"
            )
        wanted = hints.get(key, object)
        bounds = [b for b in getattr(wanted, "__metadata__", ()) if isinstance(b, Between)]
        if typing.get_origin(wanted) is Annotated:
            wanted = typing.get_args(wanted)[0]
        if not _fits(value, wanted):
            wanted_name = (
                str(wanted)
                if typing.get_origin(wanted)
                else getattr(wanted, "__name__", str(wanted))
            )
            raise ConfigurationError(
                f"algorithm {name!r}: parameter {key!r} must be {wanted_name}, got {value!r:.60}"
            )
        for bound in bounds:
            if not bound.least <= value <= bound.most:
                raise ConfigurationError(
                    f"algorithm {name!r}: parameter {key!r} must lie between {bound.least:g} and "
                    f"{bound.most:g}, got {value!r:.60}"
                )


def _fits(value: Any, wanted: Any) -> bool:
    origin = typing.get_origin(wanted)
    if origin is typing.Literal:
        return value in typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(wanted))
    if origin is list:
        return isinstance(value, list) and all(
            _fits(item, typing.get_args(wanted)[0]) for item in value
        )
    if wanted is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, wanted)
