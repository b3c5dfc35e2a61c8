"""Wait for results while clients are connected, and limit the places and the memory of the requests in flight."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gevent import monkey

from qserve.base.promise import Promise
from qserve.calls.items import PIECE_BYTES, WINDOW, ItemRef
from qserve.calls.ref import Ref
from qserve.exceptions import RequestCancelled
from qserve_gateway.request.environ import Refused

IN_FLIGHT_LIMIT = 512
"""The most places that one route may hold; half of them while other routes ask."""
PROCESS_LIMIT = 900
"""The most places of all routes together; the other connections stay free for refusals and health checks."""
CONNECTION_LIMIT = 1000
SUBMIT_LIMIT = 16 * 1024 * 1024
"""Bytes of bodies that are submitted at a time, since each is copied three times on its way; one body always is."""
STREAM_BYTES = WINDOW * PIECE_BYTES
"""The most bytes of a stream that may wait here for its client."""
_ASKED_S = 1.0
POLL_INTERVAL_S = 0.25
_HUNG_UP = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR
# gevent's own poll does not report hang-ups; the original one cannot block when it is called with a timeout of 0
_poll: Any = monkey.get_original("select", "poll")


@dataclass(slots=True)
class _Route:
    """The places that one route holds, and when it last asked for one."""

    held: int = 0
    asked_at: float = 0.0


class InFlightLimit:
    """Counts the requests in flight in this process by their route, and the bytes of large bodies and answers.

    No lock is needed: there is one thread, and no greenlet switches in the middle of a method but where it waits.

    Parameters:
      memory: The most bytes of large bodies and answers at a time.
      clock: Returns monotonic seconds.
    """

    def __init__(self, memory: int = 256 * 1024 * 1024, clock: Callable[[], float] = time.monotonic) -> None:
        self.memory = memory
        self.held = 0
        self.taken = 0
        self.submitting = 0
        self._clock = clock
        self._routes: dict[str, _Route] = {}
        self._changed = threading.Condition()

    # -- places ------------------------------------------------------------------------------------

    def enter(self, name: str) -> Place:
        """Return a place for a request to the route of this name.

        Raises:
          Refused: The route, or all routes together, have too many requests in flight (503).
        """
        route = self._routes.get(name)
        if route is None:
            route = self._routes[name] = _Route()
        route.asked_at = self._clock()
        if route.held >= max(1, IN_FLIGHT_LIMIT // 2) or self.held >= IN_FLIGHT_LIMIT:
            self._check(name, route)
        route.held += 1
        self.held += 1
        return Place(self, route)

    def _check(self, name: str, route: _Route) -> None:
        since = self._clock() - _ASKED_S
        others = any(other is not route and (other.held or other.asked_at > since) for other in self._routes.values())
        limit = max(1, IN_FLIGHT_LIMIT // 2) if others else IN_FLIGHT_LIMIT
        if route.held >= limit:
            why = " while other routes are in use" if others else ""
            message = (
                f"the route {name} already has {route.held} requests in flight in this gateway (limit {limit}{why})"
            )
            raise Refused(message, "route_full", 503, retry_after_s=1)
        # beyond the usual number a route may take as many places as it leaves free, so that the next one finds some
        if self.held >= IN_FLIGHT_LIMIT and route.held >= PROCESS_LIMIT - self.held:
            message = f"this gateway process already has {self.held} requests in flight (limit {PROCESS_LIMIT})"
            raise Refused(message, "gateway_full", 503, retry_after_s=1)

    def held_by_route(self) -> dict[str, int]:
        """Return how many requests are in flight, by the name of their route."""
        return {name: route.held for name, route in self._routes.items()}

    # -- memory ------------------------------------------------------------------------------------

    def has_room(self, size: int) -> bool:
        """Return whether that many bytes more may be taken; an answer longer than all memory comes alone."""
        return self.taken + size <= self.memory or not self.taken

    def refusal(self) -> Refused:
        """Return the error for a request whose body or answer finds no room."""
        message = (
            f"this gateway process already holds {self.taken} bytes of request bodies and answers"
            f" (limit {self.memory}, set by QSERVE_BODY_MEMORY)"
        )
        return Refused(message, "memory_full", 503, retry_after_s=1)

    def wait_for_room(self, size: int, timeout_s: float) -> bool:
        """Wait until that many bytes more may be taken; return False after the timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: self.has_room(size), timeout_s)

    def wait_for_turn(self, size: int, timeout_s: float) -> bool:
        """Wait until a body of that many bytes may be submitted; return False after the timeout."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not self.submitting or self.submitting + size <= SUBMIT_LIMIT, timeout_s
            )

    def change(self, taken: int = 0, submitting: int = 0) -> None:
        """Take bytes, or give them back, and wake those that wait for some."""
        self.taken += taken
        self.submitting += submitting
        if taken < 0 or submitting < 0:
            with self._changed:
                self._changed.notify_all()


class Place:
    """The place of one request and the bytes that it holds; ``leave`` gives all back, and may be called twice."""

    __slots__ = ("_limit", "_route", "taken")

    def __init__(self, limit: InFlightLimit, route: _Route) -> None:
        self._limit = limit
        self._route: _Route | None = route
        self.taken = 0

    def take(self, size: int) -> None:
        """Count bytes before they are read.

        Raises:
          Refused: There is no memory left for them (503).
        """
        if not self._limit.has_room(size):
            raise self._limit.refusal()
        self.hold(self.taken + size)

    def hold(self, size: int) -> None:
        """Hold exactly that many bytes, which are here already, instead of those taken before."""
        if size != self.taken:
            self._limit.change(size - self.taken)
            self.taken = size

    def hand_over(self) -> Callable[[], None]:
        """Count the bytes as those of a submission, and return what must be called when the broker has them."""
        limit, left = self._limit, [self.taken]
        self.taken = 0
        limit.change(submitting=left[0])

        def submitted() -> None:
            if left:
                size = left.pop()
                limit.change(-size, -size)

        return submitted

    def leave(self) -> None:
        """Give the place and its bytes back."""
        self.hold(0)
        route, self._route = self._route, None
        if route is not None:
            route.held -= 1
            self._limit.held -= 1


def is_disconnected(sock: Any) -> bool:
    """Return whether the client has closed the connection; False when the connection is not known (None)."""
    if sock is None:
        return False
    try:
        poller = _poll()
        poller.register(sock.fileno(), _HUNG_UP)
        return any(events & _HUNG_UP for _, events in poller.poll(0))
    except (OSError, ValueError):
        return True


def wait_for_result(ref: Ref, timeout_s: float, sock: Any) -> bool:
    """Wait until a request has ended or the first item of its stream has arrived; return False after the timeout.

    Raises:
      RequestCancelled: The client closed the connection.
    """
    if _arrival(ref).wait(min(POLL_INTERVAL_S, timeout_s)):
        return True
    # only a request that takes long costs the system calls that watch its client
    end = time.monotonic() + timeout_s - POLL_INTERVAL_S
    while (left_s := end - time.monotonic()) > 0:
        if is_disconnected(sock):
            raise RequestCancelled("the client closed the connection")
        if _arrival(ref).wait(min(POLL_INTERVAL_S, left_s)):
            return True
    return False


def _arrival(ref: Ref) -> Promise:
    return ref.ready() if isinstance(ref, ItemRef) else ref.done
