"""The request and the replica that the running code belongs to, and the broker that handles connect to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from qserve.base.carried import Carried, Headers, carried_here, changed
from qserve.exceptions import QserveException


class Run(NamedTuple):
    """One run of one step of a request: what it says of itself counts only as long as no other has taken over.

    Parameters:
      request_id: The ID under which the result is stored.
      stream, entry_id: The delivery; the stream is named for the deployment.
      attempt: Which try of the step it is, from 1; 0 in another process, which only adds to what this one says.
      is_taken_over: Whether the replica that ran it before is lost.
    """

    request_id: str
    step: str
    stream: str
    entry_id: bytes
    attempt: int
    is_taken_over: bool = False


@dataclass(slots=True)
class RequestContext:
    """The request that is running.

    Parameters:
      request_id: The ID that people see: ``X-Request-ID``.
      route: The route prefix of its application.
      app_name: The application that runs it.
      multiplexed_model_id: The model that the caller asked for.
      deadline_ms: Unix time in milliseconds, by the broker's clock, by which the request must be finished; 0 outside of
        a request.
      cancelled: Whether it was cancelled, or its deadline has passed, since the code began. A coroutine also gets
        ``asyncio.CancelledError`` at its next ``await``; a ``def`` in a thread has to ask.
      runs: The runs that the code belongs to: one, or those of all calls in a batch.
      carried: What the request carries beside its values; None for nothing.
      batch: In a batch, the contexts of its calls, in their order.

    Example:
      @serve.deployment
      class Index:
          def __call__(self, pages: list[str]) -> int:
              for number, page in enumerate(pages):
                  if serve.get_request_context().cancelled:
                      return number
              return len(pages)

      print(serve.run(Index.bind(), local=True).remote(["first", "second"]).result())  # 2
    """

    request_id: str = ""
    route: str = ""
    app_name: str = ""
    multiplexed_model_id: str = ""
    deadline_ms: int = 0
    cancelled: bool = False
    runs: tuple[Run, ...] = field(default=(), repr=False, compare=False)
    carried: Carried | None = field(default=None, repr=False, compare=False)
    batch: tuple[RequestContext, ...] = field(default=(), repr=False, compare=False)
    makes_calls: bool = field(default=False, init=False, repr=False, compare=False)
    """Whether its code has called a deployment."""
    _callbacks: list[Callable[[], object]] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def headers(self) -> Headers:
        """The headers of the HTTP request that ``QSERVE_FORWARD_HEADERS`` names, or that its caller has given."""
        return Headers() if self.carried is None else Headers(self.carried.headers)

    @property
    def tenant(self) -> str:
        """The value of the header that ``QSERVE_TENANT_HEADER`` names, or what its caller has given; "" for none."""
        return "" if self.carried is None else self.carried.tenant

    @property
    def traceparent(self) -> str:
        """The W3C ``traceparent`` that the request came with, for calls to other services; "" for none."""
        return "" if self.carried is None else self.carried.traceparent

    @property
    def tracestate(self) -> str:
        """The W3C ``tracestate`` beside it."""
        return "" if self.carried is None else self.carried.tracestate

    def cancel(self) -> None:
        """Note that the request was cancelled, and call what waits for that; in any thread."""
        self.cancelled = True
        for callback in list(self._callbacks or ()):
            callback()

    @contextmanager
    def when_cancelled(self, callback: Callable[[], object]) -> Iterator[None]:
        """Call ``callback`` if the request is cancelled in the body of the ``with``, or was before."""
        if self._callbacks is None:
            self._callbacks = []
        self._callbacks.append(callback)
        try:
            if self.cancelled:
                callback()
            yield
        finally:
            self._callbacks.remove(callback)

    def __reduce__(self) -> Any:
        return RequestContext, (
            self.request_id, self.route, self.app_name, self.multiplexed_model_id, self.deadline_ms, self.cancelled,
            tuple(run._replace(attempt=0) for run in self.runs), self.carried, self.batch,
        )  # fmt: skip


NO_REQUEST = RequestContext()
"""Stands in the place of the request outside of any."""


@dataclass(frozen=True)
class ReplicaContext:
    """The replica that the running code belongs to.

    Parameters:
      app_name: The application.
      deployment: The deployment.
      replica_tag: The name of the replica.
      servable_object: The object that was constructed; None until then.
      preloaded: What the function returned that ``preload`` of the deployment names; None without one.

    Example:
      @serve.deployment
      def where() -> str:
          replica = serve.get_replica_context()
          return f"{replica.deployment} of {replica.app_name}"

      print(serve.run(where.bind(), name="shop", local=True).remote().result())  # where of shop
    """

    app_name: str
    deployment: str
    replica_tag: str
    servable_object: Any = None
    preloaded: Any = field(default=None, repr=False, compare=False)

    @property
    def replica_id(self) -> str:
        """The same as ``replica_tag``, under its newer name."""
        return self.replica_tag


@dataclass(slots=True, eq=False)
class Scope:
    """A run of user code, such as a call or a batch; what it holds is released at its end."""

    is_over: bool = field(default=False, init=False)
    callbacks: list[Callable[[], object]] | None = field(default=None, init=False, repr=False)

    def at_end(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` at the end; now, if the run is over."""
        if self.callbacks is None:
            self.callbacks = []
        self.callbacks.append(callback)
        if self.is_over:
            self.release()

    def release(self) -> None:
        self.is_over = True
        callbacks, self.callbacks = self.callbacks, None
        for callback in callbacks or ():
            callback()


