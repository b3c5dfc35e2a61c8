"""``@batch``: calls with one item each become calls of the body with lists.

``Batcher`` decides when a batch is ready, without a clock or waiting. ``_Queue`` waits for that in one event loop: a
queue belongs to the loop of the call, and is kept on the instance without referring to it, so that the instance can
be freed as usual.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Hashable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial, wraps
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar, overload

from qserve.base.carried import common
from qserve.base.context import RequestContext, Scope, request_context, scope_here
from qserve.base.entry import own_context
from qserve.base.forks import end_if_child
from qserve.define.decorators import Failure, check_async, has_self, state_of, value_of
from qserve.exceptions import QserveException
from qserve.metrics.measures import BatchMetrics
from qserve.tracing.switch import switch

T = TypeVar("T")
R = TypeVar("R")
Owner = TypeVar("Owner")
Owner_contra = TypeVar("Owner_contra", contravariant=True)
Item_contra = TypeVar("Item_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)
_Results = Coroutine[Any, Any, Sequence[R]]
_Rows = AsyncIterator[Sequence[R]]
Measure = Callable[[list[T]], int]


@dataclass
class Limits:
    """The limits of a batch. The setters take effect with the next call.

    Parameters:
      max_batch_size: The largest size of a batch, in items or as ``batch_size_fn`` measures it.
      batch_wait_timeout_s: How long the first item waits for others; 0 runs the items that are there.
      max_concurrent_batches: How many batches of one queue run at the same time.
      batch_size_fn: Returns the size of a list of items, which must not shrink when an item joins; None counts them.
        For a function with several parameters the items are tuples.
    """

    max_batch_size: int = 10
    batch_wait_timeout_s: float = 0.0
    max_concurrent_batches: int = 1
    batch_size_fn: Measure[Any] | None = None

    def __post_init__(self) -> None:
        self.set_max_batch_size(self.max_batch_size)
        self.set_batch_wait_timeout_s(self.batch_wait_timeout_s)
        self.max_concurrent_batches = _whole_number("max_concurrent_batches", self.max_concurrent_batches)
        if self.batch_size_fn is not None and not callable(self.batch_size_fn):
            raise TypeError(f"batch_size_fn must be a function of a list of items, not {self.batch_size_fn!r}")

    def set_max_batch_size(self, max_batch_size: int) -> None:
        """Change the largest size; raises TypeError or ValueError unless it is an integer >= 1."""
        self.max_batch_size = _whole_number("max_batch_size", max_batch_size)

    def set_batch_wait_timeout_s(self, batch_wait_timeout_s: float) -> None:
        """Change the wait; raises TypeError or ValueError unless it is a number >= 0."""
        is_number = isinstance(batch_wait_timeout_s, Real) and not isinstance(batch_wait_timeout_s, bool)
        if not is_number or not batch_wait_timeout_s >= 0:
            error = ValueError if is_number else TypeError
            raise error(f"batch_wait_timeout_s must be a number of seconds >= 0, not {batch_wait_timeout_s!r}")
        self.batch_wait_timeout_s = float(batch_wait_timeout_s)


def _whole_number(option: str, value: Any) -> int:
    is_whole = isinstance(value, Integral) or (isinstance(value, float) and value.is_integer())
    if not is_whole or isinstance(value, bool) or value < 1:
        error = ValueError if is_whole and not isinstance(value, bool) else TypeError
        raise error(f"{option} must be an integer >= 1, not {value!r}")
    return int(value)


class Batcher(Generic[T]):
    """Waiting items, in order of arrival. Items with different keys never share a batch.

    Parameters:
      measure: Returns the size of some items.
      is_open: Returns whether an item still has to run; the others are neither counted nor returned.
    """

    def __init__(self, limits: Limits, measure: Measure[T] = len, is_open: Callable[[T], bool] = lambda item: True):
        self._limits, self._measure, self._is_open = limits, measure, is_open
        self._groups: dict[Hashable, dict[T, float]] = {}

    def add(self, item: T, key: Hashable, now_s: float) -> None:
        """Add a hashable item to those with the same key."""
        self._groups.setdefault(key, {})[item] = now_s

    def discard(self, item: T, key: Hashable) -> bool:
        """Remove an item; returns False if it is not waiting."""
        group = self._groups.get(key, {})
        if group.pop(item, None) is None:
            return False
        if not group:
            del self._groups[key]
        return True

    def ready(self, now_s: float) -> list[T]:
        """Remove and return the oldest batch that is full or has waited long enough; empty when there is none."""
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
        """Return the time at which the oldest item has waited long enough; None when nothing waits."""
        first = min(map(_since, self._groups.values()), default=None)
        return None if first is None else first + self._limits.batch_wait_timeout_s


def _since(group: dict[T, float]) -> float:
    return next(iter(group.values()))


class _Ended:
    """Marks the end of an item's results. A class, because wrappers that travel by value compare with it."""


