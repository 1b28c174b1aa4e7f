"""Sections of the job file: unknown keys are errors, and numbers are numbers."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from apportion.db.documents.text import meant

SEEDS = 2**63
"""Seeds are below this: databases and generators keep them in eight bytes."""


class Section(BaseModel):
    """Base of all sections. Where a number is asked for, neither a truth value nor text is one (to
    pydantic `true` is 1, and '1_000' a thousand), nor is what is not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, content: Any) -> Any:
        for name, field in cls.model_fields.items():
            if isinstance(content, Mapping) and name in content:
                try:
                    _check(field.annotation, value := content[name])
                except ValueError as error:
                    wrong = PydanticCustomError("number", "{reason}", {"reason": str(error)})
                    raise ValidationError.from_exception_data(
                        cls.__name__, [{"type": wrong, "loc": (name,), "input": value}]
                    ) from None
        return content


def _check(wanted: Any, value: Any) -> None:
    """Raise ValueError for a truth value or text at a place where the type `wanted` has numbers."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is typing.Annotated:
        _check(arguments[0], value)
    elif origin is tuple and isinstance(value, (list, tuple)):
        same = len(arguments) == 2 and arguments[1] is Ellipsis
        for i, one in enumerate(value):
            if same or i < len(arguments):
                _check(arguments[0 if same else i], one)
    elif origin is dict and isinstance(value, Mapping):
        for one in value.values():
            _check(arguments[1], one)
    else:
        options = arguments if origin in (typing.Union, types.UnionType) else (wanted,)
        for option in options:
            if typing.get_origin(option) is tuple and isinstance(value, (list, tuple)):
                _check(option, value)
        _check_number(options, value)


def _check_number(options: tuple[Any, ...], value: Any) -> None:
    if not {int, float} & set(options):
        return
    if isinstance(value, bool) and bool not in options:
        raise ValueError("a number is needed, not a truth value")
    if isinstance(value, str) and str not in options:
        kind = "number" if float in options else "whole number"
        raise ValueError(f"a {kind} is needed, not text{meant(value.strip())}")
