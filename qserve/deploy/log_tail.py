"""The last lines of the logs of an application's replicas, on all hosts, kept in the broker for `qserve logs`."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from qserve.base.keys import LOG_LINES_KEPT, LOG_TTL_MS
from qserve.base.log import get_logger, request_of, text_of
from qserve.base.turns import Turns
from qserve.broker.connection import broker_errors, is_forbidden, without_strangers
from qserve.deploy.installation import Installation
from qserve.exceptions import BrokerError, WrongType
from qserve.wire.fleet import LogLine
from qserve.wire.replies import each, position, warn_once

log: Final = get_logger(__name__)
LINES_PER_S = 50
"""How many lines a process keeps in each second; the others are only counted."""
TEXT_LIMIT = 4096
"""The most characters of a line with its traceback; the beginning of a longer one is cut out after its first line."""
_SENT_EVERY_S = 0.2
"""A process that is killed loses what it has logged for so long."""
_FLUSH_FOR_S = 0.5
_FIELD = b"l"


def about(app: str, deployment: str) -> dict[str, str]:
    """Return the ``extra`` of an event of a supervisor that belongs to the log of a deployment."""
    return {"qserve_app": app, "qserve_deployment": deployment}


class LogTail(logging.Handler):
    """Collects the last events of this process, until they are sent; it never waits for the broker.

    A broker that is away for longer than the lines have room costs lines, which are counted.

    Parameters:
      installation: The lines go to its broker.
      source: The name of this process in each line.
      app, deployment: Those of all events of a replica; a supervisor says it with each, see ``about``.
    """

    def __init__(self, installation: Installation, source: str, app: str = "", deployment: str = "") -> None:
        super().__init__()
        self._installation = installation
        self._source, self._deployment = source, deployment
        self._of = about(app, deployment)
        self._lines: deque[tuple[str, LogLine]] = deque()
        self._dropped: Counter[str] = Counter()
        self._second, self._in_second = 0.0, 0
        self._sender = 0
        self._guard = self.lock or threading.RLock()  # held while an event is taken
        self._sent_at = 0.0
        self._is_sent, self._is_due = threading.Event(), threading.Event()
        self._is_sent.set()

    def emit(self, record: logging.LogRecord) -> None:
        of = {name: getattr(record, name, ours) for name, ours in self._of.items()}
        app, now = of["qserve_app"], time.monotonic()
        if not app or threading.get_ident() == self._sender:  # what it logs of its own trouble has to stay here
            return
        if now - self._second >= 1:
            self._second, self._in_second = now, 0
        self._in_second += 1
        if self._in_second > LINES_PER_S or len(self._lines) >= 2 * LINES_PER_S:
            self._dropped[app] += 1
            return
        try:
            text = _shortened(text_of(record))
        except Exception:
            self.handleError(record)
            return
        request_id, at_ms = request_of(record), record.created * 1000
        line = LogLine(at_ms, record.levelname, self._source, of["qserve_deployment"], request_id, text)
        self._lines.append((app, line))
        self._is_sent.clear()
        self._is_due.set()

    def send(self) -> None:
        """Store what was collected; after an error it is collected still.

        Crash on the way: the lines that the broker has are shown, and a line may be shown twice.

        Raises:
          BrokerError: Not all of it is stored.
        """
        with self._guard:
            lines, dropped = [*self._lines], self._dropped.copy()
        try:
            self._store(lines, dropped)
        except BrokerError as error:
            if not is_forbidden(error.__cause__):
                raise
            logging.getLogger().removeHandler(self)
            text = "no line of this process is kept for `qserve logs`: %s; see its user in `qserve doctor --acl`"
            log.warning(text, error)
        with self._guard:
            for _ in lines:
                self._lines.popleft()
            self._dropped -= dropped
            if not self._lines:
                self._is_sent.set()

    def send_if_due(self) -> None:
        """Store what was collected, a few times a second at most; for a process that has a loop of its own."""
        now = time.monotonic()
        if (self._lines or self._dropped) and now - self._sent_at >= _SENT_EVERY_S:
            self._sent_at = now
            self.send()

    @property
    def has_lines(self) -> bool:
        """Whether something was collected and is not sent."""
        return bool(self._lines or self._dropped)

    def _store(self, lines: Sequence[tuple[str, LogLine]], dropped: Mapping[str, int]) -> None:
        client, seal, now_ms = self._installation.client, self._installation.seal, time.time() * 1000
        for app in {*dropped, *(app for app, _ in lines)}:
            its = [line for of, line in lines if of == app]
            if dropped.get(app):
                its.append(LogLine(now_ms, "WARNING", self._source, self._deployment, "", _words(dropped[app])))
            key = self._installation.keys.log_lines(app)

            def store(app: str = app, its: list[LogLine] = its, key: str = key) -> None:
                pipe = client.pipeline(transaction=False)
                for data in (seal.seal(_place(app), line.encode()) for line in its):
                    pipe.xadd(key, {_FIELD: data}, maxlen=LOG_LINES_KEPT, approximate=False)
                pipe.pexpire(key, LOG_TTL_MS).execute()

            with broker_errors():
                without_strangers(client, store, key)

    # -- from a thread -----------------------------------------------------------------------------

    def start(self) -> None:
        """Collect from now on, and send from a thread, which sleeps while nothing is logged."""
        logging.getLogger().addHandler(self)
        threading.Thread(target=self._run, name="log-tail", daemon=True).start()

    def _run(self) -> None:
        self._sender = threading.get_ident()
        turns = Turns("keeping log lines for `qserve logs`", log, is_quiet=True)
        while True:
            self._is_due.wait()
            self._is_due.clear()
            with turns:
                self.send()
            if turns.failures:
                self._is_due.set()
            time.sleep(max(_SENT_EVERY_S, turns.pause_s))

    def flush(self) -> None:
        """Wait a moment until all is stored, before this process ends."""
        if self._sender and threading.get_ident() != self._sender:
            self._is_sent.wait(_FLUSH_FOR_S)


def flush() -> None:
    """Wait a moment until the lines of this process are stored."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogTail):
            with suppress(Exception):
                handler.flush()


def lines_of(installation: Installation, app: str, after: str = "") -> Iterator[tuple[str, LogLine]]:
    """Yield the lines that are kept of an application, each with its place, the oldest first.

    Parameters:
      after: Only those after this place.

    Raises:
      BrokerError: The broker does not reply, or does not let this user read them.
    """
    key = installation.keys.log_lines(app)

    def read(item: tuple[bytes, dict[bytes, bytes]]) -> tuple[str, LogLine]:
        return position(item[0]), LogLine.decode(installation.seal.open(_place(app), item[1].get(_FIELD, b"")))

    try:
        with broker_errors():
            found: Any = installation.client.xrange(key, min=f"({after}" if after else "-", count=LOG_LINES_KEPT)
    except WrongType as error:
        warn_once(f"no log lines can be read: {error}")
        return
    yield from each(found, read)


def _place(app: str) -> bytes:
    return f"log|{app}".encode()


def _words(count: int) -> str:
    return f"{count} further lines are only in the log of this process: it writes more than {LINES_PER_S} a second"


def _shortened(text: str) -> str:
    if len(text) <= TEXT_LIMIT:
        return text
    first, _, rest = text.partition("\n")
    first = first[: TEXT_LIMIT // 2]
    return f"{first}\n    ...\n{rest[len(first) - TEXT_LIMIT :]}" if rest else first
