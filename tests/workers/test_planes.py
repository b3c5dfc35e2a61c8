"""A command that cannot be written fails alone: those that leave with it are sent, and get their own replies."""

from __future__ import annotations

import asyncio
import threading
from contextlib import closing
from typing import Any

import pytest
from qserve_workers.replica.plane import LoopPlane

from qserve.base.settings import Settings
from qserve.broker.link import Link
from qserve.calls.client import ClientPlane
from qserve.exceptions import BrokerError

UNWRITABLE = ("ECHO", "\udc80")


def refuse_application(app: str) -> Any:
    raise AssertionError("no application is needed")


def check(replies: dict[int, Any]) -> None:
    assert {place: replies[place] for place in (0, 1, 3, 4)} == {place: b"%d" % place for place in (0, 1, 3, 4)}
    assert isinstance(replies[2], BrokerError)
    assert "cannot be" in str(replies[2])


def commands() -> list[tuple[str, Any]]:
    return [UNWRITABLE if place == 2 else ("ECHO", str(place)) for place in range(5)]


def test_a_client_sends_the_others(settings: Settings) -> None:
    replies: dict[int, Any] = {}
    done = threading.Event()

    def on_reply(place: int, reply: Any) -> None:
        replies[place] = reply
        if place == 1:
            raise ZeroDivisionError("an error of one caller")
        if len(replies) == 5:
            done.set()

    with closing(ClientPlane(settings)) as plane:
        for place, command in enumerate(commands()):
            plane.post(command, lambda reply, place=place: on_reply(place, reply))
        assert done.wait(60)
    check(replies)


def test_a_replica_sends_the_others_and_no_reply_goes_to_another_command(settings: Settings) -> None:
    replies: dict[int, Any] = {}

    async def send() -> None:
        plane = LoopPlane(settings, refuse_application)
        await plane.open()
        done = plane.loop.create_future()

        def on_reply(place: int, reply: Any) -> None:
            replies[place] = reply
            if len(replies) == 5:
                done.set_result(None)
            if place == 1:
                raise ZeroDivisionError("an error of one caller")

        for place, command in enumerate(commands()):
            plane.post(command, lambda reply, place=place: on_reply(place, reply))
        await asyncio.wait_for(done, 10)
        plane.close()

    asyncio.run(send())
    check(replies)


def test_a_link_writes_all_of_its_commands_or_none(settings: Settings) -> None:
    replies: list[Any] = []

    async def send() -> None:
        assert settings.broker_url is not None
        link = await Link.open(settings.broker_url)
        with pytest.raises(ValueError, match="surrogates"):
            link.post([(command, replies.append) for command in commands()])
        replies.append(await link.call(("ECHO", "afterwards")))
        link.close()

    asyncio.run(send())
    assert replies == [b"afterwards"]
