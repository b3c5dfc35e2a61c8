"""Clients of several installations in one program: each has its own broker, key, clock, threads and end."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis
from processes import wait_until

import qserve
from qserve.base.clock import clock
from qserve.base.settings import Settings
from qserve.broker import functions
from qserve.broker.link import ThreadLink
from qserve.calls.client import ClientPlane
from qserve.calls.handles import submit_many
from qserve.calls.ref import Call, Ref, current
from qserve.exceptions import (
    AppNotFound,
    BackPressureError,
    BrokerError,
    BrokerUnavailable,
    PayloadError,
    QserveException,
)
from qserve.handle import DeploymentHandle
from qserve.machine.embedded_broker import EmbeddedBroker
from qserve.payloads.shm_folder import SHM
from qserve.wire.application import ApplicationRecord, DeploymentRecord
from qserve.wire.outcome import State

KEYS = {"one": "the-key-of-this-test", "two": "another-key-of-a-test"}
Connect = Callable[[str], qserve.Client]


def shop(limit: int = -1) -> ApplicationRecord:
    """An application that no worker runs: its calls wait."""
    deployments = {name: DeploymentRecord(name, max_queued=limit) for name in ("Model", "Other")}
    return ApplicationRecord("shop", "v", "Model", deployments=deployments)


@pytest.fixture
def connect_to(broker: EmbeddedBroker, settings: Settings) -> Iterator[Connect]:
    """Connects to one of two installations, each of which has the application."""
    with ExitStack() as stack:
        names = {name: f"{settings.namespace}.{name}" for name in KEYS}
        for name, key in KEYS.items():
            plane = ClientPlane(Settings(broker_url=broker.url, namespace=names[name], secret_key=key.encode()))
            for record in (
                shop(),
                ApplicationRecord(name, "v", "Model", route_prefix=None, deployments=shop().deployments),
            ):
                plane.registry.stage(record)
                plane.registry.promote(record)
            plane.close()

        def connected(name: str) -> qserve.Client:
            client = qserve.connect(broker.url, secret_key=KEYS[name], namespace=names[name])
            made = weakref.ref(client.get_ref("0" * 32).plane)
            stack.callback(lambda: (plane := made()) is None or plane.is_closed or plane.close())
            return client

        yield connected


def waiting(client: redis.Redis, namespace: str) -> int:
    """How many calls wait in an installation."""
    streams = client.scan_iter(f"*{namespace}*:q:shop:*", count=1000)
    return sum(client.xlen(stream) for stream in streams)


def namespace_of(client: qserve.Client) -> str:
    return repr(client).split("'")[1]


def threads() -> set[threading.Thread]:
    return {one for one in threading.enumerate() if one.name in ("qserve-sender", "qserve-mailbox")}


# -- several installations -------------------------------------------------------------------------


def test_each_handle_and_ref_stays_with_the_client_that_made_it(connect_to: Connect, client: redis.Redis) -> None:
    one, two = connect_to("one"), connect_to("two")
    handles = [one.get_app_handle("shop"), two.get_deployment_handle("Other", "shop").options(multiplexed_model_id="m")]

    calls = [handle.predict.options(method_name="again").remote(5) for handle in handles for _ in range(2)]
    qserve.accepted(calls, timeout_s=60)

    assert [waiting(client, namespace_of(one)), waiting(client, namespace_of(two))] == [2, 2]
    assert current.installed is None or current.installed is not one.get_ref(calls[0].request_id).plane
    with pytest.raises(AppNotFound):
        one.get_app_handle("two")
    with pytest.raises(AppNotFound, match="no deployment 'Nobody'; it has: Model, Other"):
        two.get_deployment_handle("Nobody", "shop")
    for own, other in ((one, two), (two, one)):
        request_id = next(call.request_id for call in calls if call.ref.plane is own.get_ref("0" * 32).plane)
        own.get_ref(request_id).accepted(60)  # it is open
        with pytest.raises(QserveException, match="no longer stored"):
            other.get_ref(request_id).result(60)


def test_handles_of_different_clients_are_different(connect_to: Connect) -> None:
    one, two = connect_to("one"), connect_to("two")
    handle = one.get_app_handle("shop")

    assert handle == one.get_app_handle("shop") != two.get_app_handle("shop")
    assert handle != DeploymentHandle("Model", "shop") == pickle.loads(pickle.dumps(handle))
    with pytest.raises(ValueError, match="is not a handle of this client"):
        two.submit_many(handle, [(1,)])
    with pytest.raises(TypeError, match=r"call qserve\.connect there"):
        pickle.dumps(one)


@pytest.mark.parametrize("by", ["remote", "submit_many"])
def test_a_result_of_another_installation_is_no_argument(connect_to: Connect, by: str) -> None:
    one, two, again = connect_to("one"), connect_to("two"), connect_to("one")
    call = one.get_app_handle("shop").predict.remote(5)
    call.accepted(60)
    handle = two.get_app_handle("shop").predict

    with pytest.raises(PayloadError, match=f"{call.request_id}, which belongs to another installation: wait for it"):
        handle.remote(call) if by == "remote" else two.submit_many(handle, [(call,)])[0].result(60)
    again.get_app_handle("shop").predict.remote(call).accepted(60)  # the same installation, by another client


# -- what a client has stored ----------------------------------------------------------------------


@pytest.fixture
def plane(broker: EmbeddedBroker, settings: Settings) -> Iterator[ClientPlane]:
    plane = ClientPlane(
        Settings(broker_url=broker.url, namespace=settings.namespace, payloads=("memory",), broker_embedded=True)
    )
    plane.registry.stage(shop(limit=1))
    plane.registry.promote(shop(limit=1))
    yield plane
    plane.close()


@pytest.mark.parametrize("is_closed", [False, True])
def test_a_ref_that_nobody_has_lets_go_of_its_result_though_nothing_more_is_sent(
    plane: ClientPlane, client: redis.Redis, is_closed: bool
) -> None:
    ref = plane.submit(Call("shop", "Model", owned=True))
    ref.acceptance.wait(60)
    key = plane.keys.request(ref.request_id)
    client.execute_command(*functions.close(key, ref.request_id, State.FAILED.value, b"why"))
    ref.done.wait(60)
    assert client.exists(key)

    del ref
    if is_closed:
        plane.close()

    wait_until(lambda: not client.exists(key), description="nothing of it is kept")


@pytest.mark.slow
def test_what_a_call_that_is_not_sent_has_stored_goes_at_once(plane: ClientPlane, connect_to: Connect) -> None:
    call = connect_to("one").get_app_handle("shop").predict.remote(5)
    call.accepted(60)
    large = bytes(1 << 20)
    values = SHM / plane.store.place.rpartition("/")[2] / "v"

    with pytest.raises(PayloadError, match="belongs to another installation"):
        plane.submit(Call("shop", "Model", args=(large, call)))
    with pytest.raises(PayloadError, match="the limit is 2999"):
        plane.submit(Call("shop", "Model", args=(large, *[Ref(f"{number:032}", plane) for number in range(3000)])))

    assert list(values.iterdir()) == []


def test_the_clock_of_one_broker_has_no_influence_on_others(connect_to: Connect) -> None:
    one, two = connect_to("one"), connect_to("two")
    planes: list[Any] = [client.get_ref("0" * 32).plane for client in (one, two)]
    planes[0].clock.observe(time.time() + 7200, time.monotonic())

    differences = [plane.clock.now_ms() - clock.now_ms() for plane in planes]

    assert differences[0] > 3_600_000 > abs(differences[1])
    one.get_app_handle("shop").remote().accepted(60)


# -- the end of a client ---------------------------------------------------------------------------


def test_a_closed_client_has_sent_everything_and_says_so_when_it_is_used_again(
    connect_to: Connect, client: redis.Redis
) -> None:
    before = threads()
    one = connect_to("one")
    handle = one.get_app_handle("shop").predict
    calls = [handle.remote(number) for number in range(300)]
    awaited = calls[0]

    async def wait_while_it_closes() -> None:
        async with one:
            waiting = asyncio.ensure_future(asyncio.wait_for(asyncio.shield(_value(awaited)), 60))
            await asyncio.sleep(0)
        with pytest.raises(BrokerError, match="this client was closed"):
            await waiting

    asyncio.run(wait_while_it_closes())
    one.close()

    assert waiting(client, namespace_of(one)) == 300
    assert "closed" in repr(one)
    for use in (
        lambda: handle.remote(1),
        lambda: one.submit_many(handle, [(1,)]),
        lambda: one.get_app_handle("shop"),
        lambda: one.get_deployment_handle("Model", "shop"),
        lambda: one.get_ref(awaited.request_id),
        lambda: calls[1].result(60),
        lambda: qserve.get(calls[2].ref, timeout=60),
    ):
        with pytest.raises(BrokerError, match="this client was closed"):
            use()
    wait_until(lambda: threads() <= before, description="its threads have ended")


async def _value(call: Any) -> Any:
    return await call


def test_calls_that_other_threads_make_while_a_client_closes_are_accepted_or_refused(connect_to: Connect) -> None:
    one = connect_to("one")
    handle = one.get_app_handle("shop").predict
    calls: list[Any] = []
    began = threading.Barrier(5)

    def submit() -> None:
        began.wait(60)
        with pytest.raises(BrokerError):
            while True:
                calls.append(handle.remote(1))
                calls[-1].ref.acceptance.wait(60)

    working = [threading.Thread(target=submit) for _ in range(4)]
    for thread in working:
        thread.start()
    began.wait(60)
    wait_until(lambda: len(calls) > 50, description="calls are made")
    one.close()
    for thread in working:
        thread.join(60)

    assert calls
    assert all(call.ref.acceptance.wait(60) and call.ref.done.wait(60) for call in calls)


def test_nothing_is_left_of_a_client_that_was_closed(connect_to: Connect) -> None:
    one = connect_to("one")
    one.get_app_handle("shop").remote().accepted(60)
    left = [weakref.ref(one), weakref.ref(one.get_ref("0" * 32).plane)]

    one.close()
    del one

    wait_until(lambda: gc.collect() is not None and not any(ref() for ref in left), description="it is deleted")


# -- what cannot be --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"url": ""}, "QSERVE_BROKER_URL must be a text, and not empty"),
        ({"url": 6379}, "QSERVE_BROKER_URL must be a text"),
        ({"url": "http://broker"}, "redis://"),
        ({"secret_key": b""}, "QSERVE_SECRET_KEY must be a text, and not empty"),
        ({"secret_key": "short"}, "QSERVE_SECRET_KEY"),
        ({"namespace": "a b"}, "QSERVE_NAMESPACE='a b' must consist of letters"),
    ],
)
def test_an_argument_that_cannot_be_is_refused_at_once(given: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, QserveException), match=message):
        qserve.connect(**{"url": "redis://127.0.0.1:1", **given})


def test_a_broker_that_is_away_is_an_error_of_the_first_use() -> None:
    with qserve.connect("redis://127.0.0.1:1/0") as one, pytest.raises(BrokerUnavailable):
        one.get_app_handle()


# -- many calls ------------------------------------------------------------------------------------


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For each round trip to the broker in which something was submitted: how many calls."""
    counts: list[int] = []
    exchange = ThreadLink.exchange

    def counting(self: ThreadLink, commands: Any) -> Any:
        submitted = sum("_submit" in str(command[1]) for command in commands if command[0] == "FCALL")
        counts.extend([submitted] if submitted else [])
        return exchange(self, commands)

    monkeypatch.setattr(ThreadLink, "exchange", counting)
    return counts


