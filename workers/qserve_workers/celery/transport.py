"""A kombu transport over Redis Streams, read in batches.

Every queue of a deployment is a stream with the consumer group ``replicas``. Reading puts an entry into the
group's pending list in the same command, so nothing is ever only in a socket; acknowledging deletes it, so
nothing finished can be delivered again. Celery's own control messages travel on lists and short streams.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from queue import Empty
from typing import Any, NamedTuple

import kombu.transport
import msgpack
from kombu.transport import virtual

from qserve.base.keys import CONTROL_TTL_MS, GROUP, Keys
from qserve.broker.address import revealed
from qserve.broker.connection import CLIENT_ERRORS, CLIENT_VERSION, connect, create_group, process_name

ALIAS = "qserve"
kombu.transport.TRANSPORT_ALIASES[ALIAS] = "qserve_workers.celery.transport:Transport"

CALL_TASK = "qserve.call"
"""The Celery task that a stream entry is for."""

_CONTROL_PREFIXES = ("celery.pidbox", "celeryev")
_HEADERS = {"task": CALL_TASK, "id": ""}


class Tag(NamedTuple):
    """What acknowledges a delivery."""

    stream: str
    entry_id: bytes


class Delivery(virtual.Message):  # type: ignore[misc]
    """One call, as the stream gave it: ``fields`` are the entry's raw fields."""

    def __init__(self, fields: dict[bytes, bytes], channel: Any, tag: Tag) -> None:
        # kombu's own constructor decodes a payload; a call has none, and this runs once a message
        self.fields = fields
        self.channel = channel
        self.delivery_tag = tag
        self.headers = _HEADERS
        self.properties: dict[str, Any] = {}
        self.delivery_info: dict[str, Any] = {}
        self.body = b""
        self.content_type = "application/x-qserve"
        self.content_encoding = "binary"
        self.accept = None
        self.errors: list[Any] = []
        self._state = "RECEIVED"
        self._decoded_cache = None


