"""Code of the user's that a job names: imported in one way, and what it raises told in one line."""

from __future__ import annotations

import importlib
import operator
from typing import Any

from apportion.compressors.errors import ConfigurationError, first_line


def imported(name: str, what: str) -> Any:
    """The object that `name`, module:attribute, stands for; `what` says what it is for, such as
    algorithm. Whatever the module does as it is imported (a mistake in its syntax, a licence that
    it misses, an exit) is a ConfigurationError, with its own traceback as the cause."""
    module, _, attribute = name.partition(":")
    try:
        return operator.attrgetter(attribute)(importlib.import_module(module))
    except (Exception, SystemExit) as error:
        raise ConfigurationError(
            f"{what} {name!r} cannot be loaded: {first_line(error)}"
        ) from error
