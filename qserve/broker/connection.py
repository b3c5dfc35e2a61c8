"""Clients of the broker: how they connect, and how redis-py's errors become ours."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel, SentinelManagedConnection, SentinelManagedSSLConnection

from qserve.base.clock import clock
from qserve.base.keys import GROUP, kind_of
from qserve.broker.address import Address
from qserve.broker.functions import LOAD, forget
from qserve.broker.library import Command
from qserve.broker.link import CLASSES, CONNECT_TIMEOUT_S, PRIMARY, SENTINEL_TIMEOUT_S, error_text
from qserve.exceptions import BrokerError, BrokerFull, BrokerUnavailable, WrongType
from qserve.wire.replies import text, time_s, warn_once

T = TypeVar("T")
Client: TypeAlias = redis.Redis
"""A client of the broker, as ``connect`` returns it; other rooms know redis-py by this name only."""
CLIENT_ERRORS = (redis.RedisError, OSError)
"""The errors of a client when the broker is away or refuses a command."""
CLIENT_VERSION = str(redis.__version__)

READ_TIMEOUT_S = 5.0
BLOCK_S, SILENT_FOR_S = 4.0, 7.0
"""How long a blocking read waits at the broker, and after how long without a reply it has lost its connection."""
IDLE_BLOCK_S = 20.0
"""The same for the reads of a replica, whose heartbeats notice much sooner that the broker is silent."""
MAILBOX_BLOCK_S = 0.5
"""The same for mailboxes: a process that waits learns within twice this time that the broker has lost its data."""
STRAY_READ_S = 0.5
"""How much longer than it blocks the broker may go on with a read of a mailbox whose connection was lost, and remove
messages for it."""

LONGEST_PAUSE_S = 1.0
"""The longest wait between two tries to connect: a failover takes four seconds, and should not take two more."""

# States that pass by themselves, which redis-py reports as plain ResponseErrors (reliability.md, 0.12).
_TRANSIENT = (
    "NOGROUP", "UNBLOCKED", "READONLY", "MISCONF", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY ",
    "NOREPLICAS", "LOADING",
)  # fmt: skip

MEMORY_SETTING = "maxmemory in its configuration, QSERVE_BROKER_MAXMEMORY for the embedded broker"
_FULL = (
    f"the broker is full: it uses all the memory that it may ({MEMORY_SETTING}); it finishes what it has accepted, and"
    " takes new requests as calls end and results expire"
)

CROWDED = (
    f"results that wait to be fetched take a quarter of the memory that the broker may use ({MEMORY_SETTING}): more are"
    " accepted when some of these have expired (QSERVE_RESULT_TTL_S)"
)

_OVERWRITTEN = ("WRONGTYPE", "value is not an integer")
_FORBIDDEN = redis.exceptions.NoPermissionError
"""The reply to a question that an old ACL does not permit."""
_OPTIONS: dict[str, Any] = {
    "protocol": 2,
    "retry": Retry(NoBackoff(), 0),
    "socket_connect_timeout": CONNECT_TIMEOUT_S,
    "health_check_interval": 0,
    # redis-py would read its own package's metadata for each connection, and report it in two more commands
    **({"driver_info": None} if hasattr(redis, "DriverInfo") else {"lib_name": None, "lib_version": None}),
}


def connect(url: str, silent_for_s: float = SILENT_FOR_S) -> redis.Redis:
    """Return a client of the broker that never sends a command twice by itself; QserveException for a wrong address.

    redis-py's own retries would add a call twice when only the reply was lost; the code that uses this client repeats
    what is safe to repeat. Under ``sentinel://`` each new connection goes to the primary of that moment.

    Parameters:
      url: The broker's address.
      silent_for_s: Seconds after which a command without a reply has lost its connection.
    """
    address = Address.of(url)
    options = {**_OPTIONS, "socket_timeout": silent_for_s, **address.options, "redis_connect_func": _on_connect}
    plain = options.pop("connection_class", Connection)
    if not address.sentinels:
        return redis.Redis.from_pool(redis.ConnectionPool(connection_class=CLASSES[plain], **options))
    sentinel = _Sentinels([])
    sentinel.sentinels = [sentinel_client(own) for own in address.sentinels]
    managed = SentinelManagedSSLConnection if plain is SSLConnection else SentinelManagedConnection
    options["connection_class"] = CLASSES[managed]
    return sentinel.master_for(address.service, **options)


class _Sentinels(Sentinel):  # type: ignore[misc]
    """Sentinels whose error says in words which of them were asked, and what each has said."""

    def discover_master(self, service_name: str) -> tuple[str, int]:
        said = []
        for number, sentinel in enumerate(self.sentinels):
            options = sentinel.connection_pool.connection_kwargs
            place = f"{options.get('host')}:{options.get('port')}"
            try:
                known = sentinel.sentinel_masters()
            except (redis.ConnectionError, redis.TimeoutError) as error:
                said.append(f"{place} cannot be reached: {str(error).rstrip('.')}")
                continue
            state = known.get(service_name)
            if state is None:
                said.append(f"{place} watches {', '.join(map(repr, sorted(known))) or 'nothing'}")
            elif not self.check_master_state(state, service_name):
                said.append(f"{place} says that it is down")
            else:  # this one is asked first from now on
                self.sentinels[0], self.sentinels[number] = sentinel, self.sentinels[0]
                return state["ip"], state["port"]
        raise MasterNotFoundError(f"no Sentinel names a primary of {service_name!r}: {'; '.join(said)}")


def sentinel_client(options: dict[str, Any]) -> redis.Redis:
    """Return a client of one Sentinel, given its options from ``Address``."""
    limits = {"socket_timeout": SENTINEL_TIMEOUT_S, "socket_connect_timeout": SENTINEL_TIMEOUT_S}
    options = {"connection_class": Connection, **_OPTIONS, **limits, **options}
    options["connection_class"] = CLASSES[options["connection_class"]]
    return redis.Redis.from_pool(redis.ConnectionPool(**options))


def _on_connect(connection: Any) -> None:
    """Greet the broker as redis-py does, and ask for its time and whether it is the primary."""
    connection.on_connect()
    if isinstance(connection, SentinelManagedConnection):
        with suppress(_FORBIDDEN):
            connection.send_command("ROLE")
            if bytes(connection.read_response()[0]) != PRIMARY:
                # Sentinel may name the old primary for a moment longer
                raise redis.ConnectionError("the broker is a replica now; its Sentinels will name another primary")
    asked_at = time.monotonic()
    with suppress(_FORBIDDEN):
        connection.send_command("TIME")
        clock.observe(time_s(connection.read_response()), asked_at)


def measure_clock(client: redis.Redis, *, at_once: bool = False) -> None:
    """Measure the broker's clock when that is due, or at once.

    Raises:
      redis.ConnectionError: The broker does not answer.
    """
    if at_once or clock.is_due():
        asked_at = time.monotonic()
        with suppress(_FORBIDDEN):
            clock.observe(time_s(client.execute_command("TIME")), asked_at)


@contextmanager
def broker_errors() -> Iterator[None]:
    """Turn redis-py's errors into BrokerUnavailable (try again later) or BrokerError."""
    try:
        yield
    except redis.AuthenticationError as error:
        # redis-py counts it among the connection errors, but trying again does not help
        raise BrokerError(f"the broker refuses the password: {error}") from error
    except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
        raise BrokerUnavailable(f"the broker cannot be reached: {error}") from error
    except redis.ResponseError as error:
        raise refusal(error) from error


