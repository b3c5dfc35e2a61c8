"""Whether the client of a request is still there, so that nobody works for one that is not."""

from __future__ import annotations

import select
import time
from typing import Any

from gevent import monkey

from qserve.base.promise import Promise
from qserve.calls.items import ItemRef
from qserve.calls.ref import Ref
from qserve.exceptions import RequestCancelled

LOOK_EVERY_S = 0.25
_GONE = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR
# gevent's own poll knows nothing of hang-ups; asked with no wait, the original one cannot block
_poll: Any = monkey.get_original("select", "poll")


def is_gone(sock: Any) -> bool:
    """Whether the other side of a connection has closed it.

    Parameters:
      sock: The connection; None where it is not known.
    """
    if sock is None:
        return False
    try:
        poller = _poll()
        poller.register(sock.fileno(), _GONE)
        return any(events & _GONE for _, events in poller.poll(0))
    except (OSError, ValueError):
        return True


def wait_for_answer(ref: Ref, timeout_s: float, sock: Any) -> bool:
    """Wait until a request has ended, or the first item of its answer is there; False when the time ran out.

    Parameters:
      ref: The request.
      timeout_s: Longest wait.
      sock: Its client's connection; None where it is not known.

    Raises:
      RequestCancelled: The client closed the connection.
    """
    if _answered(ref).wait(min(LOOK_EVERY_S, timeout_s)):
        return True
    # a request that takes long: from now on, see whether its client still wants it
    end = time.monotonic() + timeout_s - LOOK_EVERY_S
    while (left_s := end - time.monotonic()) > 0:
        if is_gone(sock):
            raise RequestCancelled("the client closed the connection")
        if _answered(ref).wait(min(LOOK_EVERY_S, left_s)):
            return True
    return False


def _answered(ref: Ref) -> Promise:
    return ref.changed() if isinstance(ref, ItemRef) else ref.done
