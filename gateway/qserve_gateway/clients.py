"""Whether the client of a request is still there, so that nobody works for one that is not."""

from __future__ import annotations

import select
from typing import Any

from gevent import monkey

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
