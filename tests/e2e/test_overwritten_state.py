"""Somebody without a key copies entries and overwrites keys: nothing runs twice, and nobody waits for a deadline."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from processes import Started, wait_until

import qserve
from qserve.base.keys import GROUP, Keys
from qserve.broker.connection import connect
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.exceptions import QserveException

IDS_ARE_USED_UP = f"{2**64 - 1}-{2**64 - 1}"


@qserve.deployment
class Gate:
    """Notes that it runs, and goes on when the file of that name is there."""

    async def pass_on(self, place: str) -> str:
        with Path(place, "runs").open("a") as file:
            file.write("first\n")
        while not Path(place, "open").exists():
            await asyncio.sleep(0.005)
        return place

    async def go_through(self, place: str) -> Any:
        await self.pass_on(place)
        yield "item"


@qserve.deployment
def second(place: str) -> str:
    with Path(place, "runs").open("a") as file:
        file.write("second\n")
    return "result"


@pytest.fixture
def graph(started: Started) -> Any:
    with InputNode() as inp:
        return qserve.run(DAGDriver.bind(second.bind(Gate.bind().pass_on.bind(inp)))).predict


@pytest.fixture
def client(started: Started) -> Iterator[redis.Redis]:
    (folder,) = started.site.broker_folders()
    (socket,) = filter(Path.is_socket, (started.site.folder / folder).iterdir())
    connection = connect(f"unix://{socket}")
    yield connection
    connection.close()


def runs(place: Path) -> list[str]:
    return (place / "runs").read_text().split() if (place / "runs").exists() else []


def queue_of(client: redis.Redis, deployment: str) -> str:
    """The queue of the version that serves."""
    return max((name.decode() for name in client.scan_iter(f"*:q:default:*:{deployment}")), key=client.xlen)


def begin(graph: Any, place: Path) -> Any:
    ref = graph.remote(str(place))
    wait_until(lambda: runs(place) == ["first"], description="the first step runs")
    return ref


def is_idle(client: redis.Redis, queue: str) -> bool:
    return not client.xlen(queue) and not client.xpending(queue, GROUP)["pending"]


def test_copies_of_a_running_steps_entry_run_nothing_a_second_time(
    graph: Any, client: redis.Redis, tmp_path: Path, started: Started
) -> None:
    ref = begin(graph, tmp_path)
    queue = queue_of(client, "Gate")
    ((entry, fields),) = client.xrange(queue)

    for _ in range(5):
        client.xadd(queue, fields)
    wait_until(lambda: client.xlen(queue) == 1, description="the copies are gone")
    assert client.xpending(queue, GROUP)["pending"] == 1
    assert [one for one, _ in client.xrange(queue)] == [entry]
    (tmp_path / "open").touch()

    assert qserve.get(ref, timeout=30) == "result"
    for _ in range(5):
        client.xadd(queue, fields)  # also when its request has ended
    wait_until(lambda: is_idle(client, queue), description="the copies are gone")
    assert runs(tmp_path) == ["first", "second"]
    assert "it is a copy, or request" in started.log.read_text()


@pytest.mark.parametrize("has_letters", [True, False], ids=["a dead letter", "no dead letter"])
def test_a_commit_that_the_broker_refuses_ends_its_request_at_once(
    graph: Any, client: redis.Redis, tmp_path: Path, started: Started, has_letters: bool
) -> None:
    ref = begin(graph, tmp_path)
    first = queue_of(client, "Gate")
    following = first.replace(":Gate", ":second")
    letters = Keys("qserve").dead_letters
    client.xadd(following, {"h": "no message of ours"}, id=IDS_ARE_USED_UP)
    wait_until(lambda: is_idle(client, following), description="the foreign message is kept")
    if not has_letters:
        client.delete(letters)
        client.set(letters, "something else", ex=60)
    try:
        (tmp_path / "open").touch()
        with pytest.raises(QserveException, match="exhausted the last possible ID"):
            qserve.get(ref, timeout=30)

        assert is_idle(client, first)
        logged = [line for line in started.log.read_text().splitlines() if "exhausted" in line]
        assert any("ERROR" in line and ref.request_id in line for line in logged), logged
        letter = client.hgetall(Keys("qserve").dead_letter(ref.request_id))
        assert bool(letter) is has_letters
        assert not letter or letter[b"!why"] == b"refused"
        assert not letter or b"exhausted" in letter[b"!failure"]
    finally:
        client.delete(following, letters)
        client.xgroup_create(following, GROUP, "0", mkstream=True)


def test_a_request_whose_state_was_overwritten_is_named_in_the_log_and_its_entry_is_gone(
    graph: Any, client: redis.Redis, tmp_path: Path, started: Started
) -> None:
    ref = begin(graph, tmp_path)
    client.delete(Keys("qserve").request(ref.request_id))
    client.set(Keys("qserve").request(ref.request_id), "something else", ex=60)

    (tmp_path / "open").touch()

    wait_until(
        lambda: re.search(rf"ERROR.*{ref.request_id} was overwritten in the broker", started.log.read_text()),
        description="the request is named",
    )
    wait_until(lambda: is_idle(client, queue_of(client, "Gate")), description="nothing is pending")


def test_a_stream_whose_request_was_overwritten_ends(client: redis.Redis, tmp_path: Path, started: Started) -> None:
    handle = qserve.run(Gate.bind(), name="default")
    _ref = handle.options(method_name="go_through", stream=True).remote(str(tmp_path))
    wait_until(lambda: runs(tmp_path) == ["first"], description="it runs")
    queue = queue_of(client, "Gate")
    ((_, fields),) = client.xrange(queue)
    request = Keys("qserve").request(fields[b"h"][:32].decode())
    client.delete(request)
    client.set(request, "something else", ex=60)

    (tmp_path / "open").touch()

    wait_until(lambda: is_idle(client, queue), description="nothing is pending")
