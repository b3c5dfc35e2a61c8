"""Lives and waits that the broker counts by its own clock, which somebody may set."""

from __future__ import annotations

import time

import pytest
import redis
from desk import A, Desk
from qserve_workers.replica.commit import LONGEST_WAIT_S

from qserve.base.keys import CLOCK_MARGIN_MS, Keys
from qserve.base.settings import Settings
from qserve.broker import functions
from qserve.broker.connection import load_functions
from qserve.calls.client import ClientPlane
from qserve.calls.ref import Call
from qserve.wire.application import ApplicationRecord, DeploymentRecord
from qserve.wire.moves import Start

HOUR_MS = 3_600_000


@pytest.fixture
def desk(client: redis.Redis, keys: Keys) -> Desk:
    return Desk(client, keys)


def postpone(desk: Desk, wait_ms: int, life_ms: int) -> str:
    """Submit a call, begin it, and have it wait; answers the key of what waits."""
    delayed = desk.keys.delayed_of(desk.one)
    desk.submit(A, [Start(desk.one, "0", [b"x"])])
    ((entry, _),) = desk.fetch(desk.one)
    command = functions.postpone(desk.one, desk.keys.request(A), delayed, entry, wait_ms, 1, life_ms, "replica", "why")
    assert desk.client.execute_command(*command) == b"OK"
    return delayed


def wake(desk: Desk) -> int:
    return int(desk.client.execute_command(*functions.wake(desk.keys.delayed_of(desk.one), desk.one)))


def test_an_open_request_outlives_its_deadline_by_a_day(client: redis.Redis, keys: Keys, settings: Settings) -> None:
    plane = ClientPlane(settings)
    load_functions(plane.client)
    desk = Desk(client, keys)
    app = ApplicationRecord("app", "v", "one", deployments={"one": DeploymentRecord("one")})
    plane.cache_application(app, for_s=1000)
    try:
        ref = plane.submit(Call("app", "one", args=(1,), timeout_s=100, result_ttl_s=7))
        assert ref.acceptance.wait(60)
        key = keys.request(ref.request_id)
        left_ms = client.pttl(key)
        assert CLOCK_MARGIN_MS + 90_000 < left_ms <= CLOCK_MARGIN_MS + 101_000

        ((entry, _),) = desk.fetch(desk.one)
        desk.commit(desk.one, entry, ref.request_id, state="d", payload=b"result")
        assert client.pttl(key) <= 7_000, "a result is kept for as long as was asked for"
    finally:
        plane.close()


def test_a_call_that_waits_comes_back_when_its_time_has_come(desk: Desk) -> None:
    postpone(desk, 60_000, HOUR_MS)
    assert wake(desk) == 0
    assert desk.client.xlen(desk.one) == 0


@pytest.mark.parametrize("set_back_ms", [HOUR_MS, 24 * HOUR_MS])
def test_a_call_that_waits_for_a_clock_that_was_set_back_comes_back_at_once(desk: Desk, set_back_ms: int) -> None:
    delayed = postpone(desk, 1000, HOUR_MS)
    (member,) = desk.client.zrange(delayed, 0, -1)
    desk.client.zadd(delayed, {member: time.time() * 1000 + 1000 + set_back_ms})  # as it looks after that
    assert wake(desk) == 1
    assert desk.client.xlen(desk.one) == 1
    assert desk.client.exists(delayed) == 0


def test_no_call_waits_so_long_that_its_clock_seems_to_be_set_back() -> None:
    assert LONGEST_WAIT_S * 1.5 * 1000 < functions.LONGEST_WAIT_MS  # waits differ by half at random


def test_what_waits_lives_as_long_as_the_one_that_needs_it_longest(desk: Desk) -> None:
    delayed = postpone(desk, 1000, 3 * HOUR_MS)
    desk.client.delete(desk.keys.request(A))
    postpone(desk, 1000, HOUR_MS)
    assert desk.client.pttl(delayed) > 2 * HOUR_MS
