"""Connections that carry commands in batches: ``Link`` for an asyncio loop, ``ThreadLink`` for one thread.

redis-py takes a connection from its pool for each command, asks the socket whether old data lies there, and counts what
it does: under gevent 60 us a command, a third of what the gateway did for a request. Its asyncio client takes two to
three times as long as ``Link``, where the parser is hiredis's and the rest is a queue of callbacks.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import hiredis
import redis
from redis.asyncio.connection import SSLConnection as AsyncSSLConnection
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection

from qserve.base.clock import clock
from qserve.base.forks import give_up, on_fork
from qserve.base.once import may_say
from qserve.base.turns import Turns
from qserve.broker.address import Address
from qserve.broker.functions import ACCEPTED, NOT_REPLICATED, is_submission
from qserve.broker.library import Command
from qserve.exceptions import BrokerError, BrokerUnavailable, PayloadError
from qserve.wire.replies import address as address_of
from qserve.wire.replies import time_s

ReplyError = hiredis.ReplyError

log: Final = logging.getLogger(__name__)
OnReply = Callable[[Any], object]

CONNECT_TIMEOUT_S = 3.0
SENTINEL_TIMEOUT_S = 1.0
"""How long one Sentinel may take to answer before the next is asked."""
_DEMOTED = ("READONLY", "UNBLOCKED force unblock")
PRIMARY = b"master"
_CLOSED = "the connection to the broker was closed"
_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 3}
"""The kernel's names: it asks a peer that was silent for 5 s, and gives the connection up after three seconds more. A
read may wait for longer than that, and a firewall may have forgotten its connection and no other."""
_WORDS = {
    redis.exceptions.OutOfMemoryError: "OOM",
    redis.exceptions.ReadOnlyError: "READONLY",
    redis.exceptions.MasterDownError: "MASTERDOWN",
    redis.exceptions.ClusterDownError: "CLUSTERDOWN",
    redis.exceptions.TryAgainError: "TRYAGAIN",
}


def error_text(reply: object) -> str:
    """Return the text of an error reply, of redis-py or hiredis, beginning with the word that names the state."""
    # redis-py cuts off that word, and gives the error its own class instead
    return f"{_WORDS.get(type(reply), '')} {reply}".lstrip()


def is_demotion(reply: object) -> bool:
    """Return whether an error reply, of redis-py or hiredis, says that the server is not the primary any more."""
    return error_text(reply).startswith(_DEMOTED)


class Link(asyncio.Protocol):
    """A connection that gives each reply to the callback of its command.

    An error reply arrives as a ``ReplyError``. When the connection is lost, the callbacks still waiting get a
    BrokerUnavailable, unless ``when_lost`` was called.
    """

    def __init__(self) -> None:
        self._on_lost: Callable[[list[OnReply]], None] = _fail
        self._waiting: deque[OnReply] = deque()
        self._reader = hiredis.Reader(replyError=ReplyError, protocolError=hiredis.ProtocolError)
        self._transport: asyncio.Transport | None = None
        self._heard_at = 0.0
        self._on_wait: Callable[[], object] | None = None
        self._turns = Turns("processing a reply of the broker", log)
        on_fork(self)

    def leave_to_parent(self) -> None:
        if self._transport is not None:
            give_up(self._transport.get_extra_info("socket").fileno())

    @classmethod
    async def open(cls, url: str) -> Link:
        """Connect, authenticate, select the database that ``url`` names, and measure the broker's clock.

        Under ``sentinel://`` it asks the Sentinels first where the primary is.

        Raises:
          BrokerUnavailable: The broker does not answer, refuses the credentials, or is not the primary.
        """
        address = Address.of(url)
        options = address.options
        if address.sentinels:
            options = {**options, **await _find_primary(address)}
        link = cls()
        try:
            await link._connect(options, CONNECT_TIMEOUT_S)
            await asyncio.wait_for(link._check_primary(), CONNECT_TIMEOUT_S)
        except (OSError, TimeoutError, ReplyError, BrokerError, PayloadError) as error:
            link.close()
            raise BrokerUnavailable(f"the broker cannot be reached: {str(error) or type(error).__name__}") from error
        return link

    def when_lost(self, on_lost: Callable[[list[OnReply]], None]) -> None:
        """Call ``on_lost`` once, with the callbacks that wait, when the connection is lost.

        Before this, the code that opens a connection may use ``call``. The connection can be lost between the last
        reply and the moment at which that code goes on, and then ``on_lost`` would never be called.

        Raises:
          BrokerUnavailable: It was lost before.
        """
        self._check_open()
        self._on_lost = on_lost

    def _check_open(self) -> None:
        if self._transport is None:
            raise BrokerUnavailable(_CLOSED)

    async def _connect(self, options: dict[str, Any], timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        if "path" in options:
            connecting: Any = loop.create_unix_connection(lambda: self, options["path"])
        else:
            host, port = options.get("host", "localhost"), options.get("port", 6379)
            connecting = loop.create_connection(lambda: self, host, port, ssl=tls_of(options))
        await asyncio.wait_for(connecting, timeout_s)
        if options.get("password"):
            user = (options["username"],) if options.get("username") else ()
            await asyncio.wait_for(self.call(("AUTH", *user, options["password"])), timeout_s)
        if options.get("db"):
            await asyncio.wait_for(self.call(("SELECT", options["db"])), timeout_s)

    async def _check_primary(self) -> None:
        asked_at = time.monotonic()
        replies = await asyncio.gather(self.call(("ROLE",)), self.call(("TIME",)), return_exceptions=True)
        role: Any = replies[0]
        if isinstance(role, Exception):
            if not str(role).startswith("NOPERM"):  # an old ACL, which does not permit the question
                raise role
        elif role[0] != PRIMARY:
            raise BrokerUnavailable("it is a replica now")
        clock.observe(time_s(replies[1]), asked_at)

    def post(self, commands: Sequence[tuple[Command, OnReply]]) -> None:
        """Send commands in one write; each callback gets its reply.

        Raises:
          TypeError, ValueError: One of them cannot be written, for example because of a lone surrogate; none is sent.
        """
        packed = b"".join([hiredis.pack_command(command) for command, _ in commands])  # type: ignore[arg-type]
        if not self._waiting:
            self._heard_at = time.monotonic()
        self._waiting.extend([on_reply for _, on_reply in commands])
        if self._on_wait is not None:
            on_wait, self._on_wait = self._on_wait, None
            on_wait()
        if self._transport is not None:
            self._transport.write(packed)

    async def call(self, command: Command) -> Any:
        """Send one command and wait for its reply; an error reply is raised."""
        self._check_open()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def on_reply(reply: Any) -> None:
            if not future.done():
                if isinstance(reply, Exception):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)

        self.post([(command, on_reply)])
        return await future

    def abandon_if_silent(self, limit_s: float) -> bool:
        """Abort when a command waits and the broker has sent nothing for so long; return whether it did."""
        is_silent = self.silent_s() > limit_s
        if is_silent and self._transport is not None:
            if may_say("the broker is silent", _SAID_FOR_S):
                log.warning("the broker has been silent for %.0f s; connecting again", limit_s)
            self.abort()
        return is_silent

    def call_at_next_wait(self, on_wait: Callable[[], object]) -> None:
        """Call ``on_wait`` once, when the next command waits for its reply."""
        self._on_wait = on_wait

    @property
    def is_waiting(self) -> bool:
        """Whether a command waits for its reply."""
        return bool(self._waiting)

    def silent_s(self) -> float:
        """Return for how long a command has waited without any reply; 0 when none waits."""
        return time.monotonic() - self._heard_at if self._waiting else 0.0

    def abort(self) -> None:
        """Close the connection at once; ``on_lost`` is called as if the broker had closed it."""
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close the connection without calling ``on_lost``."""
        self._on_lost = _fail
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEPALIVE.items():
                if hasattr(socket, name):  # macOS has other names
                    sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def data_received(self, data: bytes) -> None:
        self._heard_at = time.monotonic()
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            on_reply = self._waiting.popleft()
            try:
                on_reply(reply)
            except Exception as error:  # the other replies must still reach their callers
                self._turns.note(error)
            if isinstance(reply, ReplyError) and is_demotion(reply):
                self.abort()  # the next connection goes to the new primary

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        waiting, self._waiting = list(self._waiting), deque()
        self._on_lost(waiting)
        self._on_lost = _fail