def refusal(reply: object) -> BrokerError:
    """Return the error for an error reply, of redis-py or hiredis; one of ours, which came in its place, as it is."""
    if isinstance(reply, BrokerError):
        return reply
    text = error_text(reply)
    if text.startswith("OOM"):
        return BrokerFull(_FULL)
    if is_transient(reply):
        return BrokerUnavailable(f"the broker cannot answer now: {text}")
    if any(word in text for word in _OVERWRITTEN):
        return WrongType(f"a key in the broker holds something else than qserve has stored there: {text}")
    return BrokerError(f"the broker refused a command: {text}")


def is_transient(reply: object) -> bool:
    """Return whether an error reply, of redis-py or hiredis, names a state of the broker that passes by itself."""
    return error_text(reply).startswith(_TRANSIENT)


def without_strangers(client: redis.Redis, change: Callable[[], T], *keys: str) -> T:
    """Return what ``change`` returns; when a key holds another type than it needs, ``keys`` are removed first.

    A key of another type was overwritten: none of our data is in it, and readers could not go on.

    Crash after the removal: what was in there is gone, and the next caller finds the key free.
    """
    try:
        return change()
    except redis.ResponseError as error:
        if not isinstance(refusal(error), WrongType):
            raise
    for key in keys:
        # the only key needs no check, and not every role may ask for types
        if len(keys) == 1 or text(client.type(key), "a type") not in ("none", kind_of(key)):
            warn_once(f"key {key} was overwritten with something else, and is removed")
            client.delete(key)
    return change()


