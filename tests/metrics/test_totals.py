"""What processes have counted is added up by the first of them, whatever becomes of the others."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qserve.exceptions import PayloadError
from qserve.metrics.recorder import MOST_SETS, Recorder
from qserve.metrics.table import TABLE
from qserve.metrics.totals import Channel, Reporter, Totals, ask
from qserve.wire.totals import (
    Description,
    Distribution,
    Exemplar,
    Family,
    Kind,
    Published,
    Snapshot,
    decode,
    encode,
    pieces,
)

STARTS, LATENCY = TABLE["serve_deployment_replica_starts"], TABLE["queue_wait_ms"]
RUNNING = TABLE["serve_replica_processing_queries"]
PLACE = {"application": "shop", "deployment": "Model"}

_TEXTS = st.text(max_size=20)
_NUMBERS = st.floats(allow_nan=False)
_COUNTERS = st.dictionaries(st.tuples(_TEXTS, _TEXTS), _NUMBERS, max_size=5)
_DISTRIBUTIONS = st.builds(
    Distribution,
    st.tuples(*[st.integers(0, 2**40)] * 3),
    _NUMBERS,
    st.dictionaries(st.integers(0, 2), st.builds(Exemplar, _TEXTS, _NUMBERS, _NUMBERS), max_size=3),
)


@given(_COUNTERS, st.dictionaries(st.tuples(_TEXTS, _TEXTS), _DISTRIBUTIONS, max_size=3))
def test_what_is_told_arrives_as_it_was(counters: dict, distributions: dict) -> None:  # type: ignore[type-arg]
    snapshot: Snapshot = {
        "a": Family(Description("a", Kind.COUNTER, "what", ("x", "y")), counters),
        "b": Family(Description("b", Kind.HISTOGRAM, "", ("x", "y"), (1.0, 2.5)), distributions),
    }

    def plain(text: str) -> str:
        return text.encode(errors="replace").decode()

    sender, told = decode(encode("Model-1", snapshot))

    assert sender == "Model-1"
    assert told["a"].about == snapshot["a"].about
    assert [*told["a"].values.values()] == [float(value) for value in counters.values()]
    assert {tuple(map(plain, labels)) for labels in counters} == set(told["a"].values)
    assert [*map(tuple, told["b"].values.values())] == [*map(tuple, distributions.values())]
    assert Published.decode(Published(1.5, True, told).encode()) == Published(1.5, True, told)


@given(st.binary(max_size=200))
def test_bytes_of_others_are_refused_and_nothing_else(message: bytes) -> None:
    for read in (decode, Published.decode):
        try:
            read(message)
        except PayloadError:
            continue


@pytest.mark.parametrize(
    "change",
    [
        lambda message: message[:-1],
        lambda message: message.replace(b"counter", b"counters"),
        lambda message: message.replace(b"\xa1x\xa1y", b"\xa1x\xc0"),
    ],
)
def test_a_message_that_was_changed_is_refused(change: Callable[[bytes], bytes]) -> None:
    about = Description("a", Kind.COUNTER, "", ("x", "y"))
    message = encode("me", {"a": Family(about, {("1", "2"): 1.0})})

    with pytest.raises(PayloadError):
        decode(change(message))


def test_what_is_too_much_for_one_message_is_told_in_several_but_a_gauge_stays_whole() -> None:
    counter, gauge = Description("a", Kind.COUNTER, "", ("x",)), Description("g", Kind.GAUGE, "", ("x",))
    many: dict[tuple[str, ...], float | Distribution] = {
        (f"{number}-" + 150 * "é",): 1.0 for number in range(MOST_SETS)
    }
    snapshot = {"a": Family(counter, many), "g": Family(gauge, {(str(number),): 1.0 for number in range(100)})}

    told = [*pieces(snapshot)]

    assert max(len(encode("me", piece)) for piece in told) < 64 * 1024
    totals = Totals()
    for piece in told:
        totals.add("me", piece)
    assert totals.snapshot()["a"].values == many
    assert [len(piece["g"].values) for piece in told if "g" in piece] == [100]


def child(channel: Channel, sender: str, act: Callable[[Recorder, Reporter], object]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        recorder = Recorder({**PLACE, "replica": sender})
        act(recorder, Reporter(recorder, sender, channel.told))
    finally:
        os.kill(os.getpid(), signal.SIGKILL)


def wait_for(*pids: int) -> None:
    for pid in pids:
        os.waitpid(pid, 0)


@pytest.fixture
def channel() -> Iterator[Channel]:
    channel = Channel(Totals())
    yield channel
    channel.close()


def test_what_a_killed_process_has_counted_stays_counted_and_its_gauges_go(channel: Channel) -> None:
    def work(recorder: Recorder, reporter: Reporter) -> None:
        recorder.set(RUNNING, 3)
        recorder.number(STARTS).add()
        reporter.flush()
        recorder.number(STARTS).add()
        recorder.buckets(LATENCY).observe_all([7], lambda _: ("request-1", ""))
        reporter.flush()
        reporter.flush()  # nothing is new

    wait_for(child(channel, "one", work), child(channel, "two", work))
    channel.receive()

    place = "shop", "Model"
    assert channel.totals.snapshot()[RUNNING.name].values == {(*place, "one"): 3, (*place, "two"): 3}
    channel.totals.forget("one")
    told = channel.totals.snapshot()
    assert told[STARTS.name].values == {place: 4}
    latency = told[LATENCY.name].values[place]
    assert isinstance(latency, Distribution)
    assert (sum(latency.counts), latency.sum) == (2, 14)
    assert [one.request_id for one in latency.exemplars.values()] == ["request-1"]
    assert told[RUNNING.name].values == {(*place, "two"): 3}


def test_while_nobody_receives_nothing_is_lost_and_nobody_waits(channel: Channel) -> None:
    recorder = Recorder(PLACE)
    reporter = Reporter(recorder, "me", channel.told)
    for _ in range(5000):
        recorder.number(STARTS).add()
        reporter.flush()

    while sum(channel.totals.snapshot().get(STARTS.name, Family(STARTS)).values.values()) < 5000:  # type: ignore[arg-type]
        channel.receive()
        reporter.flush()

    assert channel.totals.snapshot()[STARTS.name].values == {("shop", "Model"): 5000}


def test_what_cannot_be_read_is_left_out_and_named(channel: Channel, caplog: pytest.LogCaptureFixture) -> None:
    channel.told.send(b"what user code may write to a socket that it has found")
    recorder = Recorder(PLACE)
    recorder.number(STARTS).add()
    Reporter(recorder, "me", channel.told).flush()

    channel.receive()

    assert "a process said what cannot be counted" in caplog.text
    assert channel.totals.snapshot()[STARTS.name].values == {("shop", "Model"): 1}


def test_a_gauge_that_fits_into_no_message_is_left_out_and_named(
    channel: Channel, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(PLACE)
    long = Description("long_tags", Kind.GAUGE, "", tuple(f"tag{number}" for number in range(20)))
    for number in range(MOST_SETS):
        recorder.set(long, 1, **dict.fromkeys(long.labels, f"{number}" + 150 * "é"))
    recorder.number(STARTS).add()

    Reporter(recorder, "me", channel.told).flush()
    channel.receive()

    assert "the metrics long_tags are not counted: the values of their tags are too long" in caplog.text
    assert {*channel.totals.snapshot()} == {STARTS.name}


def test_a_name_with_another_meaning_is_left_out_and_named_once(caplog: pytest.LogCaptureFixture) -> None:
    totals = Totals()
    counter, gauge = Description("seen", Kind.COUNTER, "", ("a",)), Description("seen", Kind.GAUGE, "", ("a",))
    with caplog.at_level(logging.WARNING):
        totals.add("one", {"seen": Family(counter, {("x",): 1.0})})
        for _ in range(3):
            totals.add("two", {"seen": Family(gauge, {("x",): 5.0})})

    assert totals.snapshot()["seen"].values == {("x",): 1}
    assert len([one for one in caplog.records if "'seen' of two is not counted" in one.getMessage()]) == 1


def test_the_sums_of_many_processes_stay_bounded_and_lose_nothing() -> None:
    totals = Totals()
    about = Description("seen_by", Kind.COUNTER, "", ("application", "deployment", "user"))
    for sender in range(4):
        values = {("shop", "Model", f"{sender}-{number}"): 1.0 for number in range(MOST_SETS)}
        totals.add(str(sender), {about.name: Family(about, {**values})})

    values = totals.snapshot()[about.name].values
    assert len(values) == MOST_SETS + 1
    assert values["shop", "Model", "other"] == 3 * MOST_SETS


def test_any_process_can_ask_for_the_sums_and_gives_up_when_nobody_replies(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel.totals.add("one", {STARTS.name: Family(STARTS, {("shop", "Model"): 2.0})})
    channel.heard.setblocking(True)
    serving = threading.Thread(target=lambda: _receive_once(channel))
    serving.start()

    found = ask(channel.told)
    serving.join()

    assert found is not None
    assert found[STARTS.name].values == {("shop", "Model"): 2}
    monkeypatch.setattr("qserve.metrics.totals._ANSWER_S", 0.01)
    assert ask(channel.told) is None


def _receive_once(channel: Channel) -> None:
    channel.heard.recv(1, socket.MSG_PEEK)
    channel.heard.setblocking(False)
    channel.receive()
