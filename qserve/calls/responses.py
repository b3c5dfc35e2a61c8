"""The results of handle calls: ``RefTask``, ``DeploymentResponse`` and ``DeploymentResponseGenerator``; and ``get``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, NoReturn, overload

from qserve.base.clock import Deadline
from qserve.base.loop_at_hand import loop_that_runs
from qserve.base.promise import T, T_co
from qserve.calls.events import Events
from qserve.calls.items import ItemRef
from qserve.calls.not_value import ADVICE_FOR_RESPONSES, NotValue
from qserve.calls.ref import Ref, current
from qserve.exceptions import QserveException
from qserve.wire.codes import Code, register
from qserve.wire.progress import Progress


class _Response(NotValue, Generic[T_co]):
    __slots__ = ("ref",)

    def __init__(self, ref: Ref[T_co]) -> None:
        self.ref: Ref[T_co] = ref

    @property
    def request_id(self) -> str:
        """The ID under which the result is stored; ``qserve.get_ref`` takes it."""
        return self.ref.request_id

    def accepted(self, timeout_s: float | None = None) -> None:
        """Wait until the broker has stored the call; see ``Ref.accepted``."""
        self.ref.accepted(timeout_s)

    async def accepted_async(self) -> None:
        """Wait in async code until the broker has stored the call; see ``Ref.accepted_async``."""
        await self.ref.accepted_async()

    def progress(self, timeout_s: float | None = None) -> Progress | None:
        """Return how far the call is; see ``Ref.progress``."""
        return self.ref.progress(timeout_s)

    async def progress_async(self) -> Progress | None:
        """Return how far the call is, in async code; see ``Ref.progress_async``."""
        return await self.ref.progress_async()

    def events(self, last_id: str = "") -> Events:
        """Return the events of the call as they come; see ``Ref.events``."""
        return self.ref.events(last_id)

    def cancel(self) -> None:
        """Cancel the call; see ``Ref.cancel``."""
        self.ref.cancel()

    def _to_object_ref(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise AttributeError("there is no object store: pass the response itself to another call, or await its value")

    _to_object_ref_sync = _to_object_ref

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.ref!r})"


class RefTask(_Response[T_co]):
    """A call by a handle inside a deployment: ``await`` it for the ref, and await the ref for the value.

    The call has started when this object exists; the first await only waits until the broker has accepted it. It has
    the methods of an ``asyncio.Task``, so ``asyncio.wait`` and ``asyncio.gather`` take it.

    Example:
      @serve.deployment
      class Caller:
          def __init__(self, greeter):
              self.greeter = greeter

          async def __call__(self, name: str) -> str:
              call = self.greeter.remote(name)
              called: list[object] = []
              call.add_done_callback(called.append)
              await call.accepted_async()
              assert call.done() and not call.cancelled() and call.exception() is None
              call.remove_done_callback(called.append)
              return await call.result()  # the same as `await (await call)`

      print(serve.run(Caller.bind(Greeter.bind()), local=True).remote("Dora").result())  # Hello Dora
    """

    __slots__ = ("_callbacks",)

    def __init__(self, ref: Ref[T_co]) -> None:
        super().__init__(ref)
        self._callbacks: list[Callable[[Any], object]] = []

    def __await__(self) -> Generator[Any, None, Ref[T_co]]:
        self.ref.ask_for_acceptance()
        try:
            yield from self.ref.acceptance.__await__()
        except asyncio.CancelledError:
            self.ref.cancel_with_caller()
            raise
        return self.ref

    # Ray Serve returns an asyncio task here, so asyncio.wait and others may call its methods

    def done(self) -> bool:
        """Return whether the call was accepted, so that ``result`` returns the ref.

        Returns:
          True once the broker has answered, also if it has refused the call.
        """
        return self.ref.acceptance.is_set()

    def result(self) -> Ref[T_co]:
        """Return the ref once the call was accepted.

        Returns:
          The ref, which has the value or raises.

        Raises:
          RuntimeError: The call was not accepted yet, and waiting would block the event loop.
          QserveException: The call was refused, and why.
        """
        if not self.done():
            if loop_that_runs() is not None:
                raise RuntimeError("the call was not accepted yet: await it first")
            self.ref.accepted()
        return self.ref

    def exception(self) -> None:
        """Return None: errors are raised by the ref."""

    def cancelled(self) -> bool:
        """Return False: a cancelled call still has its ref, which raises.

        Returns:
          False.
        """
        return False

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Any = None) -> None:
        """Have the running loop call ``callback`` with this object once the call was accepted.

        Parameters:
          callback: A function of this object.
          context: The context that it runs in; None for the current one.
        """
        loop = asyncio.get_running_loop()
        self._callbacks.append(callback)
        self.ref.acceptance.call_when_set(lambda: loop.call_soon_threadsafe(self._call, callback, context=context))

    def remove_done_callback(self, callback: Callable[[Any], object]) -> int:
        """Remove the callback and return how many calls of it were pending.

        Parameters:
          callback: What ``add_done_callback`` got.

        Returns:
          The number of calls that will not be made.
        """
        count = self._callbacks.count(callback)
        self._callbacks = [other for other in self._callbacks if other != callback]
        return count

    def _call(self, callback: Callable[[Any], object]) -> None:
        if callback in self._callbacks:
            self._callbacks.remove(callback)
            callback(self)


class DeploymentResponse(_Response[T_co]):
    """A call by a ``DeploymentHandle``: ``await`` it for the value, or call ``result()`` in sync code.

    It can be awaited any number of times, and passed as an argument.

    Example:
      greeter = serve.get_app_handle("default")
      response = greeter.remote("Dora")
      response.accepted()
      print(response.result(timeout_s=10))  # Hello Dora
      print(response.progress(), *(event.name for event in response.events()))  # None accepted end
      response.cancel()  # no effect, since it has ended

      async def later() -> None:
          response = greeter.remote("Ann")
          await response.accepted_async()
          print(await response, await response.progress_async())  # Hello Ann None

      asyncio.run(later())
    """

    __slots__ = ()
    advice_for_values = ADVICE_FOR_RESPONSES

    def __await__(self) -> Generator[Any, None, T_co]:
        return self.ref.__await__()

    def result(self, timeout_s: float | None = None) -> T_co:
        """Wait for the value; see ``Ref.result``.

        Raises:
          GetTimeoutError: The value did not arrive within ``timeout_s``; the request goes on.
          TaskError: User code raised an exception; the error is also an instance of the original type.
          RequestError: The call has failed, and why.
          RuntimeError: It would block a running event loop: write ``await response``.
        """
        if loop_that_runs() is not None:
            raise RuntimeError(
                "Sync methods should not be called from within an `asyncio` event loop: write `await response`"
            )
        return self.ref.result(timeout_s)


class DeploymentResponseGenerator(_Response[T_co]):
    """A call by ``handle.options(stream=True)``: iterate over its items with ``for`` or ``async for``.

    Items arrive as the method yields them. ``cancel()``, or deleting the iterator early, stops the producer at its
    next item.

    Example:
      items = handle.letters.options(stream=True).remote("abc")
      items.accepted()
      print(next(items), next(items))  # a b
      print(items.progress(), items.events() is not None)  # None True
      items.cancel()

      async def read() -> None:
          items = handle.letters.options(stream=True).remote("ab")
          await items.accepted_async()
          print([item async for item in items], await items.progress_async())  # ['a', 'b'] None

      asyncio.run(read())
    """

    ref: ItemRef[T_co]

    def __iter__(self) -> Iterator[T_co]:
        return self

    def __next__(self) -> T_co:
        if loop_that_runs() is not None and current.in_replica():
            raise RuntimeError("a sync loop over a stream would block the event loop: write `async for`")
        return self.ref.decode(self._there(self.ref.next(), StopIteration))

    def __aiter__(self) -> AsyncIterator[T_co]:
        return self

    async def __anext__(self) -> T_co:
        return await self.ref.decode_async(self._there(await self.ref.next_async(), StopAsyncIteration))

    def _there(self, item: bytes | None, end: type[Exception]) -> bytes:
        if item is None:
            self.ref.raise_for_end()
            raise end
        return item

    def __del__(self) -> None:
        if not self.ref.done.is_set():
            self.ref.cancel()

    def __await__(self) -> Any:
        raise TypeError(
            "`DeploymentResponseGenerator` cannot be awaited. Iterate it: `async for item in handle.method.remote(...)`"
        )

    def __reduce__(self) -> Any:
        raise RuntimeError(
            "Streaming deployment handle results cannot be passed to downstream handle calls. If you have a use"
            " case requiring this feature, pass the items instead: `[item async for item in response]`"
        )


class RefStreamTask(DeploymentResponseGenerator[T_co]):
    """The same for a handle of the older kind: awaiting it returns an iterator with a ref for each item."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, RefStream[T_co]]:
        yield from self.ref.acceptance.__await__()
        return RefStream(self)


