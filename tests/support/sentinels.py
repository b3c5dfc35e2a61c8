"""A primary, a replica of it and a Sentinel, from the server's own program; and a failover of either kind."""

from __future__ import annotations

import contextlib
from typing import Any

import redis
from processes import Process, Site, free_port, is_open, wait_until

from qserve.broker.connection import connect
from qserve.machine.embedded_broker import find_server

SERVICE = "mine"
PASSWORD = "of-the-broker"
DOWN_AFTER_MS = 1000


class Watched:
    """Two servers, and the Sentinel that decides which of them is the primary.

    Parameters:
      site: Where they are started.
      guarded: Whether to start the Sentinel.
    """

    def __init__(self, site: Site, guarded: bool = True) -> None:
        self.site = site
        self.ports = (free_port(), free_port())
        self.sentinel_port = free_port()
        self.servers: dict[int, Process] = {port: self.start(port) for port in self.ports}
        first, second = self.ports
        self.node(second).replicaof("127.0.0.1", str(first))
        wait_until(lambda: self.node(second).info("replication")["master_link_status"] == "up", description="a copy")
        if guarded:
            self._start_sentinel(first)

    def start(self, port: int) -> Process:
        """Start one server."""
        folder = self.site.folder / str(port)
        folder.mkdir(exist_ok=True)
        options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        options += ["--appendonly", "yes", "--requirepass", PASSWORD, "--masterauth", PASSWORD]
        options += ["--repl-diskless-sync-delay", "0"]
        server = self.site.start([find_server(), *options])
        wait_until(lambda: is_open(port), description="the server listens")
        return server

    def _start_sentinel(self, primary: int) -> None:
        lines = (
            f"port {self.sentinel_port}",
            "bind 127.0.0.1",
            f"dir {self.site.folder}",
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary} 1",
            f"sentinel auth-pass {SERVICE} {PASSWORD}",
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {SERVICE} 10000",
        )
        self.site.write("sentinel.conf", "\n".join(lines))
        self.site.start([find_server(), str(self.site.folder / "sentinel.conf"), "--sentinel"])
        wait_until(self.is_guarded, description="the Sentinel knows a replica that is well")

    @property
    def url(self) -> str:
        """The address by way of the Sentinel."""
        return f"sentinel://:{PASSWORD}@127.0.0.1:{self.sentinel_port}/{SERVICE}/0"

    def url_of(self, port: int) -> str:
        """The address of one server."""
        return f"redis://:{PASSWORD}@127.0.0.1:{port}/0"

    def node(self, port: int) -> Any:
        """A client of one server."""
        return redis.Redis(port=port, password=PASSWORD, protocol=2)

    @property
    def sentinel(self) -> Any:
        """A client of the Sentinel."""
        return redis.Redis(port=self.sentinel_port, protocol=2)

    def primary(self) -> int:
        """The port of the primary that the Sentinel names."""
        return int(self.sentinel.sentinel_get_master_addr_by_name(SERVICE)[1])

    def is_guarded(self) -> bool:
        """Whether the Sentinel lists a replica that could take over; before that it gives a failover up."""
        with contextlib.suppress(redis.RedisError):
            primary, found = self.primary(), self.sentinel.sentinel_slaves(SERVICE)
            return any(one["flags"] == "slave" and one["master-link-status"] == "ok" for one in found) and any(
                one["state"] == "online" for name, one in self.node(primary).info("replication").items()
                if name.startswith("slave") and isinstance(one, dict)
            )  # fmt: skip
        return False

    def kill_primary(self) -> int:
        """Kill the primary as if its host had gone; answers its port."""
        port = self.primary()
        self.servers[port].close()
        return port

    def wait_for_other(self, than: int) -> None:
        """Wait until another server is the primary, and takes writes."""

        def writes() -> bool:
            with contextlib.suppress(redis.RedisError, OSError):
                if self.primary() != than:
                    with contextlib.closing(connect(self.url)) as client:
                        return bool(client.set("test", "1", px=1000))
            return False

        wait_until(writes, description="another primary takes over")