scope_here: ContextVar[Scope | None] = ContextVar("qserve_scope_here", default=None)
"""The run that the running code belongs to; None in constructors, and outside of deployments."""
request_context: ContextVar[RequestContext] = ContextVar("qserve_request", default=NO_REQUEST)
replica_here: ContextVar[ReplicaContext | None] = ContextVar("qserve_replica_here", default=None)
"""The replica of the running code where replicas and their callers share a process; None elsewhere."""
replica: ReplicaContext | None = None
"""The replica that this process is; set before the user's object is constructed."""
connect: Callable[[], Any]
"""Connects to the broker when a handle is used before anything was started in this process; ``qserve`` sets it.

It is kept here, and not beside the handles, so that ``import qserve`` does not have to import those.
"""
execute: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""Runs a node in this process, for ``DAGNode.execute``; ``qserve`` sets it."""


def get_replica_context() -> ReplicaContext:
    """Return the replica that the calling code runs in.

    Returns:
      A ``ReplicaContext``.

    Raises:
      QserveException: The code does not run inside a deployment.

    Example:
      @serve.deployment
      class Model:
          def __init__(self) -> None:
              self.name = serve.get_replica_context().deployment

          def __call__(self) -> str:
              return self.name

      print(serve.run(Model.bind(), local=True).remote().result())  # Model
    """
    here = replica_here.get() or replica
    if here is None:
        raise QserveException(
            "`qserve.get_replica_context()` may only be called from within a deployment, in its constructor or methods"
        )
    return here


def get_request_context() -> RequestContext:
    """Return the request that the calling code runs for.

    Returns:
      A ``RequestContext``, whose fields are empty outside of a request.

    Example:
      @serve.deployment
      def who() -> str:
          return serve.get_request_context().tenant

      app = serve.run(who.bind(), local=True)
      with serve.call_context(tenant="acme"):
          print(app.remote().result())  # acme
    """
    return request_context.get()


@contextmanager
def call_context(
    *,
    tenant: str | None = None,
    headers: Mapping[str, str] | None = None,
    traceparent: str | None = None,
    tracestate: str | None = None,
) -> Iterator[None]:
    """Have the calls that are made in the body of the ``with`` carry a context, which each of their steps can read.

    The code of a deployment reads it by ``qserve.get_request_context()``, also in the steps and calls that follow. What
    is not given stays as it is: what the running request carries, or nothing.

    Parameters:
      tenant: On whose behalf the calls are made.
      headers: Up to 16 headers, of 1,024 characters each and 4,096 together.
      traceparent, tracestate: The W3C Trace Context of the caller.

    Returns:
      A context manager.

    Raises:
      TypeError, ValueError: One of these is malformed, or too long.

    Example:
      @serve.deployment
      def language() -> str:
          return serve.get_request_context().headers.get("accept-language", "en")

      app = serve.run(language.bind(), local=True)
      with serve.call_context(tenant="acme", headers={"accept-language": "de"}):
          print(app.remote().result())  # de
    """
    carried = changed(carried_here.get() or request_context.get().carried, tenant, headers, traceparent, tracestate)
    token = carried_here.set(carried)
    try:
        yield
    finally:
        carried_here.reset(token)