class RefStream(Generic[T_co]):
    """Iterates over refs of the items: ``async for ref in await handle.options(stream=True).items.remote(): ...``."""

    def __init__(self, items: RefStreamTask[T_co]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Ref[T_co]]:
        return map(Ref.resolved, self._items)

    async def __aiter__(self) -> AsyncIterator[Ref[T_co]]:
        async for item in self._items:
            yield Ref.resolved(item)


Response = Ref[T] | RefTask[T] | DeploymentResponse[T]
"""A ref or an un-awaited call: one result."""
AnyCall = Response[Any] | DeploymentResponseGenerator[Any]
RESPONSES = (Ref, RefTask, DeploymentResponse)


def ref_of(value: Any) -> Ref[Any] | None:
    """Return the ref behind a ref or an un-awaited call; None for other values."""
    if isinstance(value, Ref):
        return value
    return value.ref if isinstance(value, RefTask | DeploymentResponse) else None


@overload
def get(refs: Response[T], timeout: float | None = None) -> T: ...


@overload
def get(refs: Sequence[Response[T]], timeout: float | None = None) -> list[T]: ...


def get(refs: Any, timeout: float | None = None) -> Any:
    """Wait for the value of a ref, or for the values of a list of refs.

    Parameters:
      refs: A ref, an un-awaited call, or a list or tuple of them.
      timeout: The longest wait in seconds for all of them together; None waits until their own deadlines.

    Returns:
      The value, or the list of values in the order of ``refs``.

    Raises:
      GetTimeoutError: The wait ended first; the calls go on.
      TaskError: User code raised an exception; the error is also an instance of the original type.
      TypeError: ``refs`` is not what a handle call returns.

    Example:
      print(serve.get(handle.remote("Dora")))  # Hello Dora
      print(serve.get([handle.remote("Ann"), handle.remote("Ben")], timeout=10))  # ['Hello Ann', 'Hello Ben']
    """
    if isinstance(refs, list | tuple):
        deadline = Deadline(timeout)
        return [get(item, deadline.remaining_s()) for item in refs]
    return _checked_ref("get", refs).result(timeout)


