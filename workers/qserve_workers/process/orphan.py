"""A replica whose supervisor is gone ends: nobody would hand its calls over, or replace it."""

from __future__ import annotations

import os
import select
import threading
import time

from qserve.base.log import get_logger

log = get_logger(__name__)
POLL_INTERVAL_S = 0.1
FINISH_FOR_S = 1.5
"""How long such a replica may finish what it runs; the kernel has told it to stop by then."""


def end_with(parent: int, exit_code: int) -> None:
    """End this process when ``parent`` is no longer its parent, whatever its main thread does.

    What it runs until then stays pending at the broker, where another supervisor finds it.
    """

    def watch() -> None:
        _wait_for_end(parent)
        log.warning("the supervisor is gone; this replica ends")
        time.sleep(FINISH_FOR_S)
        os._exit(exit_code)

    threading.Thread(target=watch, name="orphan-watch", daemon=True).start()


def _wait_for_end(parent: int) -> None:
    try:
        end = os.pidfd_open(parent)
    except (AttributeError, OSError):  # not Linux, or a sandbox forbids it
        pass
    else:
        poll = select.poll()
        poll.register(end, select.POLLIN)
        if os.getppid() == parent:  # its id has not been given to another process
            poll.poll()
    while os.getppid() == parent:
        time.sleep(POLL_INTERVAL_S)
