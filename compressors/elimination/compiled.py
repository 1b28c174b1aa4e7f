"""Loops over rows, compiled and kept on disk. Importing this needs numba."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from numba import njit


def compiled(*below: ModuleType) -> Callable[[Callable[..., Any]], Any]:
    """njit(parallel=True), kept on disk until numba, the function's own file or one of the modules
    `below`, which hold what it calls, changes. numba itself looks at the function's own file alone,
    and would go on with the old code of the others."""
    sources = hashlib.sha256(
        b"".join(Path(str(module.__file__)).read_bytes() for module in below)
    ).hexdigest()

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = njit(parallel=True, cache=True)(function)
        try:  # numba has no public way to say what else a kept function depends on
            index: Any = dispatcher._cache._cache_file  # type: ignore[attr-defined]
            index._source_stamp = (index._source_stamp, sources)
        except AttributeError:  # nor promises this one: what is not kept is never old
            return njit(parallel=True)(function)
        return dispatcher

    return decorate