def wait(
    refs: Sequence[Response[Any]], *, num_returns: int = 1, timeout: float | None = None, fetch_local: bool = True
) -> tuple[list[Response[Any]], list[Response[Any]]]:
    """Wait until some calls of a list have ended, in sync code; in async code use ``asyncio.wait``.

    Parameters:
      refs: Refs and un-awaited calls, each once.
      num_returns: How many to wait for.
      timeout: The longest wait in seconds; None waits until their own deadlines.
      fetch_local: Accepted for compatibility; results always come to their caller.

    Returns:
      ``num_returns`` of those that have ended (fewer after the timeout), and all others; each in the order of ``refs``.

    Raises:
      TypeError, ValueError: ``refs`` is not a list of what handle calls return, or has fewer than ``num_returns``.
      RuntimeError: It would block a running event loop.

    Example:
      refs = [handle.remote(name) for name in ("Ann", "Ben", "Cem")]
      ended, others = serve.wait(refs, num_returns=2, timeout=10)
      print(len(ended), len(others))  # 2 1
    """
    if loop_that_runs() is not None:
        raise RuntimeError("qserve.wait would block the running event loop: write `await asyncio.wait(...)`")
    waiting = [_checked_ref("wait", ref) for ref in refs]
    if not 0 < num_returns <= len(waiting):
        raise ValueError(f"num_returns must be between 1 and {len(waiting)}, the number of refs; got {num_returns}")
    ended: SimpleQueue[int] = SimpleQueue()
    for place, ref in enumerate(waiting):
        ref.follow()
        ref.done.call_when_set(partial(ended.put, place))
    deadline, places = Deadline(timeout), set[int]()
    with contextlib.suppress(Empty):
        while len(places) < num_returns:
            places.add(ended.get(timeout=deadline.remaining_s()))
    return [refs[k] for k in sorted(places)], [ref for k, ref in enumerate(refs) if k not in places]


