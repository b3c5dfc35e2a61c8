"""Two versions of qserve on one broker: each reads what the other wrote, or parks what it cannot read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from desk import SEAL, A, Desk, header_of

from qserve.base.keys import Keys
from qserve.base.settings import Settings
from qserve.broker.functions import LIBRARY
from qserve.broker.library import Command
from qserve.deploy.dead_letters import DeadLetters
from qserve.deploy.installation import Installation
from qserve.exceptions import PayloadError
from qserve.wire.failure import Failure
from qserve.wire.moves import Join, Start

NEWER = "0123abcd"
"""The digest of a library that differs in nothing but its name."""


def in_newer(command: Command) -> Command:
    """The same call of the other version's function; other commands as they are."""
    if command[0] != "FCALL":
        return command
    name = command[1]
    assert isinstance(name, bytes)
    return (command[0], name.rpartition(b"_")[0] + b"_" + NEWER.encode(), *command[2:])


class Newer:
    """A connection on which another version of qserve works."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def execute_command(self, *command: object) -> object:
        return self._client.execute_command(*in_newer(command))  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> object:
        return getattr(self._client, name)


@pytest.fixture
def newer(client: redis.Redis, keys: Keys) -> Iterator[Desk]:
    client.function_load(LIBRARY.text.replace(LIBRARY.digest, NEWER), replace=True)
    yield Desk(Newer(client), keys)  # type: ignore[arg-type]
    client.function_delete(f"qserve_{NEWER}")


@pytest.mark.row("F45")
def test_what_one_version_has_accepted_the_other_one_moves_on_and_back_again(desk: Desk, newer: Desk) -> None:
    desk.submit(A, [Start(desk.one, "0", [b"x"]), Join(desk.two, "1", 2, [(1, b"right")])])

    ((entry, _),) = newer.fetch(desk.one)
    assert newer.commit(desk.one, entry, A, moves=[Join(desk.two, "1", 2, [(0, b"left")])]) == b"OK"
    assert desk.commit(desk.one, entry, A) == b"DUP"

    ((entry, fields),) = desk.fetch(desk.two)
    assert (fields[b"0"], fields[b"1"]) == (b"left", b"right")
    assert desk.commit(desk.two, entry, A, state="d", payload=b"result") == b"OK"
    assert newer.watch(A) == (b"d", b"result")


@pytest.mark.row("F45")
def test_a_format_of_the_future_is_parked_with_its_words_and_not_dropped(
    desk: Desk, client: redis.Redis, keys: Keys, settings: Settings
) -> None:
    future = header_of(A)[:32] + b"\x02" + header_of(A)[33:]
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    ((entry, _),) = desk.fetch(desk.one)
    with pytest.raises(PayloadError, match="only a newer qserve reads") as refused:
        SEAL.open(b"header|" + A.encode(), future[32:])

    desk.dead_letter(desk.one, entry, A, "unreadable", Failure.of(refused.value).encode())

    (letter,) = DeadLetters(Installation(settings, client)).list()
    assert (letter.request_id, letter.why) == (A, "unreadable")
    assert desk.is_idle(desk.one)
