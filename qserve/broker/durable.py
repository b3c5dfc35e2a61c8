"""``durability="replica"``: a request is accepted when a replica of the broker has it as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qserve.broker.functions import is_submission
from qserve.broker.library import Command

NOT_REPLICATED = b"NOREPLICA"
"""Stands in the place of the answer to a submission that only the primary has."""
WAIT_MS = 200
WAIT: Command = ("WAIT", 1, WAIT_MS)
_ACCEPTED = (b"OK", b"DUP")


def replicated(send: Callable[[list[Command]], list[Any]], commands: list[Command]) -> list[Any]:
    """Send commands and, when there are submissions among them, wait until a replica has those.

    One wait serves all commands that leave together. Crash, or failover, before it is answered: the request may
    run, and nobody was told that it was accepted.

    Parameters:
      send: Sends commands over one connection, and answers their replies.

    Returns:
      The replies; ``NOT_REPLICATED`` for accepted submissions that no replica had after ``WAIT_MS``.
    """
    if not any(map(is_submission, commands)):
        return send(commands)
    *replies, copies = send([*commands, WAIT])
    if isinstance(copies, int) and copies > 0:
        return replies
    return [
        NOT_REPLICATED if is_submission(command) and reply in _ACCEPTED else reply
        for command, reply in zip(commands, replies, strict=True)
    ]