class Ledger(virtual.QoS):  # type: ignore[misc]
    """The deliveries of one channel that are not yet acknowledged or committed."""

    def __init__(self, channel: Channel, prefetch_count: int = 0) -> None:
        self.channel = channel
        self.prefetch_count = prefetch_count or 0
        self.held: OrderedDict[Any, Any] = OrderedDict()
        self._delivered = self.held
        self._dirty: set[Any] = set()

    def can_consume(self) -> bool:
        """Whether another message may be fetched."""
        return not self.prefetch_count or len(self.held) < self.prefetch_count

    def can_consume_max_estimate(self) -> int:
        """How many messages may be fetched now."""
        return max(1, (self.prefetch_count or 64) - len(self.held))

    def append(self, message: Any, tag: Any) -> None:
        """Note a delivery."""
        self.held[tag] = message

    def settle(self, tag: Any) -> None:
        """Strike off a delivery that a commit has acknowledged."""
        self.held.pop(tag, None)

    def ack(self, tag: Any) -> None:
        """Acknowledge a delivery of an ordinary Celery task."""
        if self.held.pop(tag, None) is not None and isinstance(tag, Tag):
            self.channel.remove(tag)

    def reject(self, tag: Any, requeue: bool = False) -> None:
        """Drop a delivery, or leave it pending for the hand-over to others."""
        if requeue:
            self.held.pop(tag, None)
        else:
            self.ack(tag)

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Nothing to do: what is pending stays pending at the broker, and is handed over there."""


class Channel(virtual.Channel):  # type: ignore[misc]
    """kombu's channel; each has one connection, since a blocking read occupies it."""

    QoS = Ledger
    supports_fanout = True

    def __init__(self, connection: Transport, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        options = connection.client.transport_options
        self.keys = Keys(options.get("namespace", "qserve"))
        self.client = connect(revealed(options["url"]))
        self.consumer_name = options.get("consumer") or process_name()
        self._fanouts: dict[str, tuple[str, str]] = {}

    # -- queues ------------------------------------------------------------------------------------

    def _is_control(self, queue: str) -> bool:
        return queue in self._fanouts or queue.endswith(_CONTROL_PREFIXES) or queue.startswith(_CONTROL_PREFIXES)

    def _new_queue(self, queue: str, **kwargs: Any) -> None:
        if not self._is_control(queue):
            create_group(self.client, queue)

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        if self.typeof(exchange).type == "fanout":
            stream = self.keys.fanout(exchange)
            last = self.client.xrevrange(stream, count=1)
            self._fanouts[queue] = (stream, last[0][0].decode() if last else "0-0")

    def _lookup(self, exchange: str, routing_key: str, default: str | None = None) -> list[str]:
        # kombu keeps bindings in the memory of the process that made them; who asked for a reply is elsewhere, and
        # kombu names such queues after their exchange
        if exchange.startswith("reply."):
            return [f"{routing_key}.{exchange}"]
        return list(super()._lookup(exchange, routing_key, default))

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        body = msgpack.packb(message)
        if self._is_control(queue):
            key = self.keys.control(queue)
            with self.client.pipeline() as pipe:
                pipe.rpush(key, body).pexpire(key, CONTROL_TTL_MS).execute()
        else:
            self.client.xadd(queue, {"m": body})

    def _put_fanout(self, exchange: str, message: dict[str, Any], routing_key: str, **kwargs: Any) -> None:
        key = self.keys.fanout(exchange)
        with self.client.pipeline() as pipe:
            pipe.xadd(key, {"m": msgpack.packb(message)}, maxlen=64).pexpire(key, CONTROL_TTL_MS).execute()

    def _size(self, queue: str) -> int:
        if self._is_control(queue):
            return int(self.client.llen(self.keys.control(queue)))
        return int(self.client.xlen(queue))

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return bool(self.client.exists(self.keys.control(queue) if self._is_control(queue) else queue))

    def _purge(self, queue: str) -> int:
        size = self._size(queue)
        if self._is_control(queue):
            self.client.delete(self.keys.control(queue))
        else:
            # only what nobody has begun: entries that are running belong to their replicas
            self.client.xtrim(queue, maxlen=0)
        return size

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        self._fanouts.pop(queue, None)
        if self._is_control(queue):
            self.client.delete(self.keys.control(queue))

    # -- messages ----------------------------------------------------------------------------------

    def remove(self, tag: Tag) -> None:
        """Acknowledge and delete an entry."""
        with self.client.pipeline() as pipe:
            pipe.xack(tag.stream, GROUP, tag.entry_id).xdel(tag.stream, tag.entry_id).execute()

    def basic_consume(
        self,
        queue: str,
        no_ack: bool,
        callback: Callable[[Any], None],
        consumer_tag: str,
        **kwargs: Any,
    ) -> None:
        """Register a consumer; raw messages come as ``Delivery`` (calls) or payloads (everything else)."""
        super().basic_consume(queue, no_ack, callback, consumer_tag, **kwargs)
        generic = self.connection._callbacks[queue]

        def receive(raw: Any) -> None:
            if isinstance(raw, Delivery):
                self.qos.append(raw, raw.delivery_tag)
                callback(raw)
            else:
                generic(raw)

        self.connection._callbacks[queue] = receive

    def adopt(self, stream: str, queue: str) -> None:
        """Hand entries of ``stream`` to the consumer of ``queue``."""
        self.connection._callbacks[stream] = self.connection._callbacks[queue]

    def deliver(self, stream: str, entries: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> None:
        """Hand entries of a stream to the consumer of that queue."""
        receive = self.connection._callbacks[stream]
        for entry_id, fields in entries:
            receive(Delivery(fields, self, Tag(stream, entry_id)))

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        self._get_many([queue], timeout=timeout or 0.01)
        raise Empty

    def _get_many(self, queues: list[str], timeout: float | None = None) -> None:
        control = [queue for queue in queues if self._is_control(queue)]
        if control:
            return self._get_control(control, timeout or 1.0)
        found: Any = self.client.xreadgroup(
            GROUP,
            self.consumer_name,
            dict.fromkeys(queues, ">"),
            count=self.qos.can_consume_max_estimate(),
            block=max(1, int((timeout or 1.0) * 1000)),
        )
        if not found:
            raise Empty
        for stream, entries in found:
            self.deliver(stream.decode(), entries)
        return None

    def _get_control(self, queues: list[str], timeout_s: float) -> None:
        fanouts = {self._fanouts[queue][0]: queue for queue in queues if queue in self._fanouts}
        if not fanouts:
            key_of = {self.keys.control(queue).encode(): queue for queue in queues}
            popped: Any = self.client.blpop(list(key_of), timeout=timeout_s)
            if popped is None:
                raise Empty
            self.connection._callbacks[key_of[popped[0]]](msgpack.unpackb(popped[1]))
            return
        positions = {stream: self._fanouts[queue][1] for stream, queue in fanouts.items()}
        found: Any = self.client.xread(positions, block=max(1, int(timeout_s * 1000)))
        if not found:
            raise Empty
        for stream, entries in found:
            queue = fanouts[stream.decode()]
            for entry_id, fields in entries:
                self._fanouts[queue] = (stream.decode(), entry_id.decode())
                self.connection._callbacks[queue](msgpack.unpackb(fields[b"m"]))

    def encode_body(self, body: Any, encoding: str | None = None) -> tuple[Any, str | None]:
        """Bodies travel as they are: msgpack carries bytes."""
        return body, None

    def decode_body(self, body: Any, encoding: str | None = None) -> Any:
        """The reverse of ``encode_body``."""
        return body

    def close(self) -> None:
        """Close the channel and its connection."""
        super().close()
        self.client.close()


class Transport(virtual.Transport):  # type: ignore[misc]
    """What ``transport="qserve"`` names; ``transport_options`` hold ``url`` (or its alias) and ``namespace``."""

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

    def driver_version(self) -> str:
        """redis-py's version."""
        return CLIENT_VERSION

    def verify_connection(self, connection: Any) -> bool:
        """Whether the broker answers."""
        try:
            client = connect(revealed(self.client.transport_options["url"]))
            client.ping()
            client.close()
        except CLIENT_ERRORS:
            return False
        return True
