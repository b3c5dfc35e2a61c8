"""A broker that a test may kill, freeze, and start again on the same data."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from processes import Process, Site, free_port, is_alive, wait_until
from users import ADMIN, as_user, write_users

from qserve.broker.connection import connect
from qserve.machine.embedded_broker import find_server


class Broker:
    """A Valkey with its append-only file on, as the documents advise.

    Parameters:
      site: Where it runs.
      folder: Where its data lie; None for a folder of its own.
      guarded: Whether it has the users of the sample ACL, and nobody comes in without being one.
      options: More options of the server, such as ``("--maxmemory", "50mb")``.
      running: Whether to start it at once.
    """

    def __init__(
        self,
        site: Site,
        folder: Path | None = None,
        options: tuple[str, ...] = (),
        running: bool = True,
        guarded: bool = False,
    ) -> None:
        self._site = site
        self.port = free_port()
        self.folder = folder or site.folder / f"data-{self.port}"
        self.folder.mkdir(exist_ok=True)
        self._options = options
        self._guarded = guarded
        if guarded:
            self._options += ("--aclfile", str(write_users(self.folder)))
        self.process: Process
        if running:
            self.start()
        self.client: redis.Redis = connect(self.url)

    @property
    def url(self) -> str:
        """Its address."""
        return self.as_user(f"redis://127.0.0.1:{self.port}/0", ADMIN)

    def as_user(self, url: str, user: str) -> str:
        """An address that leads here, for one of its users."""
        return as_user(url, user) if self._guarded else url

    def fill(self, commands: int) -> None:
        """Have it carry out so many commands, which it has to read again when it starts."""
        with self.client.pipeline(transaction=False) as pipe:
            for number in range(commands):
                pipe.set("filling", number)
            pipe.execute()

    def start(self, *options: str, waits: bool = True) -> None:
        """Start it on its data, with more options of the server, and wait until it answers."""
        given = [
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)),
            # as the embedded one: with `everysec` it answers before it writes while a sync is under way
            *("--save", "", "--appendonly", "yes", "--appendfsync", "no"),
            *("--maxmemory-policy", "noeviction", "--logfile", str(self.folder / "log")),
        ]
        self.process = self._site.start([find_server(), *given, *self._options, *options])
        if waits:
            wait_until(self._answers, description="the broker answers")

    def _answers(self) -> bool:
        try:
            with connect(self.url) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def kill(self) -> None:
        """End it at once, as a crash does."""
        self.process.signal(signal.SIGKILL)
        self.process.wait()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop it in its tracks; connections stay open and silent."""
        self.process.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.signal(signal.SIGCONT)

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return is_alive(self.process.pid)