@pytest.mark.parametrize(
    ("count", "value", "expected"),
    [(250, 1, [250]), (900, 1, [250, 250, 250, 150]), (10, b"x" * (3 << 20), [3, 3, 3, 1])],
)
def test_many_calls_are_sent_in_few_round_trips(
    connect_to: Connect, client: redis.Redis, trips: list[int], count: int, value: Any, expected: list[int]
) -> None:
    one = connect_to("one")
    refs = one.submit_many(one.get_app_handle("shop").predict, [(value,)] * count)
    qserve.accepted(refs, timeout_s=60)

    assert len({ref.request_id for ref in refs}) == waiting(client, namespace_of(one)) == count
    assert sum(trips) == count
    assert len(trips) <= len(expected)  # several may have gathered while one was on its way


def test_a_call_of_many_that_is_refused_is_refused_alone(connect_to: Connect, client: redis.Redis) -> None:
    one = connect_to("one")
    handle = one.get_app_handle("shop").predict
    arguments: list[Any] = [(1,), (threading.Lock(),), {"number": 2}, (3,)]

    good, bad, keyword, last = refs = one.submit_many(handle, (given for given in arguments))

    qserve.accepted([good, keyword, last], timeout_s=60)
    with pytest.raises(PayloadError, match="lock"):
        bad.result(60)
    with pytest.raises(PayloadError) as found:
        qserve.accepted(refs)
    assert "1 of 4 calls were refused" in str(found.value.__notes__)
    assert waiting(client, namespace_of(one)) == 3


