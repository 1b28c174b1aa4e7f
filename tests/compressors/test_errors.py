"""Errors keep their text and data on the way between processes."""

from __future__ import annotations

import inspect
import pickle

import pytest

from apportion.compressors import errors
from apportion.compressors.errors import ApportionError

ERRORS = [
    cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, ApportionError)
]


@pytest.mark.parametrize("cls", ERRORS, ids=lambda cls: cls.__name__)
def test_every_error_travels(cls: type[ApportionError]) -> None:
    required = [
        name
        for name, parameter in inspect.signature(cls.__init__).parameters.items()
        if name != "self"
        and parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    numbers = {"asked", "reachable"}
    error = cls(*(0.5 if name in numbers else f"a {name}" for name in required))
    arrived = pickle.loads(pickle.dumps(error))
    assert type(arrived) is cls
    assert str(arrived) == str(error)
    assert vars(arrived) == vars(error)
