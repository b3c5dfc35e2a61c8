"""A plane that carries nothing: it notes calls and settles their refs at once, or never."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from qserve.base.keyring import Keyring
from qserve.base.keys import Keys
from qserve.base.promise import Promise
from qserve.calls.events import Logged
from qserve.calls.mailbox import Mailbox
from qserve.calls.ref import Call, Ref
from qserve.exceptions import BrokerUnavailable, ValueLost
from qserve.http.render import render
from qserve.wire.application import ApplicationRecord, DriverRecord
from qserve.wire.claim import BROKER, MEMORY, Claim
from qserve.wire.codec import Codec
from qserve.wire.outcome import Outcome
from qserve.wire.sealing import Seal


def plain_app(name: str = "plain", prefix: str | None = "/", **more: Any) -> ApplicationRecord:
    return ApplicationRecord(name, "v1", "Ingress", prefix, **more)


def driver_app(
    adapter: str = "json_request",
    routes: tuple[str, ...] | None = None,
    name: str = "graph",
    prefix: str = "/",
    **more: Any,
) -> ApplicationRecord:
    return ApplicationRecord(name, "v1", "DAGDriver", prefix, driver=DriverRecord(adapter, routes), **more)


@dataclass
class FakeRegistry:
    records: list[ApplicationRecord]
    change: str = "1-0"
    away: bool = False
    published: dict[str, str] = field(default_factory=dict)
    staged: ApplicationRecord | None = None

    def _check(self) -> None:
        if self.away:
            raise BrokerUnavailable("the broker cannot be reached: tcp://secret-host:6379")

    def last_change(self) -> str:
        self._check()
        return self.change

    def names(self) -> list[str]:
        self._check()
        return [record.name for record in self.records]

    def serving(self, app: str) -> tuple[ApplicationRecord, ApplicationRecord | None] | None:
        found = next((record for record in self.records if record.name == app), None)
        return None if found is None else (found, self.staged)

    def publish(self, beat: str, change: str) -> None:
        self._check()
        self.published[beat] = change

    def wait_for_change(self, after: str, timeout_s: float) -> str:
        self._check()
        return self.change


@dataclass
class FakeClient:
    registry: FakeRegistry

    def ping(self) -> None:
        self.registry._check()


class FakeFiller:
    """Stores a value of a ``FakeStore``."""

    tier = MEMORY

    def __init__(self, store: FakeStore) -> None:
        self.store, self.data = store, bytearray()

    def write(self, piece: memoryview) -> None:
        """Store a piece."""
        if self.store.error is not None:
            raise self.store.error
        self.data += piece

    def finish(self) -> Claim:
        """Return the claim of all pieces."""
        self.store.open -= 1
        return self.store.add(bytes(self.data))

    def abort(self) -> None:
        """Forget them."""
        self.store.open -= 1


class FakeStore:
    """A payload store in this process."""

    threshold = 100_000
    max_bytes = 1 << 30

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.open = 0
        self.error: Exception | None = None

    def add(self, data: bytes) -> Claim:
        """Store a value."""
        name = f"{len(self.values):032x}"
        self.values[name] = data
        return Claim(BROKER, "", name, len(data), bytes(32))

    def put(self, parts: Any, size: int, kind: Any) -> Claim:
        """Store a value of one part."""
        ((_, data),) = parts
        return self.add(bytes(data))

    def filler(self, kind: Any, size: int | None = None) -> FakeFiller:
        """Store a value that comes in pieces."""
        self.open += 1
        return FakeFiller(self)

    def pieces(self, claim: Claim) -> Iterator[bytes]:
        """Return a value in pieces."""
        for begin in range(0, claim.size, 70_000):
            if claim.name not in self.values:
                raise ValueLost("it is gone")
            yield self.values[claim.name][begin : begin + 70_000]

    def is_heavy(self, size: int, kind: Any) -> bool:
        """Nothing takes long."""
        return False

    def get(self, claim: Claim) -> memoryview:
        """Return a value."""
        return memoryview(self.values[claim.name])

    def forget(self, claims: Any) -> None:
        """Remove values."""
        for claim in claims:
            self.values.pop(claim.name, None)


class FakePlane:
    """Settles each call with ``outcome``, or with ``value`` rendered; ``silent`` leaves them open."""

    def __init__(self, *records: ApplicationRecord) -> None:
        self.registry = FakeRegistry(list(records))
        self.client = FakeClient(self.registry)
        self.keys = Keys()
        self.store = FakeStore()
        self.codec = Codec(values=self.store)
        self.seal = Seal(Keyring())
        self.mailbox = Mailbox(self.keys, self.seal, lambda command, on_reply: None, counts=True)
        self.value: Any = "hello"
        self.outcome: Outcome | None = None
        self.error: Exception | None = None
        self.silent = False
        self.calls: list[Call] = []
        self.expired: list[Ref] = []
        self.cancelled: list[Ref] = []
        self.cached: dict[str, ApplicationRecord] = {}
        self.faults: dict[str, Any] = {}

    def submit(self, call: Call) -> Ref:
        self.calls.append(call)
        if self.error is not None:
            raise self.error
        ref = Ref("0" * 32, None)
        if not self.silent:
            ref.settle(self.outcome or Outcome("d", render(self.value, call.answer, self.codec)))
        return ref

    def execute(self, command: Any) -> Any:
        """A broker that knows of no request."""
        return [None] * 4

    def progress(self, request_id: str) -> Promise[Any]:
        """Nothing has said how far it is."""
        asked: Promise[Any] = Promise()
        asked.set(None)
        return asked

    def events(self, request_id: str, after: int) -> Promise[Any]:
        """Nothing has happened."""
        asked: Promise[Any] = Promise()
        asked.set(Logged([]))
        return asked

    def cache_application(self, record: ApplicationRecord, staged: object, for_s: float) -> None:
        self.cached[record.name] = record

    def expire(self, ref: Ref) -> None:
        self.expired.append(ref)

    def look(self, ref: Ref) -> bool:
        return ref.done.is_set()

    def add_credit(self, request_id: str, items: int) -> None:
        """There is no producer that waits."""

    def cancel(self, ref: Ref) -> None:
        self.cancelled.append(ref)
