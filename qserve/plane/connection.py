"""The one place that opens connections to the broker, and where redis-py's errors become ours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from qserve.exceptions import BrokerError, BrokerUnavailable
from qserve.keys import GROUP
from qserve.plane.address import read_address
from qserve.plane.functions import forget
from qserve.plane.library import LOAD

CONNECT_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 5.0
BLOCK_S = 2.0
"""How long a blocking read waits at the broker; a read that is silent for longer than this and
``READ_TIMEOUT_S`` has lost its connection."""
MAILBOX_BLOCK_S = 1.0
"""The same for mailboxes: whoever waits learns within twice this time that the broker has lost its data."""
STRAY_READ_S = MAILBOX_BLOCK_S + 0.5
"""How long a mailbox may go on being read at the broker after its connection was lost here, and take what arrives."""

# States that pass by themselves, which redis-py reports as plain ResponseErrors (reliability.md, 0.12).
_TRANSIENT = (
    "NOGROUP", "UNBLOCKED", "READONLY", "MISCONF", "OOM", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY",
    "NOREPLICAS", "LOADING",
)  # fmt: skip

_WORDS = {
    redis.exceptions.OutOfMemoryError: "OOM",
    redis.exceptions.ReadOnlyError: "READONLY",
    redis.exceptions.MasterDownError: "MASTERDOWN",
    redis.exceptions.ClusterDownError: "CLUSTERDOWN",
    redis.exceptions.TryAgainError: "TRYAGAIN",
}


def connect(url: str) -> redis.Redis:
    """A client of the broker that never sends a command twice by itself; QserveException for a wrong address.

    redis-py's own retries would add a call twice when only the reply was lost; whoever uses this client
    repeats what is safe to repeat.
    """
    read_address(url)
    return redis.Redis.from_url(
        url,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=BLOCK_S + READ_TIMEOUT_S,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        health_check_interval=0,
    )


@contextmanager
def broker_errors() -> Iterator[None]:
    """Turn redis-py's errors into BrokerUnavailable (try again later) or BrokerError."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
        raise BrokerUnavailable(f"the broker cannot be reached: {error}") from error
    except redis.ResponseError as error:
        raise refusal(error) from error


def refusal(reply: object) -> BrokerError:
    """The error for an error reply of the broker, as redis-py or hiredis gives it."""
    # redis-py cuts the word off that names the state, and gives the error a class of its own instead
    word = _WORDS.get(type(reply), "")
    text = f"{word} {reply}".lstrip()
    if text.startswith(_TRANSIENT):
        return BrokerUnavailable(f"the broker cannot answer now: {text}")
    return BrokerError(f"the broker refused a command: {text}")


def load_functions(client: redis.Redis) -> None:
    """Load the function library; harmless when it is there already.

    Where an ACL leaves that to whoever deploys, the library only has to be there.

    Raises:
      BrokerUnavailable: It is not there yet, and may not be loaded from here.
    """
    with broker_errors():
        try:
            client.execute_command(*LOAD)
            found = True
        except redis.exceptions.NoPermissionError:
            found = _has_functions(client)
    if not found:
        raise BrokerUnavailable(
            "this version's functions are not in the broker, and this user may not load them: run `qserve deploy` first"
        )


def _has_functions(client: redis.Redis) -> bool:
    try:
        client.execute_command(*forget(()))  # of nothing: any function would tell
    except redis.ResponseError as error:
        if "Function not found" not in str(error):
            raise
        return False
    return True


def process_name() -> str:
    """A name that no other process of any host has, at any time."""
    return f"{os.getpid()}-{os.urandom(6).hex()}"


def create_group(client: redis.Redis, stream: str) -> None:
    """Create a queue's stream and group unless they exist; always from the stream's beginning, so that
    nothing added before is skipped."""
    try:
        client.xgroup_create(stream, GROUP, id="0", mkstream=True)
    except redis.ResponseError as error:
        if not str(error).startswith("BUSYGROUP"):
            raise
