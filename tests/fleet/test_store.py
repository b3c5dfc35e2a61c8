"""What workers, the leader and operators leave for one another is read as it was written, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from qserve.base.keyring import Keyring
from qserve.base.keys import Keys
from qserve.base.settings import Settings
from qserve.exceptions import PayloadError
from qserve.fleet.store import FleetStore
from qserve.wire import fleet
from qserve.wire.fleet import Assignment, Drain, HostRecord, Scaled, Wish
from qserve.wire.sealing import Seal

HOST = HostRecord("a-1", "a", 8, devices=("0",), resources={"tpu": 2.0}, has=("shop:v",), pins={"shop:v:A": 1})


@pytest.fixture
def seal(settings: Settings) -> Seal:
    return Seal(settings.keyring)


@pytest.fixture
def store(client: redis.Redis, keys: Keys, seal: Seal) -> FleetStore:
    return FleetStore(client, keys, seal)


@pytest.fixture
def reader(client: redis.Redis, keys: Keys, seal: Seal) -> FleetStore:
    """That of another process."""
    return FleetStore(client, keys, seal)


def plain(values: dict[str, fleet.HostRecord]) -> list[HostRecord]:
    return [replace(value, number=0) for value in values.values()]


def test_each_value_is_read_in_its_place(store: FleetStore, reader: FleetStore) -> None:
    store.offer(HOST)
    store.note("shop", "Model", Scaled(3, reason="40 wait"))
    store.wish("shop", "Model", Wish(2, by="me"))
    store.drain(Drain("a", "me"))

    assert plain(reader.hosts()) == [HOST]
    assert reader.scaled("shop")["Model"].reason == "40 wait"
    assert reader.wishes("shop")["Model"].count == 2
    assert reader.drains()["a"].by == "me"

    store.withdraw("a-1")
    store.undrain("a")
    assert reader.hosts() == reader.plan() == reader.drains() == {}


def test_a_value_that_is_put_back_is_refused_by_who_has_read_a_newer_one(
    store: FleetStore, reader: FleetStore, client: redis.Redis, keys: Keys
) -> None:
    store.offer(HOST)
    old = client.hget(keys.hosts, "a-1")
    store.offer(replace(HOST, places=1))
    assert reader.hosts()["a-1"].places == 1

    client.hset(keys.hosts, "a-1", old or b"")

    assert reader.hosts() == {}
    store.offer(replace(HOST, places=2))
    assert reader.hosts()["a-1"].places == 2


def test_who_starts_again_with_an_empty_broker_is_believed(
    store: FleetStore, reader: FleetStore, client: redis.Redis, keys: Keys, seal: Seal
) -> None:
    store.offer(HOST)
    assert [*reader.hosts()] == ["a-1"]
    client.delete(keys.hosts)

    FleetStore(client, keys, seal).offer(replace(HOST, places=3))

    assert reader.hosts()["a-1"].places == 3


@pytest.mark.parametrize("data", [b"", b"garbage", HOST.encode(), Seal(Keyring(b"another")).seal(b"host|a-1", b"{}")])
def test_what_somebody_else_has_written_is_left_out(
    store: FleetStore, client: redis.Redis, keys: Keys, data: bytes
) -> None:
    store.offer(replace(HOST, worker="b-1"))
    client.hset(keys.hosts, "a-1", data)

    assert [*store.hosts()] == ["b-1"]


def test_a_value_says_nothing_in_another_place(store: FleetStore, client: redis.Redis, keys: Keys) -> None:
    store.offer(HOST)
    client.hset(keys.hosts, "b-1", client.hget(keys.hosts, "a-1") or b"")

    assert [*store.hosts()] == ["a-1"]


def test_a_key_of_another_type_is_no_value_and_the_next_one_takes_its_place(
    store: FleetStore, reader: FleetStore, client: redis.Redis, keys: Keys
) -> None:
    client.rpush(keys.hosts, b"stranger")
    assert reader.hosts() == {}

    store.offer(HOST)

    assert [*reader.hosts()] == ["a-1"]


@pytest.mark.slow
@given(st.from_type(fleet.HostRecord) | st.from_type(Assignment) | st.from_type(Scaled) | st.from_type(fleet.Rollout))
def test_a_value_is_the_same_after_its_way(value: fleet.HostRecord | Assignment | Scaled | fleet.Rollout) -> None:
    try:
        data = value.encode()
    except ValueError:  # half of a surrogate pair, or a number that JSON has no word for
        return
    try:
        assert type(value).decode(data) == value
    except PayloadError:
        assert "inf" in repr(value) or "nan" in repr(value)


@pytest.mark.parametrize(
    "data", [b"[]", b"{}", b'{"worker": 1, "host": "a"}', b'{"worker": "a", "host": "a", "places": 1.5}']
)
def test_a_value_with_a_part_of_another_type_is_refused(data: bytes) -> None:
    with pytest.raises(PayloadError, match="bytes are not a HostRecord"):
        HostRecord.decode(data)


def test_what_only_a_newer_version_knows_is_left_out() -> None:
    assert HostRecord.decode(b'{"worker": "a", "host": "b", "newer": [1]}') == HostRecord("a", "b")
