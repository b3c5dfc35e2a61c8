"""An application is removed whose workers are gone, have just died, or go on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from qserve.base.keys import GROUP, Keys
from qserve.base.settings import Settings
from qserve.broker import functions
from qserve.calls.client import ClientPlane
from qserve.calls.ref import Call, Ref
from qserve.deploy import removal
from qserve.deploy.installation import Installation
from qserve.deploy.removal import remove, retire
from qserve.exceptions import AppNotFound, BrokerError
from qserve.wire.application import ApplicationRecord, DeploymentRecord

LEASE_S = 0.4
SHOP = ApplicationRecord("shop", "v1", "Model", deployments={"Model": DeploymentRecord("Model")})


@pytest.fixture
def plane(settings: Settings) -> Iterator[ClientPlane]:
    with closing(ClientPlane(replace(settings, lease_s=LEASE_S))) as plane:
        deploy(plane, SHOP)
        yield plane


def deploy(plane: ClientPlane, record: ApplicationRecord) -> None:
    plane.registry.stage(record)
    plane.registry.promote(record)
    plane.uncache_application(record.name)


def submit(plane: ClientPlane, *args: Any) -> Ref[Any]:
    ref = plane.submit(Call("shop", "Model", "__call__", args, timeout_s=3600))
    assert ref.acceptance.wait(20)
    return ref


def fetch(client: redis.Redis, queue: str, replica: str) -> bytes:
    found: Any = client.xreadgroup(GROUP, replica, {queue: ">"}, count=1)
    return found[0][1][0][0]  # type: ignore[no-any-return]


def is_deleted(ref: Ref[Any]) -> bool:
    assert ref.done.wait(20)
    return isinstance(ref.error(), AppNotFound) and "the application was deleted before" in str(ref.error())


@pytest.mark.row("F52")
def test_without_any_worker_everything_that_is_open_ends_at_once(
    plane: ClientPlane, client: redis.Redis, keys: Keys
) -> None:
    queue = SHOP.stream(keys, "Model")
    old = submit(plane)
    deploy(plane, replace(SHOP, version="v2"))
    queue = replace(SHOP, version="v2").stream(keys, "Model")
    held, postponed = submit(plane), submit(plane)
    fetch(client, queue, "dead")
    entry, request = fetch(client, queue, "dead"), keys.request(postponed.request_id)
    command = functions.postpone(
        queue, request, keys.delayed_of(queue), entry, 3_600_000, 1, 3_600_000, "dead", "it failed"
    )
    client.execute_command(*command)
    waiting = submit(plane)
    open_refs = [old, held, postponed, waiting, submit(plane, waiting)]
    crowd = [plane.submit(Call("shop", "Model", "__call__", (), timeout_s=3600)) for _ in range(functions.RETIRE_COUNT)]
    assert all(ref.acceptance.wait(20) for ref in crowd)

    remove(Installation(plane.settings, client), "shop")

    assert [is_deleted(ref) for ref in open_refs] == [True] * len(open_refs)
    assert all(map(is_deleted, crowd))
    assert not client.exists(queue)
    with pytest.raises(AppNotFound, match="no application named 'shop' is deployed"):
        plane.registry.get("shop")


def test_what_a_worker_held_that_has_just_died_ends_after_a_lease(
    plane: ClientPlane, client: redis.Redis, keys: Keys
) -> None:
    running = submit(plane)
    fetch(client, SHOP.stream(keys, "Model"), "replica")
    client.set(keys.beat("replica"), "1", px=60_000)

    began = time.monotonic()
    remove(Installation(plane.settings, client), "shop")

    assert is_deleted(running)
    assert time.monotonic() - began >= LEASE_S


def test_what_a_worker_holds_that_goes_on_is_left_to_it(
    plane: ClientPlane, client: redis.Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = SHOP.stream(keys, "Model")
    running = submit(plane)
    entry = fetch(client, queue, "replica")
    client.set(keys.beat("replica"), "1", px=60_000)

    def sleep(seconds: float) -> None:
        client.incr(keys.beat("replica"))
        time.sleep(seconds)

    monkeypatch.setattr(removal, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    monkeypatch.setattr(removal, "_ORPHAN_FOR_S", 0.0)

    remove(Installation(plane.settings, client), "shop")

    assert not running.done.is_set()
    assert client.xpending_range(queue, GROUP, "-", "+", 1)[0]["message_id"] == entry
    client.delete(queue)


def test_who_may_not_end_requests_removes_the_application_all_the_same(
    plane: ClientPlane, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> bool:
        raise BrokerError("the broker refused a command: NOPERM")

    monkeypatch.setattr(removal, "retire", refuse)
    remove(Installation(plane.settings, client), "shop")

    assert plane.registry.find("shop") is None
    assert "requests of application 'shop' that no worker finishes end at their deadlines" in caplog.text


@pytest.mark.row("F52")
@pytest.mark.parametrize("dies_after", ["before the registration is removed", "after it"])
def test_a_program_that_dies_in_the_middle_leaves_requests_ended_or_to_their_deadlines(
    plane: ClientPlane, client: redis.Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch, dies_after: str
) -> None:
    gone, installation = submit(plane), Installation(plane.settings, client)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    if dies_after == "after it":
        fetch(client, SHOP.stream(keys, "Model"), "replica")
        client.set(keys.beat("replica"), "1", px=60_000)
        monkeypatch.setattr(removal, "_end_unfinished", die)
    else:
        monkeypatch.setattr(installation.registry, "delete", die)
    with pytest.raises(KeyboardInterrupt):
        remove(installation, "shop")

    if dies_after == "after it":
        assert (plane.registry.find("shop"), gone.done.is_set()) == (None, False)
    else:
        assert is_deleted(gone)
        assert plane.registry.find("shop") == SHOP
        refused = plane.submit(Call("shop", "Model", "__call__", ()))
        assert refused.done.wait(20)
        assert isinstance(refused.error(), AppNotFound)
        monkeypatch.undo()
        remove(installation, "shop")
        assert plane.registry.find("shop") is None


def test_a_version_that_is_taken_for_its_own_successor_keeps_its_calls(
    plane: ClientPlane, client: redis.Redis, keys: Keys
) -> None:
    """A worker which has read of a promotion the half would move calls to the queue that it removes then."""
    ref, installation = submit(plane), Installation(plane.settings)

    assert not retire(installation, SHOP, True, SHOP)
    deploy(plane, replace(SHOP, version="v2"))
    assert retire(installation, SHOP, True, replace(SHOP, version="v2"))

    assert client.xlen(replace(SHOP, version="v2").stream(keys, "Model")) == 1
    assert not ref.done.is_set()
