"""A call, the plane that carries it, and the ref that its result arrives in.

A plane carries calls: the broker from sync code, the broker from a replica's event loop, or this process in
local mode. A process uses one of them, which ``current`` holds.
"""

from __future__ import annotations

import asyncio
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Generic, NamedTuple

from qserve.base import context
from qserve.base.carried import Carried
from qserve.base.context import RequestContext, Run
from qserve.base.loop_at_hand import loop_that_runs
from qserve.base.promise import Promise, T, T_co
from qserve.calls.events import Events, Logged
from qserve.calls.not_value import NotValue
from qserve.exceptions import (
    DeadlineExceeded,
    GetTimeoutError,
    PayloadError,
    RequestCancelledError,
    ResultUnavailable,
)
from qserve.wire.application import ApplicationRecord
from qserve.wire.claim import MARK, Claim, claim_in
from qserve.wire.codec import Codec
from qserve.wire.envelope import Answer
from qserve.wire.events import Event
from qserve.wire.failure import Failure
from qserve.wire.outcome import Outcome, State, items_in
from qserve.wire.progress import Progress

PICKLED_WITHIN_S = 3.0
"""The longest that pickling a ref waits until the broker has its request."""
_NO_KWARGS: Mapping[str, Any] = MappingProxyType({})
_UNSET: Any = object()


class Call(NamedTuple):
    """One call of a deployment's method, or of a graph, and what its caller asks for.

    Parameters:
      app: The application.
      deployment, method: What is called, unless ``graph`` is set.
      args, kwargs: Values, refs, and un-awaited calls.
      graph: The graph that is run on these arguments; "" is the name of an application's only graph.
      timeout_s: The deadline, from now; None for the application's default.
      result_ttl_s: How long the result is kept; None for the default of the settings.
      trace_id, route, model_id, carried: See ``wire.envelope.Header``.
      answer: The form of the result.
      owned: Whether the result is deleted together with its ref.
      stream: Whether the result is wanted as items.
      request_id: 32 hexadecimal digits; "" for a new one.
      fingerprint: A digest of what is asked, for a request whose result may be fetched by its id. A second call with
        the same id and fingerprint follows the first one instead of starting another.
      is_traced: Whether its caller asks for its trace.
      webhook: Where the end of the request is sent, as the broker keeps it; b"" for nowhere.
      version: The record of the version that the caller has chosen among several; None for what the plane finds.
    """

    app: str
    deployment: str = ""
    method: str = "__call__"
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = _NO_KWARGS
    graph: str | None = None
    timeout_s: float | None = None
    result_ttl_s: float | None = None
    trace_id: str = ""
    route: str = ""
    model_id: str = ""
    answer: Answer = Answer.VALUE
    owned: bool = False
    stream: bool = False
    request_id: str = ""
    fingerprint: str = ""
    carried: Carried | None = None
    webhook: bytes = b""
    version: ApplicationRecord | None = None
    is_traced: bool = False


class Plane(ABC):
    """Carries calls and settles their refs."""

    serves_replica = False
    """Whether all of its callers are code of a replica."""
    codec: Codec

    @abstractmethod
    def submit(self, call: Call) -> Ref[Any]:
        """Start a call."""

    @abstractmethod
    def submit_many(self, calls: Sequence[Call]) -> list[Ref[Any]]:
        """Start calls of one application; what refuses one of them is raised by its ref."""

    @abstractmethod
    def follow(self, ref: Ref[Any]) -> None:
        """Settle ``ref``, which may come from another process, when its request has ended."""

    def wait(self, ref: Ref[Any], timeout_s: float | None) -> bool:
        """Block until ``ref`` is done; return False if ``timeout_s`` passed first."""
        self.follow(ref)
        return ref.done.wait(timeout_s)

    @abstractmethod
    def cancel(self, ref: Ref[Any]) -> None:
        """End an open request without a result; running calls are notified, and have no effect."""

    def check_items_arrive(self) -> None:  # noqa: B027  (most planes have nothing to check)
        """Raise RuntimeError where a wait for items would hold up what brings them."""

    @abstractmethod
    def add_credit(self, request_id: str, items: int) -> None:
        """Let the producer of a streamed result send this many more items."""

    @abstractmethod
    def note(self, run: Run, event: Event, on_reply: Callable[[bool], object] = bool) -> None:
        """Write down an event of a call that runs here; this neither waits nor fails.

        Parameters:
          on_reply: Called with whether the call still counts.
        """

    @abstractmethod
    def events(self, request_id: str, after: int) -> Promise[Logged | Exception]:
        """Ask for the events of a request behind the one of that number, and have those that come written down."""

    @abstractmethod
    def progress(self, request_id: str) -> Promise[Progress | Exception | None]:
        """Ask for the progress of a request: None if it has reported none, or is not open."""

    @abstractmethod
    def release(self, request_id: str, value: Claim | None = None) -> None:
        """Delete a result that will not be asked for again, together with what is sent next.

        Parameters:
          value: The claim of its stored value; None if it has none, or has not come.
        """

    @abstractmethod
    def release_item(self, value: Claim) -> None:
        """Delete the stored value of an item that was read, together with what is sent next."""


