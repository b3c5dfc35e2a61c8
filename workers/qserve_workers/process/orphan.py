"""A replica whose supervisor is gone ends: nobody would hand its calls over, or replace it."""

from __future__ import annotations

import os
import threading

from qserve.base.log import get_logger

log = get_logger(__name__)
_LOOK_S = 0.1
FINISH_FOR_S = 1.5
"""How long such a replica may finish what it runs; the kernel has told it to stop by then."""


def end_with(parent: int, exit_code: int) -> None:
    """Have this process end when ``parent`` is no longer its parent, whatever its main thread does.

    What it runs until then stays pending at the broker, where another supervisor finds it.
    """

    def watch() -> None:
        pause = threading.Event()
        while os.getppid() == parent:
            pause.wait(_LOOK_S)
        log.warning("the supervisor is gone; this replica ends")
        pause.wait(FINISH_FOR_S)
        os._exit(exit_code)

    threading.Thread(target=watch, name="orphan-watch", daemon=True).start()
