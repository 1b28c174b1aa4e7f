"""An algorithm, not believed: what it asks is checked before it is scored, what it raises bears its
name."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, TypeVar

from apportion.compressors.errors import AlgorithmError, ApportionError, SpaceError, first_line
from apportion.search.algorithms.base import Algorithm, Trial
from apportion.search.space.space import Candidate, SearchSpace

_T = TypeVar("_T")


class Checked:
    """`algorithm`, called `name` by its job, as the loop drives it. Every method raises
    AlgorithmError where the algorithm raises anything but an error of ours."""

    def __init__(self, algorithm: Algorithm, name: str, space: SearchSpace) -> None:
        self._algorithm, self._name, self._space = algorithm, name, space

    def ask(self) -> list[Trial]:
        """The next trials: whole numbers, one per decision and in its range, that meet every
        budget. Raises AlgorithmError for anything else."""
        asked = self._call("ask", self._algorithm.ask)
        if not isinstance(asked, (list, tuple)):
            raise AlgorithmError(self._name, f"ask() gave {_short(asked)}, not a list of trials")
        return [self._trial(trial) for trial in asked]

    def tell(self, trials: Sequence[Trial]) -> None:
        self._call("tell", lambda: self._algorithm.tell(trials))

    def notes(self) -> dict[str, Any]:
        """What it has to say of its course. Raises AlgorithmError for what is no JSON object."""
        notes = self._call("notes", self._algorithm.notes)
        try:
            if not isinstance(notes, dict):
                raise TypeError(f"an object is needed, not {_short(notes)}")
            json.dumps(notes)
        except (TypeError, ValueError, RecursionError) as error:
            raise AlgorithmError(
                self._name, f"notes() gave what is no JSON: {first_line(error)}"
            ) from error
        return notes

    def _call(self, method: str, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except ApportionError:
            raise
        except (Exception, SystemExit) as error:
            raise AlgorithmError(self._name, f"{method}() raised {first_line(error)}") from error

    def _trial(self, trial: object) -> Trial:
        if not isinstance(trial, Trial):
            raise AlgorithmError(self._name, f"asked for {_short(trial)}, which is no trial")
        fidelity, bound = trial.fidelity, trial.bound
        if not (isinstance(fidelity, Real) and 0 < fidelity <= 1):
            raise AlgorithmError(
                self._name,
                f"asked for a trial on the share {_short(fidelity)} of the calibration data; valid "
                "are shares above 0, up to 1",
            )
        if not isinstance(bound, Real) or math.isnan(bound):
            raise AlgorithmError(self._name, f"asked for a trial with the bound {_short(bound)}")
        candidate = self._candidate(trial.candidate)
        return replace(
            trial, candidate=candidate, fidelity=float(fidelity), bound=float(bound), fitness=None
        )

    def _candidate(self, asked: object) -> Candidate:
        try:
            candidate = self._space.validate([operator.index(i) for i in asked])  # type: ignore[attr-defined]
        except (TypeError, SpaceError) as error:
            reason = str(error) if isinstance(error, SpaceError) else "whole numbers are needed"
            raise AlgorithmError(
                self._name, f"asked for the candidate {_short(asked)}, which is not valid: {reason}"
            ) from error
        if not self._space.feasible(candidate):
            raise AlgorithmError(
                self._name,
                f"asked for the candidate {_short(candidate)}, which is over budget: "
                f"{self._excess(candidate)}; every candidate must meet all budgets "
                "(apportion.search.space.repair brings one within them)",
            )
        return candidate

    def _excess(self, candidate: Candidate) -> str:
        """The budgets that it misses, as shares of the dense model."""
        space, found = self._space, []
        over = space.loads(candidate) > space.limits
        for metric, missed in zip(space.budgets, over, strict=True):
            if missed:
                dense = space.dense[metric] or 1.0
                share = space.total(metric, candidate) / dense
                found.append(f"{metric} {share:.6g} (at most {space.budgets[metric] / dense:.6g})")
        return ", ".join(found)


def _short(value: object, most: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."
