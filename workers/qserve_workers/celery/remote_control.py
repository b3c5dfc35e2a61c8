"""Celery's remote control (``inspect``, ``control``) in a thread beside the consumer's loop."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from celery import bootsteps
from celery.worker.consumer import Tasks
from celery.worker.pidbox import Pidbox

from qserve.base.log import get_logger

log = get_logger(__name__)
_WAIT_S = 0.25
"""How long the end of a replica may wait for this thread; Celery's own service waits up to a second."""


class RemoteControl(bootsteps.StartStopStep):  # type: ignore[misc]
    """Takes the place of Celery's ``Control`` step; outlives a lost connection."""

    requires = (Tasks,)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._box = Pidbox(consumer)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, consumer: Any) -> None:
        """Begin to answer."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._serve, args=(consumer,), name="remote-control", daemon=True)
        self._thread.start()

    def stop(self, consumer: Any) -> None:
        """Answer no more."""
        self._stopping.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(2 * _WAIT_S)

    shutdown = stop

    def _serve(self, consumer: Any) -> None:
        while not self._stopping.is_set():
            try:
                with consumer.app.connection_for_read() as connection:
                    self._listen(connection)
            except Exception as error:
                log.debug("remote control is away: %s", error)
                self._stopping.wait(1.0)

    def _listen(self, connection: Any) -> None:
        node = self._box.node
        node.channel = connection.channel()
        with node.listen(callback=self._box.on_message):
            while not self._stopping.is_set():
                with contextlib.suppress(TimeoutError):
                    connection.drain_events(timeout=_WAIT_S)
