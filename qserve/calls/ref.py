"""``Ref``: a result that may not exist yet, backed by the result stored in the broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Generic, overload

from qserve.base.deadline import Countdown
from qserve.base.promise import Promise
from qserve.calls import current
from qserve.calls.plane import Plane
from qserve.exceptions import DeadlineExceeded, GetTimeoutError, PayloadError, RequestCancelled
from qserve.wire.failure import Failure
from qserve.wire.outcome import Outcome, State

if TYPE_CHECKING:  # the default lets people write `Ref` for `Ref[Any]`; typing has it from Python 3.13 on
    from typing_extensions import TypeVar

    T = TypeVar("T", default=Any)
    T_co = TypeVar("T_co", covariant=True, default=Any)
else:
    from typing import TypeVar

    T = TypeVar("T")
    T_co = TypeVar("T_co", covariant=True)

_UNSET: Any = object()
_SHOWN: dict[str, str] = {State.DONE: "done", State.FAILED: "failed"}


class Ref(Generic[T_co]):
    """The result of one call.

    ``await ref`` gives the value inside async code, ``qserve.get(ref)`` and ``ref.result()`` in sync code.
    ``accepted`` becomes True once the broker has the request, or None when it ends before that is known. A ref may be
    awaited any number of times, passed as an argument (the value arrives there) and pickled.
    """

    __slots__ = ("__weakref__", "_owned", "_plane", "_value", "accepted", "done", "request_id")

    def __init__(self, request_id: str, plane: Plane | None, owned: bool = False) -> None:
        self.request_id = request_id
        self.accepted: Promise[bool | None] = Promise()
        self.done: Promise[Outcome] = Promise()
        self._plane = plane
        self._owned = owned
        self._value = _UNSET

    @classmethod
    def resolved(cls, value: T) -> Ref[T]:
        """A ref that already has its value: how node results inside containers arrive."""
        ref: Ref[T] = Ref("", None)
        ref._value = value
        ref.accepted.set(None)
        ref.done.set(Outcome(State.DONE, b""))
        return ref

    def settle(self, outcome: Outcome) -> None:
        """Called by the plane when the request has ended; a second end is ignored."""
        # in this order: who waits for `accepted` looks at `done` for a refusal
        self.done.set(outcome)
        self.accepted.set(None)

    def result(self, timeout_s: float | None = None) -> T_co:
        """Wait for the value.

        Parameters:
          timeout_s: Longest wait; None waits until the request's own deadline.

        Returns:
          What user code returned.

        Raises:
          GetTimeoutError: The wait ended first; the request goes on.
          TaskError: User code raised; the error is an instance of the original type as well.
          DeadlineExceeded: The request's deadline passed first.
        """
        if not self.done.is_set() and not self._plane_of().wait(self, timeout_s):
            raise GetTimeoutError(f"no result of request {self.request_id} within {timeout_s} s; it goes on")
        return self._unwrap()

    def __await__(self) -> Generator[Any, None, T_co]:
        if not self.done.is_set():
            self._plane_of().follow(self)
            yield from self.done.__await__()
        return self._unwrap()

    def cancel(self) -> None:
        """Stop the request where it is: what has not started never will, what runs has no effects."""
        self._plane_of().cancel(self)

    def refusal(self) -> BaseException | None:
        """The error when the request was not accepted at all."""
        error = error_of(self.outcome(), self.request_id)
        return error if getattr(error, "retryable", False) else None

    def outcome(self) -> Outcome:
        """How the request ended, undecoded; only after ``done``."""
        return self.done.get_nowait()

    def _plane_of(self) -> Plane:
        if self._plane is None:
            self._plane = current.plane()
        return self._plane

    def _unwrap(self) -> T_co:
        if self._value is not _UNSET:
            return self._value  # type: ignore[no-any-return]
        outcome = self.outcome()
        if outcome.state == State.DONE:
            self._value = self._plane_of().codec.decode(outcome.payload)
            return self._value  # type: ignore[no-any-return]
        raise error_of(outcome, self.request_id)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._value is not _UNSET and not self.request_id:
            return Ref.resolved, (self._value,)
        self.share()
        return Ref, (self.request_id, None)

    def share(self) -> None:
        """Keep the result in the broker when this ref goes: somebody else may ask for it."""
        self._owned = False

    def __del__(self) -> None:
        if self._owned and self.request_id and self._plane is not None:
            self._plane.forget(self.request_id)

    def __repr__(self) -> str:
        state = "pending" if not self.done.is_set() else _SHOWN.get(self.outcome().state, "ended")
        return f"Ref({self.request_id or 'resolved'}, {state})"


def error_of(outcome: Outcome, request_id: str) -> BaseException:
    """The exception that an outcome other than a result stands for."""
    if outcome.state == State.EXPIRED:
        return DeadlineExceeded(f"request {request_id} was not finished within its deadline")
    if outcome.state == State.CANCELLED:
        return RequestCancelled(f"request {request_id} was cancelled")
    try:
        return Failure.decode(outcome.payload).to_exception()
    except PayloadError as error:
        return error


class RefTask(Generic[T_co]):
    """What ``handle.remote`` gives inside a deployment: ``await`` it for the ref, await that for the value.

    The call has started when this exists; the first await only waits until the broker accepted it.
    """

    __slots__ = ("_callbacks", "ref")

    def __init__(self, ref: Ref[T_co]) -> None:
        self.ref = ref
        self._callbacks: list[Callable[[Any], object]] = []

    def __await__(self) -> Generator[Any, None, Ref[T_co]]:
        ref = self.ref
        if not ref.accepted.is_set():
            yield from ref.accepted.__await__()
        return ref

    def cancel(self) -> None:
        """Stop the call; see ``Ref.cancel``."""
        self.ref.cancel()

    # what asyncio.wait and others ask of the task that Ray Serve gives here

    def done(self) -> bool:
        """Whether the call was accepted, and so the ref is there."""
        return self.ref.accepted.is_set()

    def result(self) -> Ref[T_co]:
        """The ref; RuntimeError before the call was accepted."""
        if not self.done():
            raise RuntimeError("the call was not accepted yet: await it")
        return self.ref

    def exception(self) -> None:
        """None: errors are the ref's."""

    def cancelled(self) -> bool:
        """False: a cancelled call still gives its ref, and that raises."""
        return False

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Any = None) -> None:
        """Have the running loop call ``callback`` with this object once the call was accepted."""
        loop = asyncio.get_running_loop()
        self._callbacks.append(callback)
        self.ref.accepted.call_when_set(lambda: loop.call_soon_threadsafe(self._call, callback, context=context))

    def remove_done_callback(self, callback: Callable[[Any], object]) -> int:
        """Call it no more; answers how often it was waiting to be called."""
        count = self._callbacks.count(callback)
        self._callbacks = [one for one in self._callbacks if one != callback]
        return count

    def _call(self, callback: Callable[[Any], object]) -> None:
        if callback in self._callbacks:
            self._callbacks.remove(callback)
            callback(self)

    def __repr__(self) -> str:
        return f"RefTask({self.ref!r})"


