"""``@batch``: calls with one item each become calls of the body with lists.

``Gathering`` is the rule, without clock or waiting; ``_Queue`` waits by it in one event loop. A queue belongs
to the loop that called: calls from several loops never share a batch. Its place is the instance (or, for a
plain function, the function), and an idle queue refers to neither, so an instance dies as if it had none.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Hashable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, fields, replace
from functools import wraps
from itertools import chain
from numbers import Integral, Real
from typing import Any, Generic, TypeVar, overload

from qserve.context import RequestContext, request_context
from qserve.exceptions import QserveException

T = TypeVar("T")
_PLACE = "__qserve_batches__"


@dataclass
class Limits:
    """When a batch runs; the setters take effect from the next call on.

    Parameters:
      max_batch_size: The most items of one batch, or the largest ``batch_size_fn`` of one.
      batch_wait_timeout_s: How long the first item waits for others; 0 runs what is there.
      max_concurrent_batches: How many batches of one queue run at the same time.
      batch_size_fn: The size of a list of items, which may not shrink when an item joins; None counts them.
        Of a function with several parameters it sees tuples.
    """

    max_batch_size: int = 10
    batch_wait_timeout_s: float = 0.0
    max_concurrent_batches: int = 1
    batch_size_fn: Callable[[list[Any]], int] | None = None

    def __post_init__(self) -> None:
        self.set_max_batch_size(self.max_batch_size)
        self.set_batch_wait_timeout_s(self.batch_wait_timeout_s)
        self.max_concurrent_batches = _whole_number("max_concurrent_batches", self.max_concurrent_batches)
        if self.batch_size_fn is not None and not callable(self.batch_size_fn):
            raise TypeError(f"batch_size_fn must be a function of a list of items, not {self.batch_size_fn!r}")

    def set_max_batch_size(self, max_batch_size: int) -> None:
        """Change the largest size; TypeError or ValueError unless it is an integer >= 1."""
        self.max_batch_size = _whole_number("max_batch_size", max_batch_size)

    def set_batch_wait_timeout_s(self, batch_wait_timeout_s: float) -> None:
        """Change the wait; TypeError or ValueError unless it is a number >= 0."""
        if not isinstance(batch_wait_timeout_s, Real) or isinstance(batch_wait_timeout_s, bool):
            raise TypeError(f"batch_wait_timeout_s must be a number of seconds >= 0, not {batch_wait_timeout_s!r}")
        if not batch_wait_timeout_s >= 0:
            raise ValueError(f"batch_wait_timeout_s must be a number of seconds >= 0, not {batch_wait_timeout_s!r}")
        self.batch_wait_timeout_s = float(batch_wait_timeout_s)


def _whole_number(option: str, value: Any) -> int:
    is_whole = isinstance(value, Integral) or (isinstance(value, float) and value.is_integer())
    if not is_whole or isinstance(value, bool):
        raise TypeError(f"{option} must be an integer >= 1, not {value!r}")
    if value < 1:
        raise ValueError(f"{option} must be an integer >= 1, not {value!r}")
    return int(value)


class Gathering(Generic[T]):
    """Items that wait, in the order they came; those of different keys never share a batch.

    Parameters:
      measure: The size of some items.
      is_open: Whether an item still wants to run; the others are neither counted nor handed out.
    """

    def __init__(
        self,
        limits: Limits,
        measure: Callable[[list[T]], int] = len,
        is_open: Callable[[T], bool] = lambda item: True,
    ) -> None:
        self._limits = limits
        self._measure = measure
        self._is_open = is_open
        self._groups: dict[Hashable, dict[T, float]] = {}

    def add(self, item: T, key: Hashable, now_s: float) -> None:
        """Let a hashable item wait with the others of its key."""
        self._groups.setdefault(key, {})[item] = now_s

    def discard(self, item: T, key: Hashable) -> bool:
        """Take an item out; False when it does not wait."""
        group = self._groups.get(key, {})
        if group.pop(item, None) is None:
            return False
        if not group:
            del self._groups[key]
        return True

    def ready(self, now_s: float) -> list[T]:
        """Take out a batch that is full or has waited long enough, the oldest first; empty when there is none."""
        for key, group in sorted(self._groups.items(), key=lambda entry: _since(entry[1])):
            is_due = now_s >= _since(group) + self._limits.batch_wait_timeout_s
            if not is_due and self._measure is len and len(group) < self._limits.max_batch_size:
                continue
            batch, is_full = self._cut(group)
            if batch and (is_full or is_due):
                for item in batch:
                    self.discard(item, key)
                return batch
        return []

    def _cut(self, group: Iterable[T]) -> tuple[list[T], bool]:
        batch: list[T] = []
        for item in filter(self._is_open, group):
            size = len(batch) + 1 if self._measure is len else self._measure([*batch, item])
            if batch and size > self._limits.max_batch_size:
                return batch, True
            batch.append(item)
            if size >= self._limits.max_batch_size:
                return batch, True
        return batch, False

    def due_s(self) -> float | None:
        """When the item that came first has waited long enough; None when nothing waits."""
        first = min(map(_since, self._groups.values()), default=None)
        return None if first is None else first + self._limits.batch_wait_timeout_s


def _since(group: dict[T, float]) -> float:
    return next(iter(group.values()))


class _Ended:
    """Stands for the end of an item's results; a class, so that it survives pickling of user code."""


