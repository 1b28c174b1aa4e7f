"""apportion: how much to compress every layer of a neural network, within hard budgets.

The four rooms, `apportion.compressors <- db <- evaluators <- search`, lie at the top of the
repository; this package holds links to them, so that what is imported has one name of its own. What
a program needs first stands here too (docs/API.md), and is imported when it is asked for."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apportion.db.runs.store import RunStore
    from apportion.evaluators.models.resizing import resize
    from apportion.evaluators.tasks.functions import FunctionTask as Task
    from apportion.search.export.exporting import export
    from apportion.search.report.league import league
    from apportion.search.runs.given import prepare
    from apportion.search.runs.narrowing import narrow
    from apportion.search.runs.pipeline import run_search

__version__ = version("apportion")
__all__ = [
    "RunStore",
    "Task",
    "__version__",
    "export",
    "league",
    "narrow",
    "prepare",
    "resize",
    "run_search",
]

_PLACES = {
    "RunStore": ("db.runs.store", "RunStore"),
    "Task": ("evaluators.tasks.functions", "FunctionTask"),
    "export": ("search.export.exporting", "export"),
    "league": ("search.report.league", "league"),
    "narrow": ("search.runs.narrowing", "narrow"),
    "prepare": ("search.runs.given", "prepare"),
    "resize": ("evaluators.models.resizing", "resize"),
    "run_search": ("search.runs.pipeline", "run_search"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'apportion' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(import_module(f"apportion.{module}"), attribute)
