"""Layers compressed on Ray workers: whole layers side by side, and a layer that outweighs the
others a few rows a worker."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from apportion.compressors.elimination.dispatch import Limits
from apportion.compressors.errors import WorkersError, first_line
from apportion.compressors.progress import Progress
from apportion.compressors.threads import device_for
from apportion.db.layers.executor import Encoded, LayerTask
from apportion.evaluators.cluster import memory
from apportion.evaluators.cluster.actor_pool import ActorPool, answer
from apportion.evaluators.scoring.pool import DEADLINE

log = logging.getLogger(__name__)

_LOST_AT_MOST = 3
_SLOWEST = 1e9
"""Work (see LayerTask.work) of a second at least: a hundredth of what a core does."""
_LONGEST = 3600.0
"""Seconds of one look at the actors."""


class RayExecutor:
    """The actors of `actors`, which stays open. On CPUs the result is the same to the bit as in one
    process. An actor that has not finished what it was given after `deadline` seconds, and a whole
    layer after a hundred times what it should take, counts as hung: it is replaced, and its work
    given out again."""

    def __init__(self, actors: ActorPool, deadline: float = DEADLINE) -> None:
        self._actors, self._ray, self._deadline = actors, actors.ray, deadline

    def run(
        self, tasks: Sequence[LayerTask], progress: Progress
    ) -> Iterator[tuple[LayerTask, Encoded]]:
        total, count = sum(task.work for task in tasks), self._actors.count
        # A GPU takes all rows of a layer at once.
        shared = [
            task
            for task in tasks
            if task.work * count > total and count > 1 and not self._actors.gpus
        ]
        whole = [task for task in tasks if task not in shared]
        for number, encoded in self._as_finished(
            [(_whole, (task, self._actors.gpus)) for task in whole],
            [task.work * len(task.levels) / _SLOWEST for task in whole],
        ):
            yield whole[number], encoded
        for task in shared:
            yield task, task.run(progress, self._map)

    def close(self) -> None:
        pass

    def apply(
        self, function: Callable[..., Any], shared: Any, calls: Sequence[Any]
    ) -> Iterator[tuple[int, Any]]:
        """function(shared, call) for each of `calls`, as they are finished: its number and result.
        `shared` is sent once. Tensors may come in memory that cannot be written to."""
        sent = self._ray.put(shared)
        yield from self._as_finished(
            [(_call, (function, sent, call)) for call in calls], [_LONGEST] * len(calls)
        )

    def _map(self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """Tasks of one layer; results in order. What several tasks share (H^-1) is sent once."""
        sent: dict[int, Any] = {}
        done: dict[int, Any] = {}
        told = 0
        calls = [
            (_part, (self._actors.threads, function, *(self._sent(a, sent) for a in arguments)))
            for arguments in tasks
        ]
        for number, result in self._as_finished(calls, [0.0] * len(calls)):
            done[number] = result
            while told in done:
                yield done.pop(told)
                told += 1

    def _sent(self, argument: Any, sent: dict[int, Any]) -> Any:
        if not isinstance(argument, Tensor) or argument.numel() < 1 << 12:
            return (
                argument.clone() if isinstance(argument, Tensor) else argument
            )  # a view would take all it views along
        if id(argument) not in sent:
            sent[id(argument)] = (
                self._ray.put(argument.clone()),
                argument,
            )  # the argument lives on, so its id stays its own
        return sent[id(argument)][0]

    def _as_finished(
        self,
        calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]],
        allowances: Sequence[float],
    ) -> Iterator[tuple[int, Any]]:
        """The number of each call and its result. One whose actor is lost, or has not finished
        within the deadline and its allowance (seconds), is made again, up to three times. Raises
        WorkersError."""
        errors = self._ray.exceptions
        waiting, lost = deque(range(len(calls))), Counter[int | None]()
        killed = Counter[int | None]()  # for want of memory
        resting: list[float] = []  # when workers take the place of those
        places: dict[Any, memory.Place] = {}
        there: list[Any] = []
        starting: dict[Any, Any] = {}
        flying: dict[Any, tuple[int, Any]] = {}
        due: dict[Any, float] = {}  # by request
        done: int | None

        def again(number: int | None, actor: Any, why: str, error: Exception | None = None) -> None:
            self._actors.stop(actor)
            if error is not None and memory.was_killed(self._ray, error, places.get(actor)):
                killed[number] += 1
                pause = memory.pause(killed[number])
                resting.append(time.monotonic() + pause)
                why = f"a worker was killed for want of memory, and rests for {pause:g} s"
            else:
                lost[number] += 1
            log.warning("%s; it is replaced, and its work given out again", why)
            if killed[number] >= memory.AT_MOST:
                raise WorkersError(f"compressing on Ray: {memory.ADVICE.format(killed[number])}")
            if lost[number] > _LOST_AT_MOST:
                raise WorkersError(f"compressing on Ray: {why}, {lost[number]} times")
            if number is not None:
                waiting.appendleft(number)

        try:
            while waiting or flying:
                allowed = max(1, self._actors.share.count())
                while there and len(there) + len(starting) + len(flying) > allowed:
                    self._actors.stop(there.pop())
                resting = [end for end in resting if end > time.monotonic()]
                while len(there) + len(starting) + len(flying) + len(resting) < min(
                    allowed, len(waiting) + len(flying)
                ):
                    actor, was_there = self._actors.acquire()
                    reference = actor.apply.remote(answer)
                    starting[reference] = actor
                    due[reference] = time.monotonic() + self._deadline if was_there else math.inf
                while there and waiting:
                    actor = there.pop()
                    number = waiting.popleft()
                    function, arguments = calls[number]
                    reference = actor.apply.remote(function, *arguments)
                    flying[reference] = number, actor
                    due[reference] = time.monotonic() + self._deadline + allowances[number]
                left = max(0.0, min([*due.values(), *resting]) - time.monotonic())
                if not (flying or starting):
                    time.sleep(left)
                    continue
                found, _ = self._ray.wait(
                    [*flying, *starting], num_returns=1, timeout=min(left, _LONGEST)
                )
                if not found:
                    for late in [r for r, at in due.items() if at <= time.monotonic()]:
                        done, actor = (
                            flying.pop(late) if late in flying else (None, starting.pop(late))
                        )
                        del due[late]
                        again(done, actor, "a worker hung")
                    continue
                (ready,) = found
                del due[ready]
                done, actor = flying.pop(ready) if ready in flying else (None, starting.pop(ready))
                try:
                    result = self._ray.get(ready)
                except errors.RayTaskError as error:
                    self._actors.stop(actor)
                    raise error.as_instanceof_cause() from error
                except errors.RayError as error:
                    again(done, actor, f"a worker was lost: {first_line(error)}", error)
                    continue
                there.append(actor)
                if done is None:
                    places[actor] = result
                else:
                    yield done, result
        finally:
            for actor in there:
                self._actors.release(actor)
            for actor in [*starting.values(), *(actor for _, actor in flying.values())]:
                self._actors.stop(actor)


def _whole(_state: dict[str, Any], task: LayerTask, gpus: float) -> Encoded:
    # Tensors out of the object store cannot be written to.
    return replace(task, weight=task.weight.clone(), hessian=task.hessian.clone()).run(
        device=device_for(gpus)
    )


def _call(_state: dict[str, Any], function: Callable[..., Any], shared: Any, call: Any) -> Any:
    return function(shared, call)


def _part(
    _state: dict[str, Any], threads: int, function: Callable[..., Any], *arguments: Any
) -> Any:
    return function(*(_own(argument, threads) for argument in arguments))


def _own(argument: Any, threads: int) -> Any:
    if isinstance(argument, Tensor):
        return argument.clone()
    return replace(argument, threads=threads) if isinstance(argument, Limits) else argument
