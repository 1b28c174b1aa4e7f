"""The one place where code that a job names is imported: models, algorithms, latency functions."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from collections.abc import Callable
from typing import Any

from apportion.compressors.errors import CodeError

ALLOW = "APPORTION_ALLOW_CODE"
"""Set to 1 by the operator of a cluster where jobs may name code of their own."""
_SUBMITTED = "APPORTION_SUBMITTED"


def close_gate() -> None:
    """From now on this process, and those that it starts, work for somebody who submitted a job:
    what follows is imported only where the operator has set ALLOW."""
    os.environ[_SUBMITTED] = "1"


def is_refused() -> bool:
    return os.environ.get(_SUBMITTED) == "1" and os.environ.get(ALLOW) != "1"


def load_object(name: str, what: str) -> Any:
    """What `module:attribute` names; `what` it is, as messages call it. Raises CodeError: it is
    refused here, the module cannot be imported, whatever it raises, or lacks the attribute."""
    module, _, attribute = name.partition(":")

    def load() -> Any:
        imported = importlib.import_module(module)
        if not hasattr(imported, attribute):
            raise CodeError(what, name, f"module {module!r} has no {attribute!r}")
        return getattr(imported, attribute)

    return _gated(load, what, name, f"module {module!r}")


def load_entry_point(entry: importlib.metadata.EntryPoint, what: str) -> Any:
    """What an installed package offers under a name. Raises CodeError, as `load_object`."""
    return _gated(entry.load, what, entry.name, f"entry point {entry.value!r}")


def _gated(load: Callable[[], Any], what: str, name: str, source: str) -> Any:
    if is_refused():
        raise CodeError(
            what, name, f"this is code of the job's own; the operator allows that with {ALLOW}=1"
        )
    try:
        return load()
    except CodeError:
        raise
    except (Exception, SystemExit) as error:  # importing runs the module: it may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise CodeError(what, name, f"{source} cannot be imported ({reason})") from error
