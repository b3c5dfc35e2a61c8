"""The live page of an installation without processes: a real broker, and what workers would have written there."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from socketserver import ThreadingMixIn
from types import MappingProxyType
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest
import redis
from desk import SEAL, Desk
from qserve_gateway.handler import handle
from qserve_gateway.ui.feed import Feed
from qserve_gateway.ui.page import Ui
from qserve_gateway.ui.sessions import ACT, SEE, Sessions

from qserve.base.settings import Settings
from qserve.broker import functions
from qserve.deploy.installation import Installation
from qserve.fleet.totals import publish
from qserve.graph.plan import InputKey, Plan, Slot, Step
from qserve.overview.observer import Observer
from qserve.wire.application import ApplicationRecord, DeploymentRecord, dump_plan
from qserve.wire.codec import Codec
from qserve.wire.envelope import Header
from qserve.wire.events import Event, Happening
from qserve.wire.failure import Failure
from qserve.wire.fleet import HostRecord
from qserve.wire.moves import Start
from qserve.wire.sealing import event_context, seal_end, seal_header, seal_moves
from qserve.wire.status import RUNNING, ReplicaStatus
from qserve.wire.totals import Snapshot

SEE_TOKEN, ACT_TOKEN = "a-token-for-looking", "a-token-for-acting"
HOSTILE = "<img src=x onerror=alert(1)>&\"'`"


@dataclass
class Shop:
    """An application "shop" of two steps, with replicas, in a broker, and its page.

    Parameters:
      url: The address of the page; "" as long as it is not served.
      reads: How often its feed has read the broker.
    """

    installation: Installation
    desk: Desk
    url: str = ""
    reads: int = 0
    records: list[ApplicationRecord] = field(default_factory=list)

    def deploy(
        self,
        name: str = "shop",
        steps: tuple[str, ...] = ("Detect", "Rank"),
        version: str = "v1",
        handles: Mapping[str, list[str]] = MappingProxyType({}),
    ) -> None:
        plan = Plan(
            tuple(Step(one, "__call__", (Slot(0),), {}, 1) for one in steps),
            {InputKey(): ((0, 0),)} | {number: ((number + 1, 0),) for number in range(len(steps) - 1)},
            len(steps) - 1,
        )
        record = ApplicationRecord(
            name,
            version,
            steps[0],
            f"/{'shop' if name == 'shop' else 'other'}",
            deployments={one: DeploymentRecord(one, max_ongoing=4) for one in (*steps, *chain(*handles.values()))},
            graphs={"": dump_plan(plan, Codec())},
            handles={**handles},
        )
        self.installation.registry.stage(record)
        self.installation.registry.promote(record)
        self.records.append(record)
        self.installation.fleet.offer(HostRecord("a-1", "host-a", 8))
        for one in steps:
            self.report(name, one, version)

    def report(self, app: str, deployment: str, version: str = "v1", state: str = RUNNING, message: str = "") -> None:
        name = f"{deployment}-{version}-{state}"
        status = ReplicaStatus(name, deployment, version, state, 7, "host-a", message, worker="a-1")
        self.installation.reports(app).report(status)

    def publish(self, worker: str, said: Snapshot) -> None:
        """Have a worker publish what it has counted."""
        one = self.installation
        assert publish(one.client, one.keys, one.seal, worker, said, False)

    def queue(self, deployment: str, calls: int) -> None:
        """Have calls wait since long ago."""
        stream = self.records[0].stream(self.installation.keys, deployment)
        for number in range(calls):
            self.installation.client.xadd(stream, {b"h": b"x"}, id=f"1-{number}")

    def submit(self, request_id: str, is_traced: bool = False) -> None:
        """Submit a request whose first step runs; if it is traced, its replica has said so."""
        record, desk = self.records[0], self.desk
        stream = record.stream(self.installation.keys, record.ingress)
        header = seal_header(SEAL, Header(request_id, record.name, "", 9_999_999_999_000).encode())
        desk.submit(request_id, [Start(stream, "0", [b"x"])], header=header, is_traced=is_traced)
        ((entry, _),) = desk.fetch(stream)
        if is_traced:
            started = Event(Happening.STARTED, time.time(), record.ingress, "0", 1, queued_ms=20.0, replica="Detect-1")
            event = SEAL.seal(event_context(request_id), started.encode())
            command = functions.note(desk.keys.request(request_id), stream, entry, "0", event, False)
            desk.client.execute_command(*command)

    def fail(self, request_id: str, message: str = "no such model", traceback: str = "Traceback of the test") -> None:
        """Leave a dead letter of a call of the first step with the argument "pen"."""
        record, desk = self.records[0], self.desk
        stream = record.stream(self.installation.keys, record.ingress)
        failure = Failure("builtins", "ValueError", message, traceback, "Detect-1").encode()
        header = seal_header(SEAL, Header(request_id, record.name, None, 0).encode())
        moves = seal_moves(SEAL, request_id, [Start(stream, "__call__", [Codec().encode("pen")])])
        desk.submit(request_id, moves, header=header)
        ((entry, _),) = desk.fetch(stream)
        desk.dead_letter(stream, entry, request_id, "retries", seal_end(SEAL, request_id, "f", failure))


@pytest.fixture
def shop(settings: Settings, client: redis.Redis, desk: Desk) -> Iterator[Shop]:
    shop = Shop(Installation(settings, client), desk)
    observer = Observer(Installation(settings))

    def look() -> Any:
        shop.reads += 1
        return observer.look()

    ui = Ui(Sessions({SEE: SEE_TOKEN.encode(), ACT: ACT_TOKEN.encode()}), Installation(settings), Feed(look, 0.1))

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        return handle(environ, ui.serve, None)(environ, start_response)

    server = make_server("127.0.0.1", 0, app, _Server, _Quiet)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    shop.url = f"http://127.0.0.1:{server.server_port}/-/ui"
    yield shop
    server.shutdown()
    thread.join()
    server.server_close()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of browsers that leave."""


class _Quiet(WSGIRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass
