"""A kombu transport for Celery's control messages: commands to workers, their replies, and events.

Commands and events are broadcast by short streams, replies travel on lists. Calls of deployments do not come this
way: a replica reads their streams itself.

Like every message of qserve, a command and a reply are sealed with the installation's key, for their stream or list.
So the key is needed to stop a replica, or to reply for one. A broadcast also carries its time, because somebody who
can write to the broker could send an old one again.
"""

from __future__ import annotations

from functools import partial
from queue import Empty
from typing import Any, NoReturn

import kombu.transport
import msgpack
from kombu.transport import virtual

from qserve.base.clock import clock
from qserve.base.keyring import Keyring, key_id
from qserve.base.keys import CONTROL_TTL_MS, Keys
from qserve.broker.address import revealed
from qserve.broker.connection import (
    CLIENT_ERRORS,
    CLIENT_VERSION,
    READ_TIMEOUT_S,
    connect,
    measure_clock,
    without_strangers,
)
from qserve.exceptions import PayloadError
from qserve.wire.replies import control_message, each, last_position, position
from qserve.wire.sealing import Seal

ALIAS = "qserve"
kombu.transport.TRANSPORT_ALIASES[ALIAS] = "qserve_workers.celery.transport:Transport"

BLOCK_S = 30.0
"""How long one read waits for a message at most; kombu asks again until its own timeout is over."""
_KEPT_BROADCASTS = 64
_KEPT_EVENTS = 512
"""The messages with events that are kept for slow readers; each has 60 kB at most."""
_TIME_BYTES = 8
_seals: dict[str, Seal] = {}


def register_seal(keys: Keyring) -> str:
    """Return a name for these keys that may be shown; only this process can use it, in ``transport_options``."""
    name = key_id(keys.current).hex() if keys.current else ""
    _seals[name] = Seal(keys)
    return name


