"""Wait for the result of a request while its client is connected, with a limit on how many wait at a time."""

from __future__ import annotations

import select
import time
from typing import Any

from gevent import monkey

from qserve.base.promise import Promise
from qserve.calls.ref import ItemRef, Ref
from qserve.exceptions import BackPressureError, RequestCancelled

IN_FLIGHT_LIMIT = 512
"""Requests that wait in one process; its other connections stay free for refusals and health checks."""
POLL_INTERVAL_S = 0.25
_HUNG_UP = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR
# gevent's own poll does not report hang-ups; the original one cannot block when it is called with a timeout of 0
_poll: Any = monkey.get_original("select", "poll")


class InFlightLimit:
    """Limits how many requests wait in this process; ``with limit:`` raises BackPressureError when there are too many.

    No lock is needed: there is one thread, and no greenlet switches in the middle of a method.
    """

    _count = 0

    def __enter__(self) -> None:
        if self._count >= IN_FLIGHT_LIMIT:
            raise BackPressureError(f"this gateway already has {IN_FLIGHT_LIMIT} requests in flight")
        self._count += 1

    def __exit__(self, *error: object) -> None:
        self._count -= 1


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