class DeploymentResponse(Generic[T_co]):
    """What ``handle.remote`` gives with the newer handles: one await for the value.

    ``result(timeout_s=)`` waits in sync code. It may be awaited again, and passed as an argument.
    """

    __slots__ = ("ref",)

    def __init__(self, ref: Ref[T_co]) -> None:
        self.ref = ref

    @property
    def request_id(self) -> str:
        """The id under which the result is stored."""
        return self.ref.request_id

    def __await__(self) -> Generator[Any, None, T_co]:
        return self.ref.__await__()

    def result(self, timeout_s: float | None = None) -> T_co:
        """Wait for the value; raises RuntimeError inside a running event loop, where it would stand still."""
        if asyncio._get_running_loop() is not None:
            raise RuntimeError(
                "Sync methods should not be called from within an `asyncio` event loop: write `await response`"
            )
        return self.ref.result(timeout_s)

    def cancel(self) -> None:
        """Stop the call; see ``Ref.cancel``."""
        self.ref.cancel()

    def __repr__(self) -> str:
        return f"DeploymentResponse({self.ref!r})"


Response = Ref[T] | RefTask[T] | DeploymentResponse[T]
"""What a handle call returns, in any of its forms."""


def ref_of(value: Any) -> Ref | None:
    """The ref behind anything that a handle call returned; None for other values."""
    if isinstance(value, Ref):
        return value
    return value.ref if isinstance(value, RefTask | DeploymentResponse) else None


@overload
def get(refs: Response[T], timeout: float | None = None) -> T: ...


@overload
def get(refs: list[Ref[T]], timeout: float | None = None) -> list[T]: ...


@overload
def get(refs: list[RefTask[T]], timeout: float | None = None) -> list[T]: ...


@overload
def get(refs: list[DeploymentResponse[T]], timeout: float | None = None) -> list[T]: ...


@overload
def get(refs: list[Response[T]], timeout: float | None = None) -> list[T]: ...


def get(refs: Any, timeout: float | None = None) -> Any:
    """Wait for the value of a ref, or for the values of a list of refs, in their order.

    Parameters:
      refs: A ref, an un-awaited call, or a list of them.
      timeout: Longest wait in seconds for all of them; None waits until their own deadlines.

    Returns:
      The value, or the list of values.

    Raises:
      GetTimeoutError: The wait ended first; the calls go on.
      TaskError: User code raised; the error is an instance of the original type as well.
      TypeError: ``refs`` is not what a handle call returns.
    """
    if isinstance(refs, list):
        clock = Countdown(timeout)
        return [get(item, clock.left_s()) for item in refs]
    ref = ref_of(refs)
    if ref is None:
        raise TypeError(
            f"qserve.get takes what `handle.method.remote(...)` returns, or a list of that; got {type(refs).__name__!r}"
        )
    return ref.result(timeout)
