"""A connection that one thread keeps, for whoever sends thousands of commands a second.

redis-py's own way takes a connection from its pool for each command, asks the socket whether old data lies there,
and counts what it does: under gevent 60 us a command, a third of what the gateway did for a request. Whoever may
have got half an answer disconnects here as well, so that no reply is ever taken for another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis

from qserve.broker.library import Command


class Direct:
    """One connection of a client, from its first command on.

    Parameters:
      client: Gives the connection, and finds another server for it when it was lost.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._pool = client.connection_pool
        self._connection: Any = None

    def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one write and answer their replies; error replies are among them.

        Raises:
          redis.RedisError, OSError: The connection is lost. Any of the commands may have been carried out.
        """
        connection = self._connection
        if connection is None:
            connection = self._connection = self._pool.get_connection()
        try:
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            return [_reply(connection) for _ in commands]
        except BaseException:
            # by itself it would connect to the same server again: only the pool asks Sentinels for another one
            self.close()
            raise

    def close(self) -> None:
        """Give the connection up."""
        if self._connection is not None:
            self._connection.disconnect()
            self._pool.release(self._connection)
            self._connection = None


def _reply(connection: Any) -> Any:
    try:
        return connection.read_response(disable_decoding=True)
    except redis.ResponseError as error:
        return error