class Channel(virtual.Channel):  # type: ignore[misc]
    """A kombu channel with its own connection, because a blocking read occupies it."""

    supports_fanout = True
    do_restore = False
    body_encoding = None  # msgpack carries bytes

    def __init__(self, connection: Transport, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        options = connection.client.transport_options
        self._keys = Keys(options.get("namespace", "qserve"))
        self._seal = _seals[options.get("key", "")]
        self._client = connect(revealed(options["url"]), silent_for_s=BLOCK_S + READ_TIMEOUT_S)
        self._client.ping()  # kombu takes a channel that exists for one that works

    # -- queues ------------------------------------------------------------------------------------

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        if self.typeof(exchange).type == "fanout":
            stream = self._keys.fanout(exchange)
            last = without_strangers(self._client, partial(self._client.xrevrange, stream, count=1), stream)
            self.connection.broadcasts[queue] = (stream, last_position(last) or "0-0")

    def _lookup(self, exchange: str, routing_key: str, default: str | None = None) -> list[str]:
        # kombu knows only the bindings made in this process. The queue of a reply is bound in another one, and
        # kombu names such queues after their exchange.
        if exchange.startswith("reply."):
            return [f"{routing_key}.{exchange}"]
        return list(super()._lookup(exchange, routing_key, default))

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        self.connection.broadcasts.pop(queue, None)
        self._client.delete(self._keys.control(queue))

    # -- messages ----------------------------------------------------------------------------------

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        if not queue.endswith(".celery.pidbox") and not queue.startswith("celeryev"):
            refuse_task()
        key = self._keys.control(queue)
        with self._client.pipeline() as pipe:
            pipe.rpush(key, self._sealed(key, message)).pexpire(key, CONTROL_TTL_MS).execute()

    def _put_fanout(self, exchange: str, message: dict[str, Any], routing_key: str, **kwargs: Any) -> None:
        key = self._keys.fanout(exchange)
        fields = {"m": self._sealed(key, message)}
        with self._client.pipeline() as pipe:
            kept = _KEPT_EVENTS if exchange == "celeryev" else _KEPT_BROADCASTS
            pipe.xadd(key, fields, maxlen=kept).pexpire(key, CONTROL_TTL_MS).execute()

    def _get_many(self, queues: list[str], timeout: float | None = None) -> None:
        timeout_s = min(timeout or 1.0, BLOCK_S)
        broadcasts = {
            queue: self.connection.broadcasts[queue] for queue in queues if queue in self.connection.broadcasts
        }
        if broadcasts:
            self._get_broadcasts(broadcasts, timeout_s)
        else:
            self._get_replies(queues, timeout_s)

    def _get_broadcasts(self, positions: dict[str, tuple[str, str]], timeout_s: float) -> None:
        queues = {stream.encode(): queue for queue, (stream, _) in positions.items()}
        read = partial(self._client.xread, dict(positions.values()), block=max(1, int(timeout_s * 1000)))
        found: Any = without_strangers(self._client, read, *dict(positions.values()))
        if not found:
            raise Empty
        for stream, entries in found:
            queue = queues[stream]
            for entry_id, fields in entries:
                self.connection.broadcasts[queue] = (positions[queue][0], position(entry_id))
                for message in each([fields.get(b"m")], partial(self._opened, positions[queue][0])):
                    self.connection._deliver(message, queue)

    def _get_replies(self, queues: list[str], timeout_s: float) -> None:
        key_of = {self._keys.control(queue).encode(): queue for queue in queues}
        keys = [self._keys.control(queue) for queue in queues]
        popped: Any = without_strangers(self._client, partial(self._client.blpop, keys, timeout=timeout_s), *keys)
        if popped is None:
            raise Empty
        queue = key_of[popped[0]]
        for message in each(popped[1:], partial(self._opened, self._keys.control(queue))):
            self.connection._deliver(message, queue)

    def _sealed(self, key: str, message: dict[str, Any]) -> bytes:
        sent_at = round(clock.now_ms()).to_bytes(_TIME_BYTES)
        return self._seal.seal(b"control|" + key.encode(), sent_at + msgpack.packb(message))

    def _opened(self, key: str, sealed: bytes | None) -> dict[str, Any]:
        body = self._seal.open(b"control|" + key.encode(), sealed or b"")
        sent_ms = int.from_bytes(body[:_TIME_BYTES])
        if not clock.is_near(sent_ms, CONTROL_TTL_MS):
            measure_clock(self._client, at_once=True)  # the sender may have noticed first that it was set
            if not clock.is_near(sent_ms, CONTROL_TTL_MS):
                raise PayloadError("a control message is older than a minute")
        return control_message(body[_TIME_BYTES:])

    def close(self) -> None:
        super().close()
        self._client.close()


class Transport(virtual.Transport):  # type: ignore[misc]
    """The class behind ``transport="qserve"``; ``transport_options`` hold ``url`` (or its alias) and ``namespace``.

    ``broadcasts`` has the stream of each queue that takes broadcasts, and the last entry that was read.
    """

    Channel = Channel
    driver_type = "redis"
    driver_name = "redis"
    polling_interval = None
    # every passing state of the broker is a lost connection and never a channel error: Celery ends a worker
    # on channel errors (reliability.md, 0.12)
    connection_errors = (*virtual.Transport.connection_errors, *CLIENT_ERRORS)
    channel_errors = ()
    implements = virtual.Transport.implements.extend(
        asynchronous=False, exchange_type=frozenset(["direct", "fanout", "topic"])
    )

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self.broadcasts: dict[str, tuple[str, str]] = {}

    def driver_version(self) -> str:
        return CLIENT_VERSION


def refuse_task() -> NoReturn:
    """Refuse to run a deployment's call as a Celery task.

    Raises:
      NotImplementedError: Always; the message says what to use.
    """
    raise NotImplementedError(
        "calls of deployments are not Celery messages: call qserve.get_deployment_handle(deployment).method.remote(...)"
        ", or start `qserve tasks` and send the task with a Celery application of your own"
    )