def test_a_full_queue_refuses_the_calls_of_many_that_find_no_room(settings: Settings, client: redis.Redis) -> None:
    plane = ClientPlane(settings)
    plane.registry.stage(shop(limit=2))
    plane.registry.promote(shop(limit=2))
    plane.close()
    assert settings.broker_url and settings.secret_key
    with qserve.connect(settings.broker_url, secret_key=settings.secret_key, namespace=settings.namespace) as one:
        refs = one.submit_many(one.get_app_handle("shop"), [()] * 5)
        errors = [type(ref.refusal()) for ref in refs if ref.acceptance.wait(60)]

    assert errors == [type(None)] * 2 + [BackPressureError] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([(1,), 2], r"arguments\[1\] is of type 'int'"),
        (["ab"], r"arguments\[0\] is of type 'str'"),
        ([[1]], "a tuple of arguments for each call"),
    ],
)
def test_arguments_that_are_no_tuples_are_refused_before_anything_is_sent(
    connect_to: Connect, client: redis.Redis, arguments: list[Any], message: str
) -> None:
    one = connect_to("one")
    with pytest.raises(TypeError, match=message):
        one.submit_many(one.get_app_handle("shop").predict, arguments)
    with pytest.raises(TypeError, match=r"takes a handle, such as `handle.method`"):
        submit_many(one.get_app_handle, [(1,)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stream=True"):
        one.submit_many(one.get_app_handle("shop").options(stream=True), [(1,)])
    assert one.submit_many(one.get_app_handle("shop"), []) == []
    assert waiting(client, namespace_of(one)) == 0
