"""A broker that comes back takes a while to load its data: it knows the time by then, and none of its keys."""

from __future__ import annotations

import asyncio
import contextlib

import redis
from brokers import Broker
from invariants import check
from load import new_job
from processes import Site, wait_until
from qserve_workers.replica.plane import LoopPlane
from qserve_workers.replica.reader import Backlog, Delivery, StreamReader
from qserve_workers.replica.spec import ReplicaSpec
from rows import row
from stacks import Stack

from qserve.base.keys import GROUP
from qserve.base.settings import Settings
from qserve.broker.connection import load_functions
from qserve.wire.application import ApplicationRecord, DeploymentRecord

RECORD = ApplicationRecord("app", "v", "One", deployments={"One": DeploymentRecord("One")})
COMMANDS = 20_000
SLOWLY = ("--key-load-delay", "50")
"""Makes the server wait so many microseconds after each command that it reads."""
_LOST_CONNECTION = r"the connection to the broker was lost|cannot be reached|cannot answer now: LOADING|cannot be used"


def is_loading(broker: Broker) -> bool:
    """Whether a broker that is about to come back answers, and says that it loads its data."""
    with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
        return bool(broker.client.info("persistence")["loading"])
    return False


@row("F59", priority=True)
def test_what_was_delivered_when_the_broker_died_is_read_when_it_has_loaded_its_data(site: Site) -> None:
    broker = Broker(site)
    broker.fill(COMMANDS)
    settings = Settings(broker_url=broker.url)
    spec, taken = ReplicaSpec("One-1", RECORD, "One", settings), list[Delivery]()
    met: list[bool] = []

    async def scene() -> None:
        plane = LoopPlane(settings, lambda app: RECORD)
        await plane.open()
        reader = StreamReader(
            spec,
            plane,
            Backlog(spec.keys, spec.stream),
            room=lambda: 9,
            accept=lambda delivery, _: taken.append(delivery),
            on_out_of_files=print,
        )
        await reader.open()

        def kill() -> None:
            with broker.client.pipeline() as pipe:  # delivered, and the reply is lost
                pipe.xadd(spec.stream, {"h": "x"})
                pipe.xreadgroup(GROUP, spec.name, {spec.stream: ">"})
                pipe.execute()
            broker.kill()
            broker.start(*SLOWLY, waits=False)
            wait_until(lambda: is_loading(broker), description="the broker loads its data")
            met.append(True)
            wait_until(lambda: taken, description="the call is read")

        await asyncio.to_thread(kill)
        await reader.close()
        reader.disconnect()
        plane.close()

    load_functions(broker.client)
    asyncio.run(scene())
    assert met and [delivery.fields[b"h"] for delivery in taken] == [b"x"]


@row("F59")
def test_a_broker_that_is_killed_again_and_again_and_loads_slowly_loses_nothing(stack: Stack) -> None:
    stack.broker.fill(COMMANDS)
    load = stack.load()
    load.more(50)
    slow = stack.handles()
    waiting = []

    for _ in range(5):
        waiting += [slow.send(new_job(sleep_s={"left": 0.2})) for _ in range(20)]
        with load.fault():
            stack.broker.kill()
            stack.broker.start(*SLOWLY)
            wait_until(stack.is_serving, description="the gateway is healthy")
        load.more(25)
    slow.wait(waiting)
    calls = load.stop()

    assert [call for call in waiting if call.accepted and not call.is_right] == []
    check(stack, [*calls, *waiting], load=load, reruns=0, may_log=[_LOST_CONNECTION])