class _Item:
    """One call: its arguments, and its results until the caller takes them."""

    def __init__(self, owner: tuple[Any, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.owner, self.args, self.kwargs = owner, args, kwargs
        self.request = request_context.get()
        # a copied instance may share its queues with the original, and their calls must not share a batch
        self.key = (*map(id, owner), len(args), tuple(kwargs), self.request.multiplexed_model_id)
        self.has_ended = False
        self.has_left = False
        self.joined_at = 0.0
        self.results: deque[Any] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def is_open(self) -> bool:
        """Return whether a caller still waits; its future is cancelled before its own code learns of it."""
        return not (self.has_ended or self.has_left or (self._waiter is not None and self._waiter.cancelled()))

    def give(self, value: Any) -> None:
        if self.is_open():
            self.results.append(value)
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    def end(self, value: Any = _Ended) -> None:
        self.give(value)
        self.has_ended = True

    async def result(self) -> Any:
        """Wait for the next result; ``_Ended`` comes after the last."""
        while not self.results:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return value_of(self.results.popleft())


class _Queue:
    """The calls of one batched function in one event loop."""

    def __init__(self, batched: _Batched) -> None:
        self._batched = batched
        self._loop = asyncio.get_running_loop()
        measure = len if batched.limits.batch_size_fn is None else batched.measure
        self._batcher = Batcher(batched.limits, measure, _Item.is_open)
        self._running: dict[asyncio.Task[BaseException | None], tuple[list[_Item], RequestContext]] = {}
        self._metrics = BatchMetrics.of(batched.name)
        self._timer: asyncio.TimerHandle | None = None

    def join(self, item: _Item) -> None:
        item.joined_at = self._loop.time()
        self._batcher.add(item, item.key, item.joined_at)
        self._start_ready()

    def leave(self, item: _Item) -> None:
        """Drop the item of a caller that has all it needs. A batch is cancelled when all its callers left early."""
        item.has_left = True
        item.results.clear()
        if self._batcher.discard(item, item.key):
            self._start_ready()
        for task, (batch, request) in self._running.items() if not item.has_ended else ():
            if item in batch and not any(map(_Item.is_open, batch)) and not task.cancelling():
                request.cancel()
                task.cancel()

    def _start_ready(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        while len(self._running) < self._batched.limits.max_concurrent_batches:
            batch = self._batcher.ready(self._loop.time())
            if not batch:
                if (due_s := self._batcher.due_s()) is not None:
                    self._timer = self._loop.call_at(due_s, self._start_ready)
                return
            if live := [item for item in batch if item.is_open()]:
                try:
                    self._start(live)
                except Exception as error:  # these fail, and those behind them still get their turn
                    for item in live:
                        item.end(Failure(error))

    def _start(self, batch: list[_Item]) -> None:
        context, scope, request = own_context(), Scope(), _shared([item.request for item in batch])
        context.run(request_context.set, request)
        context.run(scope_here.set, scope)
        spans, span = switch.spans, None
        if spans is not None:
            calls = [item.request.carried for item in batch]
            request.carried, span = spans.batch(self._batched.name, calls, request.carried)
            context.run(spans.attach, span)
        task = self._loop.create_task(self._batched.run(batch), context=context)
        self._running[task] = batch, request
        task.add_done_callback(lambda _: scope.release())
        if spans is not None:
            task.add_done_callback(lambda ended: spans.batched(span, None if ended.cancelled() else ended.result()))
        task.add_done_callback(self._on_done)
        if self._metrics is not None:
            task.add_done_callback(partial(self._measure, self._metrics, batch, self._loop.time()))

    def _measure(
        self, metrics: BatchMetrics, batch: list[_Item], began: float, task: asyncio.Task[BaseException | None]
    ) -> None:
        limit, first = self._batched.limits.max_batch_size, min(item.joined_at for item in batch)
        metrics.ended(len(batch), limit, began - first, self._loop.time() - began)

    def _on_done(self, task: asyncio.Task[BaseException | None]) -> None:
        del self._running[task]
        self._start_ready()


def _shared(requests: list[RequestContext]) -> RequestContext:
    """Return a context for a batch: like that of a single call, or what all calls share and the latest deadline.

    It is cancelled when all calls are.
    """
    first, calls = requests[0], tuple(requests)
    if len(requests) == 1:
        return replace(first, batch=calls)
    deadlines = [request.deadline_ms for request in requests]
    late_ms = max(deadlines) if all(deadlines) else 0
    runs = tuple(run for request in requests for run in request.runs)
    carried = common([request.carried for request in requests])
    return RequestContext(
        "", "", first.app_name, first.multiplexed_model_id, late_ms, runs=runs, carried=carried, batch=calls
    )


class _Batched:
    """A decorated function, with the queues of its calls; it runs the body for a batch."""

    def __init__(self, func: Callable[..., Any], limits: Limits) -> None:
        self._func, self.limits = func, limits
        self.name = func.__qualname__
        self.streams = inspect.isasyncgenfunction(func)
        self._signature = inspect.signature(func)
        self._has_self = has_self(self._signature)

    def join(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[_Queue, _Item]:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        item = _Item(bound.args[: self._has_self], bound.args[self._has_self :], bound.kwargs)
        if self.limits.batch_size_fn is not None and self._size([item]) > self.limits.max_batch_size:
            raise ValueError(f"this item of {self._func.__qualname__} is larger than max_batch_size on its own")
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
        values = [(*item.args, *item.kwargs.values()) for item in items]
        measure = self.limits.batch_size_fn or len
        return int(own_context().run(measure, [value[0] if len(value) == 1 else value for value in values]))

    def measure(self, items: list[_Item]) -> int:
        """Return the size of some items. If ``batch_size_fn`` raises, these items fail with its error and leave."""
        try:
            return self._size(items)
        except BaseException as error:  # SystemExit would end the loop from within its timer
            for item in items:
                item.end(Failure(error))
            return self.limits.max_batch_size

    async def run(self, batch: list[_Item]) -> BaseException | None:
        """Run the body, and return an error in it, which is raised to every caller."""
        args = [list(values) for values in zip(*(item.args for item in batch), strict=True)]
        kwargs = {name: [item.kwargs[name] for item in batch] for name in batch[0].kwargs}
        try:
            results = self._func(*batch[0].owner, *args, **kwargs)
            if not self.streams:
                for item, value in self._pairs(batch, await results):
                    item.end(value)
                return None
            async with aclosing(results):
                async for row in results:
                    for item, value in self._pairs(batch, row):
                        kind = value if isinstance(value, type) else type(value)
                        if issubclass(kind, StopIteration | StopAsyncIteration):
                            item.end()
                        else:
                            item.give(value)
                    if not any(map(_Item.is_open, batch)):
                        return None
            for item in batch:
                item.end()
        except BaseException as error:
            end_if_child(error)
            for item in batch:
                item.end(Failure(error))
            return error
        return None

    def _pairs(self, batch: list[_Item], results: Any) -> Iterable[tuple[_Item, Any]]:
        # arrays and tensors are accepted like lists; str and dict only happen to have a length
        is_list = isinstance(results, list | tuple) or hasattr(results, "__array__")
        found = len(results) if is_list else type(results).__name__
        if found != len(batch):
            raise QserveException(
                f"{self._func.__qualname__} is batched: it must return a list of {len(batch)} results, one for each"
                f" item, not {found}"
            )
        return zip(batch, results, strict=True)


if TYPE_CHECKING:

    class _Settable(Protocol):
        """The two setters that a batched function has; they hold for all instances in this process."""

        def set_max_batch_size(self, max_batch_size: int, /) -> None: ...
        def set_batch_wait_timeout_s(self, batch_wait_timeout_s: float, /) -> None: ...

    class Batched(_Settable, Protocol[Item_contra, Result_co]):
        """A batched function or bound method of one parameter, as its callers see it: one item, and its result."""

        @overload
        def __call__(self, item: Item_contra, /) -> Result_co: ...
        @overload
        def __call__(self, **item: Any) -> Result_co: ...

    class BatchedMethod(_Settable, Protocol[Owner_contra, Item_contra, Result_co]):
        """A batched method as an attribute of its class."""

        @overload
        def __get__(self, instance: None, owner: Any, /) -> Self: ...
        @overload
        def __get__(self, instance: Owner_contra, owner: Any = None, /) -> Batched[Item_contra, Result_co]: ...
        def __call__(self, *args: Any, **kwargs: Any) -> Result_co: ...

    class _BatchDecorator(Protocol):
        """``batch`` for type checkers; they do not check the items of a function with several list parameters."""

        @overload
        def __call__(
            self,
            _func: None = None,
            /,
            max_batch_size: int = 10,
            batch_wait_timeout_s: float = 0.0,
            max_concurrent_batches: int = 1,
            batch_size_fn: Measure[Any] | None = None,
        ) -> Self: ...
        @overload
        def __call__(self, _func: Callable[[list[T]], _Results[R]], /) -> Batched[T, Coroutine[Any, Any, R]]: ...
        @overload
        def __call__(self, _func: Callable[[list[T]], _Rows[R]], /) -> Batched[T, AsyncGenerator[R, None]]: ...
        @overload
        def __call__(
            self, _func: Callable[[Owner, list[T]], _Results[R]], /
        ) -> BatchedMethod[Owner, T, Coroutine[Any, Any, R]]: ...
        @overload
        def __call__(
            self, _func: Callable[[Owner, list[T]], _Rows[R]], /
        ) -> BatchedMethod[Owner, T, AsyncGenerator[R, None]]: ...
        @overload
        def __call__(self, _func: Callable[..., Coroutine[Any, Any, Any] | AsyncIterator[Any]], /) -> Any: ...


def _typed(decorator: Any) -> _BatchDecorator:
    return decorator  # type: ignore[no-any-return]


@_typed
def batch(
    _func: Callable[..., Any] | None = None,
    /,
    max_batch_size: int = 10,
    batch_wait_timeout_s: float = 0.0,
    max_concurrent_batches: int = 1,
    batch_size_fn: Measure[Any] | None = None,
) -> Any:
    """Let an ``async def`` function, method or generator handle many calls at once.

    A caller passes one item for each parameter and gets its own result. The body gets a list for each parameter and
    returns a list of results in the same order; a generator yields such lists, in which ``StopIteration`` ends the
    results of one item. The first parameter of a method must be called ``self``.

    Batches form in the event loop in which the calls are awaited: the replica's. A sync method may return the
    coroutine, or pass it to that loop with ``asyncio.run_coroutine_threadsafe``; ``asyncio.run`` would create a loop,
    and so a batch, of its own. A batch runs with the request context of its calls.

    Parameters:
      max_batch_size: The largest size of a batch, in items or as ``batch_size_fn`` measures it; at least 1.
      batch_wait_timeout_s: How many seconds the first item waits for others; 0 runs the items that are there.
      max_concurrent_batches: How many batches of one queue run at the same time.
      batch_size_fn: Returns the size of a list of items, which must not shrink when an item joins; None counts them.
        For a function with several parameters the items are tuples.

    Returns:
      The function as its callers see it: one item in, one result out. Its ``set_max_batch_size(4)`` and
      ``set_batch_wait_timeout_s(0.1)`` change the limits for all instances in this process, from the next call on.

    Raises:
      TypeError: The function is not ``async def``, or an option has the wrong type.
      ValueError: A number is out of range.

    Example:
      @serve.deployment
      class Model:
          @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.01)
          async def lengths(self, texts: list[str]) -> list[int]:
              return [len(text) for text in texts]

          async def __call__(self, text: str) -> int:
              return await self.lengths(text)

      model = serve.run(Model.bind(), local=True)
      print(serve.get([model.remote("one"), model.remote("three")]))  # [3, 5]
    """
    options = Limits(max_batch_size, batch_wait_timeout_s, max_concurrent_batches, batch_size_fn)

    def decorate(func: Callable[..., Any]) -> Any:
        check_async("batch", func, inspect.iscoroutinefunction(func) or inspect.isasyncgenfunction(func))
        limits = replace(options)
        batched = _Batched(func, limits)

        @wraps(func)
        async def call(*args: Any, **kwargs: Any) -> Any:
            queue, item = batched.join(args, kwargs)
            try:
                return await item.result()
            finally:
                queue.leave(item)

        @wraps(func)
        async def stream(*args: Any, **kwargs: Any) -> Any:
            queue, item = batched.join(args, kwargs)
            try:
                while (value := await item.result()) is not _Ended:
                    yield value
            finally:
                queue.leave(item)

        wrapper: Any = stream if batched.streams else call
        wrapper.set_max_batch_size = limits.set_max_batch_size
        wrapper.set_batch_wait_timeout_s = limits.set_batch_wait_timeout_s
        return wrapper

    return decorate if _func is None else decorate(_func)
