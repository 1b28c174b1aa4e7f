"""The error tree. Every error that a user can cause is an `ApportionError` whose text says what is
wrong, where, and what would be valid; the data it was made of stays readable as attributes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

_MOST_NAMES = 40
"""That a message lists."""


class ApportionError(Exception):
    """Root of all errors that apportion raises on purpose. `str(error)` is fit to be shown to a
    user as it is."""

    def __reduce__(self) -> tuple[Any, ...]:
        """As it is, text and data: an exception's own way would call the class with the text alone.
        Errors of workers travel."""
        return _restored, (type(self), self.args, self.__dict__)


def _restored(
    cls: type[ApportionError], args: tuple[Any, ...], data: dict[str, Any]
) -> ApportionError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(data)
    return error


class UnknownNameError(ApportionError):
    """A name that no registry holds. Carries `kind`, `name`, `valid` and the `nearest` valid name
    (or None)."""

    def __init__(self, kind: str, name: str, valid: Iterable[str], where: str = "") -> None:
        self.kind, self.name, self.valid = kind, name, sorted(valid)
        self.nearest = nearest(name, self.valid)
        hint = f"; did you mean {self.nearest!r}?" if self.nearest else ""
        place = f"{where}: " if where else ""
        names = _some(self.valid, _MOST_NAMES)
        super().__init__(f"{place}unknown {kind} {name!r:.80}{hint} (valid: {names})")


class LevelError(ApportionError):
    """Text that is no level, or a level that a compressor cannot make. Carries `text`."""

    def __init__(self, text: str, reason: str) -> None:
        self.text = text
        super().__init__(f"level {text!r}: {reason}")


class ModelError(ApportionError):
    """A model that cannot be loaded, traced or compressed."""


class WeightsError(ModelError):
    """Weights that do not fit their model. Carries `path` and the lists `missing`, `unexpected`,
    `mismatched`."""

    def __init__(
        self,
        path: str,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        mismatched: Sequence[str] = (),
    ) -> None:
        self.path, self.missing, self.unexpected, self.mismatched = (
            path,
            list(missing),
            list(unexpected),
            list(mismatched),
        )
        parts = [
            f"{label}: {_some(keys)}"
            for label, keys in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", mismatched),
            )
            if keys
        ]
        super().__init__(f"{path}: the weights do not fit the model ({'; '.join(parts)})")


class DataError(ApportionError):
    """Data that cannot be read, have the wrong shape or do not fit the model. Carries `source`."""

    def __init__(self, source: str, reason: str) -> None:
        self.source = source
        super().__init__(f"{shown(source)}: {reason}")


class LayerError(ApportionError):
    """A layer whose weights or Hessian cannot be compressed (NaN, infinite). Carries `layer`."""

    def __init__(self, layer: str, reason: str) -> None:
        self.layer = layer
        super().__init__(f"layer {layer!r}: {reason}")


class DatabaseError(ApportionError):
    """A layer database that cannot be used. Carries `path`."""

    def __init__(self, path: object, reason: str) -> None:
        self.path = str(path)
        super().__init__(f"layer database {shown(path)}: {reason}")


class DatabaseUnfinishedError(DatabaseError):
    """The database's build has not finished; building it again goes on where it stopped."""


class DatabaseBusyError(DatabaseError):
    """Another process is building the database."""


class DatabaseMismatchError(DatabaseError):
    """The database belongs to another model, other calibration data or other options."""


class DatabaseCorruptError(DatabaseError):
    """A file of the database is missing, truncated or altered."""


class BudgetError(ApportionError):
    """A budget that makes no sense. Carries `metric` and `reason`."""

    def __init__(self, metric: str, reason: str) -> None:
        self.metric, self.reason = metric, reason
        super().__init__(f"budget {metric!r}: {reason}")


class InfeasibleBudgetError(BudgetError):
    """No profile meets the budget. Carries `metric`, `bound` and `least` (ratios of the dense
    model) and `layer`, the one that holds it back (None when the budgets can be met one by one but
    not together)."""

    def __init__(
        self, metric: str, bound: float, least: float, layer: str | None, reason: str
    ) -> None:
        self.bound, self.least, self.layer = bound, least, layer
        super().__init__(metric, reason)


class SpaceError(ApportionError):
    """A search space whose parts do not fit together, or a candidate that is not in it."""


def shown(path: object, most: int = 200) -> str:
    """A path as messages name it: without its middle where it is longer than a screen's line."""
    text = str(path)
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"


class JobError(ApportionError):
    """A job file that cannot be read. Carries `path` and `field` (dotted; empty for the file as a
    whole)."""

    def __init__(self, path: object, field: str, reason: str) -> None:
        self.path, self.field = str(path), field
        super().__init__(
            f"{shown(path)}: {field}: {reason}" if field else f"{shown(path)}: {reason}"
        )


class DocumentError(ApportionError):
    """Text that cannot be read as what it should be: its encoding, size, syntax or nesting. Whoever
    knows the file's name and purpose adds them."""


class ProfileError(ApportionError):
    """A profile that does not fit the database or file format. Carries `source`."""

    def __init__(self, source: object, reason: str) -> None:
        self.source = str(source)
        super().__init__(f"profile {shown(source)}: {reason}")


class StoreError(ApportionError):
    """A run store that cannot be used, or a run that it does not hold. Carries `url`, without its
    password."""

    def __init__(self, url: object, reason: str) -> None:
        from apportion.compressors.secrets import masked  # SQLAlchemy takes time to import

        self.url = masked(str(url))
        super().__init__(f"run store {self.url}: {reason}")


class OutputError(ApportionError):
    """A folder or file that cannot be written. Carries `path`."""

    def __init__(self, path: object, reason: str) -> None:
        self.path = str(path)
        super().__init__(f"cannot write {shown(path)}: {reason}")


class EvaluationError(ApportionError):
    """A candidate failed on two workers, or (the empty candidate) no worker can be made. Carries
    `candidate` and the last `traceback`."""

    def __init__(self, candidate: Sequence[int], traceback: str) -> None:
        self.candidate, self.traceback = tuple(candidate), traceback
        what = (
            f"candidate {list(candidate)} failed again"
            if candidate
            else "the workers cannot be started"
        )
        super().__init__(f"{what}; the last failure was:\n{traceback}")


class AlgorithmError(ApportionError):
    """An algorithm that raised, or asked for what it may not ask for. Carries `algorithm`."""

    def __init__(self, algorithm: str, reason: str) -> None:
        self.algorithm = algorithm
        super().__init__(f"algorithm {algorithm!r}: {reason}")


class WorkersError(ApportionError):
    """Workers that are lost or hang over and over."""


class TrainingError(ApportionError):
    """Training that several processes shared, and that failed on them."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"training on several workers failed; the last failure was:\n{reason}")


class ConfigurationError(ApportionError):
    """Options that contradict each other or the machine they run on."""


class CodeError(ConfigurationError):
    """Code that a job names and that cannot be loaded, or may not be. Carries `what` it is and its
    `name`."""

    def __init__(self, what: str, name: str, reason: str) -> None:
        self.what, self.name = what, name
        super().__init__(f"{what} {name!r}: {reason}")


def first_line(error: BaseException) -> str:
    """Another's error as part of one of our lines: its kind, and the first line of what it says."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name closest to `name`, or None when nothing is close."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return close[0] if close else None


def _some(keys: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(keys[:most])
    return f"{shown} and {len(keys) - most} more" if len(keys) > most else shown