class CurrentPlane:
    """The plane that the handles and refs of this process use; ``installed`` is None when there is none yet."""

    installed: Plane | None = None

    def plane(self) -> Plane:
        """Return the current plane, and connect to the configured broker when there is none yet.

        Raises:
          BrokerUnavailable: Nothing was started in this process, and the environment names no broker.
        """
        if self.installed is None:
            self.installed = context.connect()
        return self.installed

    def in_replica(self) -> bool:
        """Return whether the running code belongs to a replica, where nothing may block the event loop."""
        serves = self.installed is not None and self.installed.serves_replica
        return serves or context.replica_here.get() is not None


current: Final = CurrentPlane()


class Ref(NotValue, Generic[T_co]):
    """The result of one call, which may not exist yet.

    Use ``await ref`` in async code, ``qserve.get(ref)`` or ``ref.result()`` in sync code. A ref can be awaited any
    number of times, passed as an argument (its value arrives there) and pickled.

    ``request_id`` is the ID under which the result is stored: ``qserve.get_ref(request_id)`` gives the ref anywhere.
    ``acceptance`` is set to whether the broker has the request; ``done`` is set to the outcome. ``is_cancelled`` is set
    when its plane was asked to cancel the request.

    Example:
      ref = handle.remote("Dora")
      ref.accepted(timeout_s=10)  # in async code: await ref.accepted_async()
      print(ref.result(timeout_s=10))  # Hello Dora
      print(ref.progress())  # None
      print(*(event.name for event in ref.events()))  # accepted end
      ref.cancel()  # no effect, since it has ended

      async def later() -> None:
          ref = handle.remote("Ann")
          await ref.accepted_async()
          print(await ref, await ref.progress_async())  # Hello Ann None

      asyncio.run(later())
    """

    __slots__ = (
        "__weakref__", "_arguments", "_caller", "_is_known_to_caller", "_owned", "_plane", "_value",
        "acceptance", "done", "is_cancelled", "request_id",
    )  # fmt: skip
    is_cancelled: bool

    def __init__(self, request_id: str, plane: Plane | None, owned: bool = False) -> None:
        self.request_id: str = request_id
        self.acceptance: Promise[bool] = Promise()
        self.done: Promise[Outcome] = Promise()
        self._plane = plane
        self._owned = owned
        self._value = _UNSET

    @classmethod
    def resolved(cls, value: T) -> Ref[T]:
        """Return a ref that has its value already, as results inside containers have."""
        ref: Ref[T] = Ref("", None)
        ref._value = value
        ref.settle(Outcome(State.DONE, b""))
        return ref

    def settle(self, outcome: Outcome, was_accepted: bool = True) -> None:
        """Set the outcome; the plane calls this when the request has ended, and a second outcome is ignored.

        Parameters:
          was_accepted: False when the broker is not known to have had the request.
        """
        # in this order: after `acceptance`, callers check `done` for a refusal
        self.done.set(outcome)
        self.acceptance.set(was_accepted)

    def accepted(self, timeout_s: float | None = None) -> None:
        """Wait until the broker has stored the request: from then on it survives the end of this program.

        In async code, write ``await ref.accepted_async()``.

        Parameters:
          timeout_s: The longest wait in seconds; None waits until the broker has answered, or stays away.

        Raises:
          GetTimeoutError: The broker did not confirm the request within ``timeout_s``; it is still being sent.
          BrokerUnavailable, BackPressureError, QserveException: The request was refused, and why.
          ResultUnavailable: It was submitted by another program, and its result is no longer stored.
          RuntimeError: It would block a running event loop.
        """
        if loop_that_runs() is not None:
            raise RuntimeError("accepted() would block the running event loop: write `await ref.accepted_async()`")
        self.ask_for_acceptance()
        if not self.acceptance.wait(timeout_s):
            raise GetTimeoutError(
                f"the broker has not confirmed request {self.request_id} within {timeout_s} s; it is still being sent"
            )
        self._raise_refusal()

    async def accepted_async(self) -> None:
        """Wait in async code until the broker has stored the request; limit the wait with ``asyncio.timeout``.

        Raises:
          BrokerUnavailable, BackPressureError, QserveException: The request was refused, and why.
          ResultUnavailable: It was submitted by another program, and its result is no longer stored.
        """
        self.ask_for_acceptance()
        await self.acceptance
        self._raise_refusal()

    def ask_for_acceptance(self) -> None:
        """Have ``acceptance`` set when the broker has answered."""
        if not self.acceptance.is_set():
            self._get_plane().follow(self)  # it may come from another process

    def _raise_refusal(self) -> None:
        if not self.acceptance.get_nowait():
            self.raise_for_end()

    def result(self, timeout_s: float | None = None) -> T_co:
        """Wait for the value and return it.

        Parameters:
          timeout_s: The longest wait in seconds; None waits until the request's own deadline.

        Returns:
          The value that the method returned.

        Raises:
          GetTimeoutError: The value did not arrive within ``timeout_s``; the request goes on.
          TaskError: User code raised an exception; the error is also an instance of the original type.
          DeadlineExceeded: The request's deadline passed first.
          RequestCancelledError: The request was cancelled.
          ResultUnavailable: The result is no longer stored, or the request was a stream.
          RequestError: The request has failed for another reason, which the class of the error says.
        """
        if not self.done.is_set() and not self._wait(timeout_s):
            self._is_known_to_caller = True
            raise GetTimeoutError(f"request {self.request_id} has no result after {timeout_s} s; it is still running")
        return self._unwrap()

    def _wait(self, timeout_s: float | None) -> bool:
        caller = getattr(self, "_caller", context.NO_REQUEST)
        if caller is context.NO_REQUEST or not self._owned:
            return self._get_plane().wait(self, timeout_s)
        with caller.when_cancelled(self._cancel_with_arguments):
            return self._get_plane().wait(self, timeout_s)

    def __await__(self) -> Generator[Any, None, T_co]:
        if not self.done.is_set():
            self._get_plane().follow(self)
            try:
                yield from self.done.__await__()
            except asyncio.CancelledError:
                self.cancel_with_caller()
                raise
        if self._value is _UNSET and self._get_plane().codec.is_heavy(self.outcome().payload):
            yield from asyncio.get_running_loop().run_in_executor(None, self._unwrap)
        return self._unwrap()

    def made_by(self, caller: RequestContext) -> None:
        """Note which request has made the call; it is cancelled with that request while that awaits it."""
        self._caller = caller
        caller.makes_calls = True

    def cancel_with_caller(self) -> None:
        """Cancel the request because an ``await`` of it was, unless that was not because its caller was cancelled.

        A timeout in user code ends the wait only. Nor is a request cancelled that another call made, whose ref has
        been sent on, or that others wait for as well.
        """
        caller = getattr(self, "_caller", context.NO_REQUEST)
        if caller.cancelled and self._owned and not self._has_readers():
            self._cancel_with_arguments()

    def _cancel_with_arguments(self) -> None:
        self.cancel()
        for argument in getattr(self, "_arguments", ()):
            ref = argument()
            if ref is not None and not ref.done.is_set():
                ref.cancel_with_caller()

    def takes(self, refs: Iterable[Ref[Any]]) -> None:
        """Note whose results the call takes as arguments: a wait for the call is a wait for these as well."""
        # weakly: those that are open are kept by their plane, and a chain of calls must not keep all of its results
        self._arguments = [weakref.ref(ref) for ref in refs]

    def _has_readers(self) -> bool:
        return self.done.has_waiters()

    def progress(self, timeout_s: float | None = None) -> Progress | None:
        """Return how far the request is, as its code has said by ``qserve.progress``.

        In async code, write ``await ref.progress_async()``.

        Parameters:
          timeout_s: The longest wait in seconds for the broker's answer; None waits until it answers, or stays away.

        Returns:
          A ``Progress`` with a ``fraction`` (from 0 to 1, or None) and a ``message``; None if nothing was reported, or
          the request has ended.

        Raises:
          GetTimeoutError: The broker has not answered within ``timeout_s``.
          BrokerUnavailable: The broker is away.
          RuntimeError: It would block a running event loop.
        """
        if loop_that_runs() is not None:
            raise RuntimeError("progress() would block the running event loop: write `await ref.progress_async()`")
        asked = self._ask_for_progress()
        if not asked.wait(timeout_s):
            raise GetTimeoutError(f"the broker has not told the progress of request {self.request_id} in {timeout_s} s")
        return _progress_in(asked.get_nowait())

    async def progress_async(self) -> Progress | None:
        """Return how far the request is, in async code; limit the wait with ``asyncio.timeout``.

        Returns:
          A ``Progress``; None if nothing was reported, or the request has ended.

        Raises:
          BrokerUnavailable: The broker is away.
        """
        return _progress_in(await self._ask_for_progress())

    def _ask_for_progress(self) -> Promise[Progress | Exception | None]:
        if not self.done.is_set():
            return self._get_plane().progress(self.request_id)
        asked: Promise[Progress | Exception | None] = Promise()
        asked.set(None)
        return asked

    def events(self, last_id: str = "") -> Events:
        """Return the events of the request as they come, the last one when it ends; for ``for`` and ``async for``.

        What the steps of a request begin and end is written down from the first reader on, or from the first
        ``qserve.progress``; of what came before, only the acceptance is told. Of many events, the last 128 are kept.

        Parameters:
          last_id: The ``id`` of the last event that you have; those behind it are returned.

        Returns:
          What gives ``qserve.Event``. A loop raises ResultUnavailable if the request is not known any more, and
          BrokerUnavailable if the broker is away when it has ended.
        """
        return Events(self, last_id)

    def ask_for_events(self, after: int) -> Promise[Logged | Exception]:
        """Ask for the events behind the one of that number."""
        if self.request_id:
            return self._get_plane().events(self.request_id, after)
        asked: Promise[Logged | Exception] = Promise()
        asked.set(Logged([]))
        return asked

    def follow(self) -> None:
        """Have ``done`` set when the request has ended, also if it comes from another process."""
        if not self.done.is_set():
            self._get_plane().follow(self)

    def cancel(self) -> None:
        """Cancel the request: calls that have not started never will; running ones are notified, and have no effect.

        This returns at once. The ref then raises ``RequestCancelledError``, unless the request had ended before.
        """
        self._is_known_to_caller = True
        self._get_plane().cancel(self)

    def outcome(self) -> Outcome:
        """Return the encoded outcome; only once ``done`` is set."""
        return self.done.get_nowait()

    def error(self) -> BaseException | None:
        """Return the exception that ended the request, None for a result; only once ``done`` is set."""
        state, payload = self.outcome()
        if state == State.DONE:
            return None
        if state == State.EXPIRED:
            return DeadlineExceeded(f"request {self.request_id} was not finished within its deadline")
        if state == State.CANCELLED:
            return RequestCancelledError(f"request {self.request_id} was cancelled")
        try:
            return Failure.decode(payload).to_exception()
        except PayloadError as error:
            return error

    def raise_for_end(self) -> None:
        """Raise what ended the request; do nothing if it has its result."""
        error = self.error()
        if error is not None:
            self._is_known_to_caller = True
            try:
                raise error
            finally:
                del error  # this frame is in its traceback: together they would be a cycle

    def refusal(self) -> BaseException | None:
        """Return the error if the request was refused and can be sent again."""
        error = self.error() if self.done.is_set() else None
        if not getattr(error, "retryable", False):
            return None
        self._is_known_to_caller = True
        return error

    def is_known_to_caller(self) -> bool:
        """Return whether the caller knows that the request failed or is still running, or has cancelled it."""
        return hasattr(self, "_is_known_to_caller")  # not set when a ref is made, which costs time

    @property
    def plane(self) -> Plane | None:
        """The plane that it was made by; None for a ref that has come from elsewhere."""
        return self._plane

    def _get_plane(self) -> Plane:
        return self._plane or current.plane()

    def _unwrap(self) -> T_co:
        if self._value is _UNSET:
            self.raise_for_end()
            self._value = self._decode(self.outcome().payload)
        return self._value  # type: ignore[no-any-return]

    def _decode(self, payload: bytes) -> T_co:
        if not payload or items_in(payload) is not None:
            raise ResultUnavailable(f"request {self.request_id} was a stream: its items are not stored")
        return self._get_plane().codec.decode(payload)  # type: ignore[no-any-return]

    def __reduce__(self) -> tuple[Any, ...]:
        if not self.request_id:
            return Ref.resolved, (self._unwrap(),)
        if loop_that_runs() is None:
            self.acceptance.wait(PICKLED_WITHIN_S)  # its reader may ask at once
        self.share()
        return Ref, (self.request_id, None)

    def share(self) -> None:
        """Keep the stored result when this ref is deleted, since another process may ask for it."""
        self._owned = False

    def __del__(self) -> None:
        if self._owned and self.request_id and self._plane is not None:
            self._plane.release(self.request_id, self._stored_value())

    def _stored_value(self) -> Claim | None:
        if not self.done.is_set():
            return None
        try:
            payload = self.outcome().payload
            return claim_in(payload) if payload.startswith(MARK) else None
        except PayloadError:
            return None

    def __repr__(self) -> str:
        state = State(self.outcome().state).word if self.done.is_set() else "pending"
        return f"Ref({self.request_id or 'resolved'}, {state})"


ObjectRef = Ref
"""The name of a ref in programs written for Ray."""


def _progress_in(found: Progress | Exception | None) -> Progress | None:
    if isinstance(found, Exception):
        raise found
    return found


def failed(error: BaseException, deployment: str = "") -> Outcome:
    """Return the outcome of a request that failed: with one of qserve's own errors, or in a deployment."""
    return Outcome(State.FAILED, Failure.of(error, deployment).encode())
