"""Kombu's transport for Redis, which goes on after something in a queue that is not a message at all.

Kombu's own ends the worker: anybody who may write to a queue could stop it.
"""

from __future__ import annotations

from queue import Empty
from typing import Any

import kombu.transport
from kombu.transport import redis

from qserve.base.log import get_logger

log = get_logger(__name__)


class Channel(redis.Channel):  # type: ignore[misc]
    """A channel that drops what cannot be a message, and says that it is closed by an error of a connection."""

    def _connparams(self, *args: Any, **options: Any) -> Any:
        if self.connection is None:  # an acknowledgement that was under way when a message had the connection closed
            raise ConnectionResetError("this channel is closed; the task is delivered again")
        return super()._connparams(*args, **options)

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except (Empty, *self.connection_errors, *self.connection.channel_errors):
            raise  # of the broker
        except Exception as error:
            log.error("dropped something in a queue that is not a message of Celery: %r", error)
            raise Empty from None


class Transport(redis.Transport):  # type: ignore[misc]
    """The class behind the addresses of Redis in a process of `qserve tasks`."""

    Channel = Channel


def install() -> None:
    """Use it for the addresses of Redis in this process."""
    for alias in ("redis", "rediss"):
        kombu.transport.TRANSPORT_ALIASES[alias] = f"{__name__}:Transport"