def if_permitted(ask: Callable[[], dict[str, T]], on_refusal: Callable[[], object] = bool) -> dict[str, T]:
    """Return what ``ask`` returns; nothing where the broker's ACL forbids it, after a call of ``on_refusal``."""
    try:
        return ask()
    except BrokerError as error:
        if not is_forbidden(error.__cause__):
            raise
        on_refusal()
        return {}


def if_there(ask: Callable[[], list[T]]) -> list[T]:
    """Return the reply to a question about a queue; nothing when it is gone, as one of an old version may be."""
    try:
        return ask()
    except redis.ResponseError as error:
        if not is_gone(error):
            raise
        return []


def is_gone(reply: object) -> bool:
    """Return whether an error reply, of redis-py or hiredis, says that there is no such queue."""
    return error_text(reply).removeprefix("ERR ").startswith(("no such key", "NOGROUP"))


@broker_errors()
def load_functions(client: redis.Redis) -> None:
    """Load the function library; harmless when it is there already.

    Where an ACL lets only the deployer load it, the library has to be there.

    Raises:
      BrokerUnavailable: It is not there yet, and may not be loaded from here.
    """
    with suppress(_FORBIDDEN):
        client.execute_command(*LOAD)
        return
    try:
        client.execute_command(*forget(()))  # of nothing: any function would do
    except redis.ResponseError as error:
        if not is_unknown_function(error):
            raise
        raise BrokerUnavailable(
            "this version's functions are not in the broker, and this user may not load them: run `qserve deploy` first"
        ) from error


def is_forbidden(reply: object) -> bool:
    """Return whether an error reply says that an ACL forbids a command, or one that a function calls."""
    words = ("ACL failure in script", "can't run this command")  # Valkey and Redis 7.2, Redis 7.0
    return isinstance(reply, _FORBIDDEN) or (isinstance(reply, Exception) and any(one in str(reply) for one in words))


def is_unknown_function(reply: object) -> bool:
    """Return whether an error reply, of redis-py or hiredis, says that the function library is not loaded."""
    return isinstance(reply, Exception) and "Function not found" in str(reply)


def process_name() -> str:
    """Return a name that no other process has, on any host at any time."""
    return f"{os.getpid()}-{os.urandom(6).hex()}"


def group_command(stream: str) -> Command:
    """Return the command that creates a queue's stream and group, always from the stream's beginning, so that nothing
    added before is skipped."""
    return ("XGROUP", "CREATE", stream, GROUP, "0", "MKSTREAM")


def group_exists(reply: object) -> bool:
    """Return whether the reply to ``group_command`` says that the group is there, now or from before."""
    return not isinstance(reply, Exception) or str(reply).startswith("BUSYGROUP")


def create_group(client: redis.Redis, stream: str) -> None:
    """Create a queue's stream and group unless they exist; another type of key in their place is removed."""
    try:
        without_strangers(client, lambda: client.execute_command(*group_command(stream)), stream)
    except redis.ResponseError as error:
        if not group_exists(error):
            raise
