"""RayPool: scores on Ray actors, one scorer each. The pool's results are what one process alone
would give, whatever happens to the workers meanwhile."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from apportion.compressors.errors import EvaluationError
from apportion.evaluators.cluster import memory
from apportion.evaluators.cluster.actor_pool import ActorPool, answer
from apportion.evaluators.cluster.flights import Flight, Slot, Tries, Work
from apportion.evaluators.cluster.objects import Packed, pack, unpack
from apportion.evaluators.cluster.shipping import RayShipment
from apportion.evaluators.scoring.pool import (
    DEADLINE,
    Pool,
    Request,
    Score,
    Scorer,
    prefix_order,
    timed,
    width,
)
from apportion.evaluators.scoring.spec import DatabaseElsewhereError, ScoringSpec

log = logging.getLogger(__name__)

_LOST_AT_MOST = 4
"""Workers that may be lost over one candidate: more, and the candidate is what kills them."""
_TO_START = DEADLINE
"""Seconds at least that a worker which is there may take to make its scorer."""
_LOOK_AGAIN = 2.0
"""Seconds between looks at the share of a cluster that a job may have."""
_IMPATIENT = 60.0
"""Seconds without any worker after which the log says what is waited for."""


class RayPool(Pool):
    """Scores on the actors of `actors`, which stays open.

    As many of them are used as the job may have at the time; one that is lost with its node comes
    back as soon as there is room again. A worker that dies, does not make its scorer in time, or
    scores one candidate for more than `deadline` seconds, is replaced and its work given out again;
    one that is killed for want of memory after a pause, which is longer each time. `events` counts
    these. `evaluate` raises EvaluationError for a candidate that fails or hangs twice, loses four
    workers, or twelve for want of memory."""

    def __init__(
        self, make_scorer: Callable[[], Scorer], actors: ActorPool, deadline: float = DEADLINE
    ) -> None:
        super().__init__()
        self._deadline, self._actors, self._ray = deadline, actors, actors.ray
        self._to_start = max(deadline, _TO_START)
        self._slots: list[Slot] = []
        self._resting: list[tuple[float, int]] = []
        """For workers that were killed for want of memory: when they are replaced, and how many of
        them in a row."""
        self._make = make_scorer
        self._made = self._put(make_scorer)
        self._follow_share()

    def evaluate(self, requests: Sequence[Request]) -> Iterator[Score]:
        work = Work(requests, deque(prefix_order(requests)))
        told = 0
        try:
            while told < len(requests):
                self._follow_share(work)
                self._give_out(work)
                self._wait(work)
                while told in work.done:
                    yield work.done.pop(told)
                    told += 1
        finally:
            for (
                reference,
                flight,
            ) in work.flying.items():  # the caller stopped early, or a candidate failed for good
                self._ray.cancel(reference)
                flight.slot.finished = False

    @property
    def there(self) -> int:
        """Workers that have begun to take work."""
        return sum(slot.starting is None for slot in self._slots)

    def close(self) -> None:
        for slot in self._slots:
            (
                self._actors.release
                if slot.starting is None and slot.finished
                else self._actors.stop
            )(slot.actor)
        self._slots = []

    def _follow_share(self, work: Work | None = None) -> None:
        """As many workers as the job may have now. Those that are one too many are idle ones, or
        finish what they have."""
        allowed = min(self._actors.count, self._actors.share.count())
        busy = {id(flight.slot) for flight in work.flying.values()} if work else set()
        for slot in [slot for slot in reversed(self._slots) if id(slot) not in busy][
            : max(0, len(self._slots) - allowed)
        ]:
            self._actors.stop(slot.actor)
            self._slots.remove(slot)
        self._allowed = allowed
        now = time.monotonic()
        rested = [killed for end, killed in self._resting if end <= now]
        self._resting = [(end, killed) for end, killed in self._resting if end > now]
        for _ in range(allowed - len(self._slots) - len(self._resting)):
            self._slots.append(self._new(killed=rested.pop() if rested else 0))

    def _put(self, make_scorer: Callable[[], Scorer]) -> Any:
        """Once per node, whatever the number of workers: they read its tensors where they lie."""
        return self._ray.put(pack(make_scorer))

    def _new(self, lost: int = 0, killed: int = 0) -> Slot:
        actor, there = self._actors.acquire()
        asked = actor.apply.remote(answer)
        return Slot(actor, asked, there, time.monotonic(), lost=lost, killed=killed)

    def _replace(self, slot: Slot, killed: bool = False) -> None:
        # It may be out of reach alone, and keep its place in the cluster.
        self._actors.stop(slot.actor)
        self._slots.remove(slot)
        if killed:
            self._resting.append((time.monotonic() + memory.pause(slot.killed), slot.killed))
        else:
            self._slots.append(self._new(slot.lost, slot.killed))

    def _give_out(self, work: Work) -> None:
        """To idle workers; and while there is plenty, each has the next one waiting when it
        finishes the first."""
        there = [slot for slot in self._slots if slot.starting is None][: self._allowed]
        load = dict.fromkeys(map(id, there), 0)
        for flight in work.flying.values():
            load[id(flight.slot)] += 1
        for most in (1, 2):
            for slot in there:
                if (
                    work.waiting
                    and load[id(slot)] < most
                    and (most == 1 or len(work.waiting) > len(self._slots))
                ):
                    if not load[id(slot)]:
                        slot.since = time.monotonic()
                    numbers = self._take(work, slot.width)
                    reference = slot.actor.apply.remote(_score, [work.requests[n] for n in numbers])
                    work.flying[reference] = Flight(slot, slot.actor, numbers)
                    load[id(slot)] += 1

    def _take(self, work: Work, width: int) -> list[int]:
        """The next requests for one worker: its fair share of what is left, and one alone that
        failed before."""
        share = min(width, -(-len(work.waiting) // len(self._slots)))
        numbers = [work.waiting.popleft()]
        while len(numbers) < share and not {numbers[0], work.waiting[0]} & work.tries.keys():
            numbers.append(work.waiting.popleft())
        return numbers

    def _wait(self, work: Work) -> None:
        """Until something is finished, has failed, or is overdue."""
        starting = {slot.starting: slot for slot in self._slots if slot.starting is not None}
        due = [flight.slot.since + self._deadline for flight in work.flying.values()]
        due += [slot.since + self._to_start for slot in starting.values() if slot.there]
        due += [end for end, _ in self._resting]
        patience = min(due) - time.monotonic() if due else _IMPATIENT
        if self._actors.share.shared:
            patience = min(patience, _LOOK_AGAIN)
        if not (work.flying or starting):  # the job has no share at present, or its workers rest
            time.sleep(min(_LOOK_AGAIN, max(0.0, patience)))
            return
        ready, _ = self._ray.wait(
            [*work.flying, *starting], num_returns=1, timeout=max(0.0, patience)
        )
        if not ready:
            if patience == _LOOK_AGAIN:
                return
            if due:
                self._give_up_overdue(work)
            else:
                log.warning(
                    "no worker has started for %g seconds: the cluster has no room, or starting "
                    "takes long",
                    _IMPATIENT,
                )
            return
        # What else is ready by now is taken in the same turn.
        ready, _ = self._ray.wait(
            [*work.flying, *starting], num_returns=len(work.flying) + len(starting), timeout=0
        )
        for reference in ready:
            if reference in starting:
                self._started(starting[reference])
            elif reference in work.flying:  # not given up with another one of its worker's
                self._finished(work, reference)

    def _started(self, slot: Slot) -> None:
        errors = self._ray.exceptions
        try:
            found = self._ray.get(slot.starting)
        except errors.RayTaskError as error:
            if isinstance(error.cause, DatabaseElsewhereError) and isinstance(
                self._make, ScoringSpec
            ):
                self._ship(slot)
                return
            # No other worker could make the scorer either.
            raise EvaluationError((), str(error)) from error
        except errors.RayError as error:
            killed = self._lost(slot, error, "while it started")
            self._start_again(slot, str(error), killed)
            return
        if slot.place is None:
            slot.place, slot.there, slot.since = found, True, time.monotonic()
            slot.starting = slot.actor.apply.remote(_prepare, self._made)
            return
        slot.width, slot.starting, slot.lost = found, None, 0

    def _start_again(self, slot: Slot, why: str, killed: bool = False) -> None:
        if killed and slot.killed == memory.AT_MOST:
            raise EvaluationError((), memory.ADVICE.format(slot.killed))
        slot.lost += not killed
        if slot.lost == _LOST_AT_MOST:
            raise EvaluationError((), why)
        self._replace(slot, killed)

    def _lost(self, slot: Slot, error: Exception, when: str = "") -> bool:
        """Whether it was killed for want of memory."""
        if memory.was_killed(self._ray, error, slot.place):
            slot.killed += 1
            self.events["killed"] += 1
            log.warning(
                "a worker was killed for want of memory %s; it is replaced after %g s",
                when,
                memory.pause(slot.killed),
            )
            return True
        self._event("lost", f"a worker was lost {when}: {_first_line(error)}")
        return False

    def _ship(self, slot: Slot) -> None:
        """Give the worker's node, and all that come after it, the database along."""
        assert isinstance(self._make, ScoringSpec)
        if self._make.shipment is None:
            log.warning("%s is not seen by all nodes: it is sent to them", self._make.path)
            self._make = replace(
                self._make, shipment=RayShipment.of(self._make.path, self._ray.put)
            )
            self._made = self._put(self._make)
        slot.since = time.monotonic()
        slot.starting = slot.actor.apply.remote(_prepare, self._made)

    def _finished(self, work: Work, reference: Any) -> None:
        errors = self._ray.exceptions
        flight = work.flying[reference]
        try:
            work.done.update(
                zip(
                    flight.numbers,
                    (Score(*score) for score in self._ray.get(reference)),
                    strict=True,
                )
            )
        except errors.RayTaskError as error:
            del work.flying[reference]
            self._again(work, flight.numbers, str(error), Tries(failed=1))
        except errors.RayError as error:
            killed = self._lost(flight.slot, error)
            self._give_up(work, flight, str(error), Tries(lost=not killed, killed=killed))
        else:
            del work.flying[reference]
            flight.slot.killed = 0
        flight.slot.since = time.monotonic()

    def _give_up_overdue(self, work: Work) -> None:
        now = time.monotonic()
        limit = now - self._deadline
        for slot in list(self._slots):
            if slot.starting is not None and slot.there and slot.since + self._to_start <= now:
                self._event("hung", "a worker hung while it started")
                self._start_again(slot, f"a worker had not started after {self._to_start:g} s")
                continue
            flight = next((flight for flight in work.flying.values() if flight.slot is slot), None)
            if flight and slot.since <= limit:
                self._event("hung", f"a worker hung for more than {self._deadline:g} seconds")
                self._give_up(
                    work,
                    flight,
                    f"its worker still scored it after {self._deadline:g} seconds",
                    Tries(failed=1),
                )

    def _give_up(self, work: Work, flight: Flight, why: str, more: Tries) -> None:
        """Replace a worker. Of what it was given the oldest is to blame, the rest had to wait."""
        mine = [
            reference for reference, other in work.flying.items() if other.actor is flight.actor
        ]
        self._replace(flight.slot, killed=more.killed > 0)
        oldest, *others = (work.flying.pop(reference) for reference in mine)
        for other in others:
            work.waiting.extendleft(reversed(other.numbers))
        self._again(work, oldest.numbers, why, more)

    def _again(self, work: Work, numbers: list[int], why: str, more: Tries) -> None:
        """Give requests out once more, one by one and before all others, or give up."""
        for number in numbers:
            tries = work.tries.setdefault(number, Tries())
            tries.add(more)
            if len(numbers) > 1:
                continue
            if tries.killed >= memory.AT_MOST:
                why = memory.ADVICE.format(tries.killed)
            elif tries.failed < 2 and tries.lost < _LOST_AT_MOST:
                continue
            raise EvaluationError(work.requests[number][0], why)
        work.waiting.extendleft(reversed(numbers))

    def _event(self, what: str, text: str) -> None:
        self.events[what] += 1
        log.warning("%s; it is replaced, and its work given out again", text)


def _prepare(state: dict[str, Any], packed: Packed) -> int:
    """Make the worker's scorer; returns how many requests it takes at once."""
    state.clear()  # what an earlier pool left goes first: two models may not fit a GPU
    state["scorer"] = unpack(packed)()
    return width(state["scorer"])


def _score(state: dict[str, Any], requests: list[Request]) -> list[tuple[float, float]]:
    return [(score.fitness, score.seconds) for score in timed(state["scorer"], requests)]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