def cancel(ref: AnyCall, *, force: bool = False, recursive: bool = True) -> None:
    """Cancel a call: what has not started never will, and running code is notified; see ``Ref.cancel``.

    Parameters:
      ref: What ``handle.method.remote(...)`` returned.
      force, recursive: Accepted for compatibility and ignored.

    Raises:
      TypeError: ``ref`` is not what a handle call returns.

    Example:
      serve.cancel(handle.remote("Dora"))
    """
    if not isinstance(ref, Ref | _Response):
        raise _no_call("cancel", ref)
    ref.cancel()


def put(value: T) -> Ref[T]:
    """Return a ref that has its value already, to be passed where a ref is wanted.

    Nothing is stored: the value travels with each call that the ref is passed to.

    Parameters:
      value: Any value.

    Returns:
      A ref whose ``result()`` is the value.

    Example:
      print(serve.put(5).result())  # 5
    """
    return Ref.resolved(value)


def _checked_ref(function: str, value: Any) -> Ref[Any]:
    ref = ref_of(value)
    if ref is None:
        raise _no_call(function, value)
    return ref


def _no_call(function: str, value: Any) -> TypeError:
    return TypeError(
        f"qserve.{function} takes what `handle.method.remote(...)` returns, or a list of that; got"
        f" {type(value).__name__!r}"
    )


def accepted(calls: AnyCall | Sequence[AnyCall], timeout_s: float | None = None) -> None:
    """Wait until the broker has stored a call, or all calls of a list; from then on they survive this program.

    It is the last line of a program that only submits.

    Parameters:
      calls: What ``handle.method.remote(...)`` returned, or a list of that.
      timeout_s: The longest wait in seconds for all of them together.

    Raises:
      GetTimeoutError: The wait ended first; what is missing is still being sent.
      QserveException: At least one call was refused: the first refusal, with a note of how many there were.
      TypeError: ``calls`` is not what a handle call returns.

    Example:
      serve.accepted([handle.remote(name) for name in ("Ann", "Ben")], timeout_s=10)
    """
    every: Sequence[Any] = calls if isinstance(calls, list | tuple) else [calls]
    for call in every:
        if not isinstance(call, Ref | _Response):
            raise _no_call("accepted", call)
    deadline, refused = Deadline(timeout_s), []
    for call in every:
        try:
            call.accepted(deadline.remaining_s())
        except QserveException as error:
            refused.append(error)
    if refused:
        if len(every) > 1:
            refused[0].add_note(f"{len(refused)} of {len(every)} calls were refused; this is the first error")
        raise refused[0]


def _pack_ref(ref: Ref[Any]) -> list[Any]:
    if not ref.request_id:
        return ["", ref.result()]  # or its error, such as that of a full queue
    ref.share()
    return [ref.request_id, None]


def _unpack_ref(packed: list[Any]) -> Ref[Any]:
    request_id, value, *_ = packed
    return Ref(request_id, None) if request_id else Ref.resolved(value)


register(Code.REF, Ref, _pack_ref, _unpack_ref)
register(Code.REF_TASK, RefTask, lambda task: _pack_ref(task.ref), _unpack_ref)
register(
    Code.RESPONSE,
    DeploymentResponse,
    lambda response: _pack_ref(response.ref),
    lambda packed: DeploymentResponse(_unpack_ref(packed)),
)
