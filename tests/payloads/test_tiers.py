"""Which tier takes a value, and what each of them keeps."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy
import pyarrow
import pytest
import redis
from processes import wait_until

from qserve.base.keys import Keys
from qserve.base.settings import Settings
from qserve.broker.link import ThreadLink
from qserve.exceptions import BrokerUnavailable, PayloadError, StoreUnavailable, ValueLost, ValueUnreachable
from qserve.payloads import chunks, folder
from qserve.payloads.chunks import CHUNK_BYTES, UPLOAD_TTL_MS
from qserve.payloads.store import ValueStore
from qserve.wire.claim import BROKER, FOLDER, MEMORY, Claim, Kind, claim_in
from qserve.wire.codec import Codec

MB = 1 << 20
DATA = os.urandom(3 * MB + 4) + b"."


@pytest.fixture
def make(settings: Settings, root: Path) -> Iterator[Callable[..., ValueStore]]:
    """Makes stores on a broker that is not an embedded one, as far as they know."""
    made = []

    def make_one(**changes: object) -> ValueStore:
        made.append(ValueStore(replace(settings, **changes), lambda: "epoch"))  # type: ignore[arg-type]
        return made[-1]

    yield make_one
    for one in made:
        one.close()


def put(store: ValueStore, data: bytes = DATA, kind: Kind = Kind.PASSING) -> Claim:
    return store.put([(0, memoryview(data))], len(data), kind)


def nobody_knows(names: list[str]) -> list[bool]:
    return [False] * len(names)


@pytest.mark.parametrize(
    ("payloads", "is_embedded", "passing", "kept"),
    [
        ((), False, BROKER, BROKER),
        ((), True, MEMORY, MEMORY),
        (("memory",), False, MEMORY, BROKER),
        (("memory", "broker"), False, MEMORY, BROKER),
        (("broker", "memory"), False, BROKER, BROKER),
        (("memory", "broker"), True, MEMORY, MEMORY),
        (("memory", "file:///{folder}"), False, MEMORY, FOLDER),
        (("file:///{folder}",), True, FOLDER, FOLDER),
    ],
    ids=str,
)
def test_what_must_outlive_its_host_goes_to_a_store_that_does(
    make: Callable[..., ValueStore],
    tmp_path: Path,
    payloads: tuple[str, ...],
    is_embedded: bool,
    passing: str,
    kept: str,
) -> None:
    payloads = tuple(one.format(folder=str(tmp_path).lstrip("/")) for one in payloads)
    store = make(payloads=payloads, broker_embedded=is_embedded)

    claims = put(store), put(store, kind=Kind.KEPT)

    assert [claim.store for claim in claims] == [passing, kept]
    assert [bytes(store.get(claim)) for claim in claims] == [DATA, DATA]


def test_a_value_goes_to_the_next_store_when_the_memory_is_full_and_that_is_counted_and_said_once(
    make: Callable[..., ValueStore], caplog: pytest.LogCaptureFixture
) -> None:
    store = make(payloads=("memory", "broker"), shm_limit=MB)

    claims = [put(store), put(store)]

    assert [claim.store for claim in claims] == [BROKER, BROKER]
    assert [bytes(store.get(claim)) for claim in claims] == [DATA, DATA]
    assert (store.puts[MEMORY].fallbacks, store.puts[BROKER].values) == (2, 2)
    assert store.puts[BROKER].bytes == 2 * len(DATA)
    (record,) = [one for one in caplog.records if "takes no more large values" in one.message]
    assert "QSERVE_SHM_LIMIT" in record.message


@pytest.mark.parametrize("size", [1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES])
def test_the_broker_keeps_a_value_of_any_size_in_pieces_that_expire(
    make: Callable[..., ValueStore], client: redis.Redis, keys: Keys, size: int
) -> None:
    data = os.urandom(size)
    store = make()

    claim = put(store, data)

    assert bytes(store.get(claim)) == data
    assert UPLOAD_TTL_MS - 60_000 < client.pttl(keys.value(claim.name)) <= UPLOAD_TTL_MS
    assert client.hlen(keys.value(claim.name)) == -(-size // CHUNK_BYTES)


@pytest.mark.parametrize("payloads", [("broker",), ("memory",), ("file:///{folder}",)], ids=str)
def test_parts_with_gaps_between_them_are_stored_in_every_tier(
    make: Callable[..., ValueStore], tmp_path: Path, payloads: tuple[str]
) -> None:
    store = make(payloads=(payloads[0].format(folder=str(tmp_path).lstrip("/")),))
    first, second = os.urandom(CHUNK_BYTES - 10), os.urandom(CHUNK_BYTES)

    found = store.get(store.put([(0, memoryview(first)), (CHUNK_BYTES, memoryview(second))], 2 * CHUNK_BYTES))

    assert (found[: len(first)], found[CHUNK_BYTES:]) == (first, second)


@pytest.mark.parametrize("tier", ["broker", "memory", "file:///{folder}"])
@pytest.mark.parametrize("step", [1000, 700_000, 3 * CHUNK_BYTES])
def test_a_value_is_written_and_read_piece_by_piece_in_every_tier(
    make: Callable[..., ValueStore], tmp_path: Path, tier: str, step: int
) -> None:
    store = make(payloads=(tier.format(folder=str(tmp_path).lstrip("/")),))
    data = DATA[: 300 * step]
    filler = store.filler(Kind.PASSING)
    for begin in range(0, len(data), step):
        filler.write(memoryview(data)[begin : begin + step])

    assert b"".join(map(bytes, filler.written())) == data
    claim = filler.finish()

    assert claim.size == len(data)
    assert b"".join(store.pieces(claim)) == data == bytes(store.get(claim))


@pytest.mark.parametrize("tier", ["broker", "file:///{folder}"])
def test_a_value_that_is_given_up_half_way_is_gone(
    make: Callable[..., ValueStore], tmp_path: Path, client: redis.Redis, keys: Keys, tier: str
) -> None:
    store = make(payloads=(tier.format(folder=str(tmp_path).lstrip("/")),))
    filler = store.filler(Kind.PASSING)
    filler.write(memoryview(DATA))
    filler.abort()

    assert list(client.scan_iter(keys.value("*"))) == []
    assert list(tmp_path.glob("*/*")) == []


def test_a_value_that_outgrows_the_memory_half_way_goes_on_in_the_broker(make: Callable[..., ValueStore]) -> None:
    store = make(payloads=("memory", "broker"), shm_limit=2 * MB)
    filler = store.filler(Kind.PASSING)
    for begin in range(0, len(DATA), 100_000):
        filler.write(memoryview(DATA)[begin : begin + 100_000])

    claim = filler.finish()

    assert claim.store == BROKER
    assert bytes(store.get(claim)) == DATA
    assert [(one.tier, one.values) for one in store.stats()] == [(MEMORY, 0)]


def test_a_changed_value_that_is_read_piece_by_piece_is_refused_with_its_last_piece(
    make: Callable[..., ValueStore], client: redis.Redis, keys: Keys, tmp_path: Path
) -> None:
    stores = make(), make(payloads=(f"file://{tmp_path}",))
    claims = [put(store) for store in stores]
    client.hset(keys.value(claims[0].name), "3", b"xxxxx")
    next(tmp_path.glob("*/*")).write_bytes(DATA[:-1] + b"\0")

    for store, claim in zip(stores, claims, strict=True):
        with pytest.raises(PayloadError, match="is not the one that was claimed"):
            list(store.pieces(claim))


def test_pieces_that_are_gone_from_the_broker_are_lost_and_others_are_refused(
    make: Callable[..., ValueStore], client: redis.Redis, keys: Keys
) -> None:
    store = make()
    changed, cut, shorter, gone = (put(store) for _ in range(4))
    client.hset(keys.value(changed.name), "1", DATA[:CHUNK_BYTES])
    client.hdel(keys.value(cut.name), "1")
    client.hset(keys.value(shorter.name), "1", b"x")
    client.delete(keys.value(gone.name))

    for claim, error in ((changed, PayloadError), (shorter, PayloadError), (cut, ValueLost), (gone, ValueLost)):
        with pytest.raises(error):
            store.get(claim)


def test_a_broker_that_is_away_for_a_moment_is_waited_for(
    make: Callable[..., ValueStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange, failures = ThreadLink.exchange, [redis.ConnectionError("away"), OSError("away")]

    def sometimes(link: ThreadLink, commands: list[tuple[object, ...]]) -> list[object]:
        if failures:
            raise failures.pop()
        return exchange(link, commands)

    monkeypatch.setattr(ThreadLink, "exchange", sometimes)
    store = make()

    assert bytes(store.get(put(store))) == DATA


def test_a_broker_that_stays_away_is_an_error_that_says_so(
    make: Callable[..., ValueStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "PATIENCE_S", 0.2)

    with pytest.raises(BrokerUnavailable, match="the broker cannot be reached"):
        put(make(broker_url="redis://127.0.0.1:1/0"))


def test_a_folder_keeps_values_until_they_are_forgotten(make: Callable[..., ValueStore], tmp_path: Path) -> None:
    store = make(payloads=(f"file://{tmp_path}",), namespace="a/b")
    claim = put(store)
    (path,) = tmp_path.glob("*/*")

    assert bytes(make(payloads=(f"file://{tmp_path}",), namespace="a/b").get(claim)) == DATA
    assert [one[1:3] for one in store.stats()] == [(1, len(DATA))]
    store.forget([claim])
    wait_until(lambda: not path.exists(), description="the object is removed")
    with pytest.raises(ValueLost, match="is no longer in file://"):
        store.get(claim)


def test_objects_that_the_broker_does_not_know_for_a_while_are_swept(
    make: Callable[..., ValueStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(payloads=(f"file://{tmp_path}",))
    wanted, unwanted = put(store), put(store)
    other = next(tmp_path.glob("*/*")).with_name("of-somebody-else")
    other.write_bytes(b"x")

    def know(names: list[str]) -> list[bool]:
        return [name == wanted.name for name in names]

    store.sweep(know)
    assert len(list(tmp_path.glob("*/*"))) == 3  # it may have been stored a moment ago
    later = time.monotonic() + folder.UNKNOWN_FOR_S
    monkeypatch.setattr(folder.time, "monotonic", lambda: later)
    store.sweep(know)

    assert {path.name for path in tmp_path.glob("*/*")} == {wanted.name, "of-somebody-else"}
    with pytest.raises(ValueLost):
        store.get(unwanted)


def test_a_changed_object_is_refused(make: Callable[..., ValueStore], tmp_path: Path) -> None:
    store = make(payloads=(f"file://{tmp_path}",))
    claim = put(store)
    next(tmp_path.glob("*/*")).write_bytes(DATA[::-1])

    with pytest.raises(PayloadError, match="is not the one that was claimed"):
        store.get(claim)


def test_a_folder_that_cannot_be_written_to_is_passed_over_or_named(
    make: Callable[..., ValueStore], tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    url = f"file://{tmp_path}/file"

    assert put(make(payloads=(url, "broker"))).store == BROKER
    with pytest.raises(StoreUnavailable, match=rf"a value of {len(DATA)} bytes cannot be stored: {url} cannot be"):
        put(make(payloads=(url,)))
    with pytest.raises(StoreUnavailable, match="cannot be stored: .*Protocol not known: nothing"):
        put(make(payloads=("nothing://x",)))


def test_a_value_in_a_folder_that_is_not_named_here_says_what_to_set(
    make: Callable[..., ValueStore], tmp_path: Path
) -> None:
    claim = put(make(payloads=(f"file://{tmp_path}",)))

    with pytest.raises(ValueUnreachable, match="QSERVE_PAYLOADS names none: set it to the same stores"):
        make().get(claim)
    with pytest.raises(ValueUnreachable, match="another folder than file:.*QSERVE_PAYLOADS to the same stores"):
        make(payloads=(f"file://{tmp_path}/other",)).get(claim)


def test_the_epoch_is_read_from_the_broker_where_it_is_not_known(
    settings: Settings, root: Path, client: redis.Redis, keys: Keys
) -> None:
    client.set(keys.epoch, "an epoch")
    known, unknown = (
        ValueStore(replace(settings, broker_embedded=True), lambda epoch=e: epoch) for e in ("an epoch", "")
    )

    assert known.place == unknown.place
    assert bytes(unknown.get(put(known))) == DATA


def test_nothing_is_opened_or_created_before_a_value_is_stored(make: Callable[..., ValueStore], root: Path) -> None:
    store = make(broker_embedded=True)
    codec = Codec(values=store)

    assert codec.decode(codec.encode({"a": [1, b"x" * 1000]})) == {"a": [1, b"x" * 1000]}
    store.trim()
    assert list(root.iterdir()) == []
    assert store.puts == {}


def test_what_is_stored_in_memory_is_counted_and_swept(make: Callable[..., ValueStore]) -> None:
    store = make(broker_embedded=True)
    claim = put(store)
    store.settled([claim])

    assert [(one.tier, one.values) for one in store.stats()] == [(MEMORY, 1)]
    for _ in range(2):
        store.sweep(nobody_knows)
    assert [(one.tier, one.values) for one in store.stats()] == [(MEMORY, 0)]


def test_a_value_larger_than_a_message_may_be_passes_and_its_arrays_are_aligned_views(
    make: Callable[..., ValueStore],
) -> None:
    codec = Codec(values=make(broker_embedded=True))
    data = codec.encode({"image": numpy.ones((2000, 1000)), "raw": DATA})

    found = codec.decode(data)

    assert found["raw"] == DATA
    assert float(found["image"].sum()) == 2_000_000
    assert found["image"].__array_interface__["data"][0] % 64 == 0
    assert not found["image"].flags.writeable


def test_tables_of_arrow_are_views_of_the_store(make: Callable[..., ValueStore], settings: Settings) -> None:
    store = make(broker_embedded=True)
    codec = Codec(settings.keyring, values=store)
    table = pyarrow.table({"a": range(100_000), "b": [str(number) for number in range(100_000)]})
    data = codec.encode(table)
    before = pyarrow.total_allocated_bytes()

    found = codec.decode(data)

    assert found.equals(table)
    assert pyarrow.total_allocated_bytes() - before < MB  # of 1.3 MB
    claim = claim_in(data)
    assert claim is not None
    assert claim.size > MB
    assert len(data) < 64 * 1024
