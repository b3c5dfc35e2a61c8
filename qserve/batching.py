"""``@batch``: calls with one item each become calls of the body with lists.

``Gathering`` is the rule, without clock or waiting; ``_Queue`` waits by it in one event loop. A queue belongs to
the loop of the call, and is kept on the instance without referring to it, so that the instance dies as ever.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections import deque
from collections.abc import AsyncGenerator, Callable, Hashable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import wraps
from numbers import Integral, Real
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

from qserve.context import RequestContext, request_context
from qserve.exceptions import QserveException

T = TypeVar("T")


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
    """Stands for the end of an item's results."""


class _Failure(NamedTuple):
    error: BaseException
    traceback: TracebackType | None


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
        self._results: deque[Any] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def is_open(self) -> bool:
        """Whether somebody waits for it; a cancelled caller shows in its future before its own code runs."""
        return not (self.has_ended or self._has_left or (self._waiter is not None and self._waiter.cancelled()))

    def give(self, value: Any) -> None:
        """Hand a result to the caller, unless it left."""
        if self.is_open():
            self._results.append(value)
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    def end(self, value: Any = _Ended) -> None:
        """Hand over the last result."""
        self.give(value)
        self.has_ended = True

    def fail(self, error: BaseException) -> None:
        """End with an error."""
        self.end(_Failure(error, error.__traceback__))

    def leave(self) -> None:
        """Take no more results."""
        self._has_left = True
        self._results.clear()

    async def result(self) -> Any:
        """The next result, ``_Ended`` after the last."""
        while not self._results:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        value = self._results.popleft()
        if not isinstance(value, _Failure):
            return value
        try:
            # several callers raise this object: each from the body's traceback, not from the others'
            raise value.error.with_traceback(value.traceback)
        finally:
            del value  # the traceback holds this frame: a cycle would keep the instance alive


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
    """One request stays itself; of several, what is true of all, and the latest deadline: none fails another."""
    first = requests[0]
    if len(requests) == 1:
        return first
    deadlines = [one.deadline_ms for one in requests]
    return RequestContext(
        app_name=first.app_name,
        multiplexed_model_id=first.multiplexed_model_id,
        deadline_ms=max(deadlines) if all(deadlines) else 0,
    )