class _Item:
    """One call: what it passed, and the results on their way to it."""

    def __init__(self, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.owner, self.args, self.kwargs = owner, args, kwargs
        self.request = request_context.get()
        self.context = contextvars.copy_context()
        # a copied instance may share its queues with the original: their calls must not meet
        self.key = (id(owner), len(args), tuple(kwargs), self.request.multiplexed_model_id)
        self.has_ended = False
        self._has_left = False
        self._results: deque[tuple[Any, BaseException | None]] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def is_open(self) -> bool:
        """Whether somebody waits for it; a cancelled caller shows in its future before its own code runs."""
        return not (self.has_ended or self._has_left or (self._waiter is not None and self._waiter.cancelled()))

    def give(self, value: Any, error: BaseException | None = None) -> None:
        """Hand a result, or the error that ends it, to the caller."""
        if not self.is_open():
            return
        self.has_ended = error is not None or value is _Ended
        self._results.append((value, error))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def leave(self) -> None:
        """Take no more results."""
        self._has_left = True
        self._results.clear()

    async def result(self) -> Any:
        """The next result, ``_Ended`` after the last."""
        while not self._results:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        value, error = self._results.popleft()
        if error is None:
            return value
        try:
            # several callers raise this object: each from the body's traceback, not from the others'
            raise error
        finally:
            del error  # the traceback holds this frame: a cycle would keep the instance alive


class _Queue:
    """The calls of one batched function in one event loop."""

    def __init__(self, batched: _Batched) -> None:
        self._batched = batched
        self._loop = asyncio.get_running_loop()
        self._gathering = Gathering(
            batched.limits, len if batched.limits.batch_size_fn is None else batched.measure, _Item.is_open
        )
        self._running: dict[asyncio.Task[None], list[_Item]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def join(self, item: _Item) -> None:
        self._gathering.add(item, item.key, self._loop.time())
        self._start_ready()

    def leave(self, item: _Item) -> None:
        """A caller needs no more; the last one that leaves a batch unfinished stops it."""
        item.leave()
        if self._gathering.discard(item, item.key):
            self._start_ready()
        if item.has_ended:
            return
        for task, batch in self._running.items():
            if item in batch and not any(map(_Item.is_open, batch)) and not task.cancelling():
                task.cancel()

    def _start_ready(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while len(self._running) < self._batched.limits.max_concurrent_batches:
            batch = self._gathering.ready(self._loop.time())
            if not batch:
                due_s = self._gathering.due_s()
                if due_s is not None:
                    self._timer = self._loop.call_at(due_s, self._start_ready)
                return
            self._start([item for item in batch if item.is_open()])

    def _start(self, batch: list[_Item]) -> None:
        if not batch:
            return
        context = batch[0].context
        context.run(request_context.set, _shared([item.request for item in batch]))
        task = self._loop.create_task(self._batched.run(batch), context=context)
        self._running[task] = batch
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._start_ready()


def _shared(requests: list[RequestContext]) -> RequestContext:
    """What is true of all the requests; the latest deadline, for one that is late must not fail the others."""
    first, rest = requests[0], requests[1:]
    differing = {
        field.name: field.default
        for field in fields(RequestContext)
        if any(getattr(one, field.name) != getattr(first, field.name) for one in rest)
    }
    if "deadline_ms" in differing:
        deadlines = [one.deadline_ms for one in requests]
        differing["deadline_ms"] = max(deadlines) if all(deadlines) else 0
    return replace(first, **differing)


