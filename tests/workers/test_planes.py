"""What a plane sends: a command that cannot be written fails alone, and a call that was cancelled is not sent again."""

from __future__ import annotations

import asyncio
import threading
from contextlib import closing
from typing import Any

import pytest
import redis
from desk import Desk
from qserve_workers.replica.plane import LoopPlane

from qserve.base.context import RequestContext, Run, request_context
from qserve.base.keys import Keys
from qserve.base.settings import Settings
from qserve.broker.connection import load_functions
from qserve.broker.link import Link
from qserve.calls.client import ClientPlane
from qserve.calls.handles import DeploymentHandle, bound
from qserve.calls.mailbox import ignore
from qserve.calls.ref import Call
from qserve.exceptions import BrokerError, RequestCancelledError
from qserve.wire.application import ApplicationRecord, DeploymentRecord
from qserve.wire.outcome import Field

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


@pytest.mark.parametrize(("epoch", "version"), [("", "v"), ("1", "retired")], ids=["another epoch", "another version"])
def test_a_call_that_is_cancelled_before_it_would_be_sent_again_is_not_sent_again(
    client: redis.Redis, keys: Keys, settings: Settings, epoch: str, version: str
) -> None:
    desk = Desk(client, keys)
    record = ApplicationRecord("app", version, "one", deployments={"one": DeploymentRecord("one")})
    with closing(ClientPlane(settings)) as plane:
        load_functions(plane.client)
        plane.cache_application(record, for_s=1000)
        plane.mailbox.change_epoch(epoch)
        plane.post(("BLPOP", keys.mailbox("nobody"), "0.3"), ignore)  # what is posted meanwhile is sent together

        ref = plane.submit(Call("app", "one", args=(1,), timeout_s=100))
        ref.cancel()

        with pytest.raises(RequestCancelledError):
            ref.result(timeout_s=60)
        assert client.xlen(desk.one) == 0


def test_code_of_a_request_that_is_not_traced_may_have_its_calls_traced(
    client: redis.Redis, keys: Keys, settings: Settings
) -> None:
    Desk(client, keys)
    record = ApplicationRecord("app", "v", "one", deployments={"one": DeploymentRecord("one")})

    async def submit() -> list[bool]:
        plane = LoopPlane(settings, lambda app: record)
        await plane.open()
        request_context.set(RequestContext(runs=(Run("a", "0", "stream", b"1-0", 1),)))
        handle = bound(DeploymentHandle("one", "app"), plane)
        responses = [handle.options(trace=asks).remote(1) for asks in (False, True)]
        await plane.settled(60)
        ids = [one.request_id for one in responses]
        traced = [client.hexists(keys.request(one), Field.TRACED) for one in ids]
        plane.close()
        return traced

    assert asyncio.run(submit()) == [False, True]
