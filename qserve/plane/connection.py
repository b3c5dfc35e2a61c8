"""The one place that opens connections to the broker, and where redis-py's errors become ours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from qserve.exceptions import BrokerError, BrokerUnavailable
from qserve.plane.functions import LOAD

CONNECT_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 5.0
BLOCK_S = 2.0
"""How long a blocking read waits at the broker; a read that is silent for longer than this and
``READ_TIMEOUT_S`` has lost its connection."""

# States that pass by themselves, which redis-py reports as plain ResponseErrors (reliability.md, 0.12).
_TRANSIENT = (
    "NOGROUP", "UNBLOCKED", "READONLY", "MISCONF", "OOM", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY",
    "NOREPLICAS", "LOADING",
)  # fmt: skip


def connect(url: str) -> redis.Redis:
    """A client of the broker that never sends a command twice by itself.

    redis-py's own retries would add a call twice when only the reply was lost; whoever uses this client
    repeats what is safe to repeat.
    """
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
        raise refusal(str(error)) from error


def refusal(text: str) -> BrokerError:
    """The error for an error reply of the broker."""
    if text.startswith(_TRANSIENT):
        return BrokerUnavailable(f"the broker cannot answer now: {text}")
    return BrokerError(f"the broker refused a command: {text}")


def load_functions(client: redis.Redis) -> None:
    """Load the function library; harmless when it is there already."""
    with broker_errors():
        client.execute_command(*LOAD)


def process_name() -> str:
    """A name that no other process of any host has, at any time."""
    return f"{os.getpid()}-{os.urandom(6).hex()}"