def _fail(waiting: list[OnReply]) -> None:
    for on_reply in waiting:
        on_reply(BrokerUnavailable(_CLOSED))


async def _find_primary(address: Address) -> dict[str, Any]:
    """Return host and port of the primary from the first Sentinel that knows it; BrokerUnavailable when none does."""
    refusals = []
    for options in address.sentinels:
        link = Link()
        try:
            await link._connect(options, SENTINEL_TIMEOUT_S)
            asking = link.call(("SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.service))
            found = await asyncio.wait_for(asking, SENTINEL_TIMEOUT_S)
            if found is not None:
                host, port = address_of(found)
                return {"host": host, "port": port}
            refusals.append(f"{options['host']}:{options['port']} does not know {address.service!r}")
        except (OSError, TimeoutError, ReplyError, BrokerUnavailable, PayloadError) as error:
            refusals.append(f"{options['host']}:{options['port']}: {str(error) or type(error).__name__}")
        finally:
            link.close()
    raise BrokerUnavailable(f"no Sentinel names the broker's primary: {'; '.join(refusals)}")


def tls_of(options: dict[str, Any]) -> ssl.SSLContext | None:
    """Return the TLS context of a connection, None without TLS; OSError, ValueError or RedisError if it is invalid."""
    if options.get("connection_class") is not SSLConnection:
        return None
    given = {name: value for name, value in options.items() if name.startswith("ssl_")}
    context: ssl.SSLContext = AsyncSSLConnection(**{"ssl_check_hostname": True, **given}).ssl_context.get()
    return context


# -- for threads -----------------------------------------------------------------------------------


class _Ours:
    """A connection that no forked child shares, and that closes when its server is not the primary any more.

    The next one then looks for the primary.
    """

    _sock: socket.socket | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        on_fork(self)

    def leave_to_parent(self) -> None:
        if self._sock is not None:
            give_up(self._sock.fileno())

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().read_response(*args, **kwargs)  # type: ignore[misc]
        except redis.ResponseError as error:
            if not is_demotion(error):
                raise
            self.disconnect()  # type: ignore[attr-defined]
            raise redis.ConnectionError(f"the broker is a replica now: {error}") from error


_PLAIN = (Connection, SSLConnection, UnixDomainSocketConnection)
CLASSES: dict[type[Connection], type[Connection]] = {
    kind: type(kind.__name__, (_Ours, kind), {})
    for kind in (*_PLAIN, SentinelManagedConnection, SentinelManagedSSLConnection)
}
"""Our subclass of each of redis-py's classes."""

WAIT_MS = 200
WAIT: Command = ("WAIT", 1, WAIT_MS)
_SAID_FOR_S = 5.0
_JOINED_BYTES = 64 * 1024
"""Commands of more bytes than this together are not copied once more to leave in one write."""


class ThreadLink:
    """One connection of a client, kept for a thread that sends thousands of commands a second.

    After an error it disconnects: what is left of a reply is never taken for the reply to another command.

    Parameters:
      client: Gives the connection, and finds another server for it when it was lost.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._pool = client.connection_pool
        self._connection: Any = None

    def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one write and return their replies, error replies included.

        Raises:
          redis.RedisError, OSError: The connection is lost. Any of the commands may have been carried out.
        """
        connection = self._connection
        if connection is None:
            connection = self._connection = self._pool.get_connection()
        try:
            # not by redis-py's own packing, which takes 2 us a command, and several writes for a batch
            packed: list[bytes] = [hiredis.pack_command(command) for command in commands]  # type: ignore[arg-type]
            is_short = sum(map(len, packed)) <= _JOINED_BYTES
            connection.send_packed_command([b"".join(packed)] if is_short else packed, check_health=False)
            return [_reply(connection) for _ in commands]
        except BaseException:
            # by itself it would connect to the same server again: only the pool asks Sentinels for another one
            self.close()
            raise

    @property
    def is_open(self) -> bool:
        """Whether there is a connection; it may have been lost, which the next exchange tells."""
        return self._connection is not None

    def wait_for_loss(self, seconds: float) -> None:
        """Wait for so long, or only until the connection is lost, which is closed then."""
        if self._connection is None:
            time.sleep(seconds)
            return
        try:
            is_lost = self._connection.can_read(seconds)  # nothing is asked, so there is nothing else to read
        except (redis.RedisError, OSError):
            is_lost = True
        if is_lost:
            self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.disconnect()
            self._pool.release(self._connection)
            self._connection = None


def _reply(connection: Any) -> Any:
    try:
        return connection.read_response(disable_decoding=True)
    except redis.ResponseError as error:
        return error


def replicated(send: Callable[[list[Command]], list[Any]], commands: list[Command]) -> list[Any]:
    """Send commands and, when there are submissions among them, wait until a replica has those.

    One wait serves all commands that leave together. Crash, or failover, before its reply: the request may run, and its
    caller does not know that it was accepted.

    Parameters:
      send: Sends commands over one connection, and returns their replies.

    Returns:
      The replies; ``NOT_REPLICATED`` for accepted submissions that no replica had after ``WAIT_MS``.
    """
    if not any(map(is_submission, commands)):
        return send(commands)
    *replies, copies = send([*commands, WAIT])
    if isinstance(copies, int) and copies > 0:
        return replies
    return [
        NOT_REPLICATED if is_submission(command) and reply in ACCEPTED else reply
        for command, reply in zip(commands, replies, strict=True)
    ]