class State(dict[Any, Any]):
    """What decorated methods keep in an instance; copies and pickles of the instance start without it."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return State, ()


def state_of(owner: Any, place: str) -> State:
    """The ``State`` of an object, made when there is none yet; TypeError when it has no ``__dict__`` for it."""
    try:
        state: State = vars(owner).setdefault(place, State())
    except TypeError:
        raise TypeError(f"{type(owner).__name__} needs a `__dict__`: add '__dict__' to its __slots__") from None
    return state


class _Batched:
    """A decorated function: finds the queue of a call, and runs the body for a batch."""

    def __init__(self, func: Callable[..., Any], limits: Limits) -> None:
        self._func = func
        self.limits = limits
        self._signature = inspect.signature(func)
        self._has_self = next(iter(self._signature.parameters), "") == "self"

    def __reduce__(self) -> tuple[Any, ...]:
        return _Batched, (self._func, self.limits)

    async def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        queue, item = self._join(args, kwargs)
        try:
            return await item.result()
        finally:
            queue.leave(item)

    async def stream(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AsyncGenerator[Any, None]:
        queue, item = self._join(args, kwargs)
        try:
            while (value := await item.result()) is not _Ended:
                yield value
        finally:
            queue.leave(item)

    def _join(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[_Queue, _Item]:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        item = _Item(bound.args[: self._has_self], bound.args[self._has_self :], bound.kwargs)
        if self.limits.batch_size_fn is not None and self._size([item]) > self.limits.max_batch_size:
            raise ValueError(f"this item of {self._func.__qualname__} alone is larger than max_batch_size")
        state = state_of(item.owner[0] if item.owner else self, "__qserve_batches__")
        loop = asyncio.get_running_loop()
        queue = state.get((self, loop))
        if queue is None:
            for key in [key for key in list(state) if key[1].is_closed()]:
                state.pop(key, None)
            queue = state[self, loop] = _Queue(self)
        queue.join(item)
        return queue, item

    def _size(self, items: list[_Item]) -> int:
        assert self.limits.batch_size_fn is not None
        values = [(*one.args, *one.kwargs.values()) for one in items]
        return int(self.limits.batch_size_fn([one[0] if len(one) == 1 else one for one in values]))

    def measure(self, items: list[_Item]) -> int:
        """The size of some items; when it cannot be told, those waiting get the error and make room."""
        try:
            return self._size(items)
        except Exception as error:
            for item in items:
                item.fail(error)
            return self.limits.max_batch_size

    async def run(self, batch: list[_Item]) -> None:
        """Run the body; whatever happens in it happens to every item."""
        args = [list(values) for values in zip(*(item.args for item in batch), strict=True)]
        kwargs = {name: [item.kwargs[name] for item in batch] for name in batch[0].kwargs}
        try:
            results = self._func(*batch[0].owner, *args, **kwargs)
            if inspect.isasyncgen(results):
                await self._run_stream(batch, results)
            else:
                for item, value in self._pairs(batch, await results):
                    item.end(value)
        except BaseException as error:
            for item in batch:
                item.fail(error)

    async def _run_stream(self, batch: list[_Item], results: AsyncGenerator[Any, None]) -> None:
        async with aclosing(results):
            async for row in results:
                for item, value in self._pairs(batch, row):
                    if _says_stop(value):
                        item.end()
                    else:
                        item.give(value)
                if not any(map(_Item.is_open, batch)):
                    return
        for item in batch:
            item.end()

    def _pairs(self, batch: list[_Item], results: Any) -> Iterable[tuple[_Item, Any]]:
        expected = (
            f"{self._func.__qualname__} is batched and must give a list of {len(batch)} results, one for each item"
        )
        # arrays and tensors are as good as lists; the likes of str and dict have a length by accident
        if not isinstance(results, list | tuple) and not hasattr(results, "__array__"):
            raise QserveException(f"{expected}, not {type(results).__name__}")
        if len(results) != len(batch):
            raise QserveException(f"{expected}, not {len(results)}")
        return zip(batch, results, strict=True)


def _says_stop(value: Any) -> bool:
    kind = value if isinstance(value, type) else type(value)
    return issubclass(kind, StopIteration | StopAsyncIteration)


def batch(
    _func: Callable[..., Any] | None = None,
    /,
    max_batch_size: int = 10,
    batch_wait_timeout_s: float = 0.0,
    max_concurrent_batches: int = 1,
    batch_size_fn: Callable[[list[Any]], int] | None = None,
) -> Any:
    """Let an ``async def`` function, method or generator take many calls at once.

    A caller passes one item for each parameter and gets its own result; the body gets a list for each parameter
    and returns (or, a generator, yields) a list of results in the same order. In a generator's list
    ``StopIteration`` ends the results of that item. A method is known by its first parameter ``self``.

    A batch runs in a context of its own, with the request context of its model. Batches form where the calls are
    awaited: in the replica's loop. A sync method may return the coroutine, or hand it to that loop with
    ``asyncio.run_coroutine_threadsafe``; with ``asyncio.run`` it makes a loop, and a batch, of its own.

    Parameters:
      max_batch_size, batch_wait_timeout_s, max_concurrent_batches, batch_size_fn: See ``Limits``. The decorated function has its setters ``set_max_batch_size`` and
        ``set_batch_wait_timeout_s``, which hold for all instances of this process.

    Raises:
      TypeError: The function is not ``async def``, or an option has the wrong type.
      ValueError: A number is too small.
    """
    options = Limits(max_batch_size, batch_wait_timeout_s, max_concurrent_batches, batch_size_fn)

    def decorate(func: Callable[..., Any]) -> Any:
        if not callable(func) or not (inspect.iscoroutinefunction(func) or inspect.isasyncgenfunction(func)):
            name = getattr(func, "__qualname__", repr(func))
            raise TypeError(f"@batch needs an `async def` function or method, which {name} is not")
        limits = replace(options)
        batched = _Batched(func, limits)

        @wraps(func)
        async def call(*args: Any, **kwargs: Any) -> Any:
            return await batched.call(args, kwargs)

        @wraps(func)
        async def stream(*args: Any, **kwargs: Any) -> Any:
            async with aclosing(batched.stream(args, kwargs)) as values:
                async for value in values:
                    yield value

        wrapper: Any = stream if inspect.isasyncgenfunction(func) else call
        wrapper.set_max_batch_size = limits.set_max_batch_size
        wrapper.set_batch_wait_timeout_s = limits.set_batch_wait_timeout_s
        return wrapper

    return decorate if _func is None else decorate(_func)
