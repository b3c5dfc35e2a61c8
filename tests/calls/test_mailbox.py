"""The mailbox of one process: each open ref gets its own end, and no other."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from qserve.base.keyring import Keyring
from qserve.base.keys import Keys
from qserve.broker import functions
from qserve.broker.connection import LONGEST_PAUSE_S, MAILBOX_BLOCK_S, STRAY_READ_S
from qserve.broker.library import Command
from qserve.calls import mailbox as module
from qserve.calls.items import ItemRef
from qserve.calls.mailbox import ASK_INTERVAL_S, CLOSING_MS, GRACE_MS, Mailbox
from qserve.calls.ref import Ref
from qserve.exceptions import BrokerStateLost, ResultUnavailable
from qserve.wire.outcome import Outcome, end_of_items
from qserve.wire.sealing import Seal, item_context, seal_end

ID, OTHER = "a" * 32, "b" * 32
KEYS, SEAL = Keys(), Seal(Keyring())
UNKNOWN = [b"", b""]
DONE, REFUSED = Outcome("d", b"result"), Outcome("f", b"no")
LOOK = functions.look(KEYS.request(ID))
MESSAGE = ID.encode() + b"d" + seal_end(SEAL, ID, "d", b"result")


class Sent(list[tuple[Command, Callable[[Any], object]]]):
    """The commands that a mailbox has sent."""

    def __call__(self, command: Command, on_reply: Callable[[Any], object]) -> None:
        self.append((command, on_reply))

    @property
    def commands(self) -> list[Command]:
        return [command for command, _ in self]


class Reading:
    """Stands for the connection that a mailbox is read by."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._steps = mailbox.read()
        self.action = self._without_clock(next(self._steps))

    def reply(self, reply: Any) -> None:
        self.action = self._without_clock(self._steps.send(reply))

    def read(self, *messages: bytes) -> None:
        """Let one read return these messages; the epoch is what it was."""
        if self.asks_epoch:
            self.reply(b"first")
        assert self.is_read
        self.reply([b"mailbox", messages] if messages else None)

    def lose(self, error: Exception | None = None) -> None:
        self.action = self._without_clock(self._steps.throw(error or ConnectionResetError("lost")))

    def _without_clock(self, action: Any) -> Any:
        return self._steps.send(PermissionError("NOPERM")) if action == ("TIME",) else action

    @property
    def is_read(self) -> bool:
        return isinstance(self.action, tuple) and self.action[0] == "BLMPOP"

    @property
    def asks_epoch(self) -> bool:
        return self.action == ("GET", KEYS.epoch)


@pytest.fixture
def sent() -> Sent:
    return Sent()


@pytest.fixture
def mailbox(sent: Sent) -> Mailbox:
    return Mailbox(KEYS, SEAL, sent)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the mailbox sees; tests move it."""
    moment = [1000.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: moment[0]))
    return moment


def two_refs(mailbox: Mailbox) -> tuple[Ref, Ref]:
    first, second = Ref(ID, None), Ref(ID, None)
    mailbox.add(first, 10**15)
    mailbox.add(second, 10**15)
    return first, second


@pytest.mark.row("F46")
def test_a_second_end_of_a_request_that_was_answered_is_ignored(mailbox: Mailbox) -> None:
    # a failover to an older state runs again what had been answered before
    first, _ = two_refs(mailbox)
    later = Ref(OTHER, None)
    mailbox.add(later, 10**15)
    mailbox.receive(MESSAGE)

    mailbox.receive(MESSAGE)
    mailbox.receive(ID.encode() + b"d" + seal_end(SEAL, ID, "d", b"another"))
    mailbox.receive(ID.encode() + b"f" + seal_end(SEAL, ID, "f", b"no"))
    mailbox.receive(ID.encode() + b"c")
    mailbox.receive(OTHER.encode() + b"d" + seal_end(SEAL, OTHER, "d", b"result"))

    assert first.outcome() == later.outcome() == DONE


def test_a_replica_is_told_of_a_cancellation_or_expiry_only_when_that_is_sealed_for_the_request(sent: Sent) -> None:
    seal, others = Seal(Keyring(b"the-key-of-this-test")), (Seal(Keyring()), Seal(Keyring(b"the-key-of-another")))
    mailbox = Mailbox(KEYS, seal, sent)
    told: list[tuple[str, str]] = []
    mailbox.report_ends(lambda request_id, state: told.append((request_id, state)), bool, bool)
    ref, _ = two_refs(mailbox)

    for state in ("c", "x"):
        head = OTHER.encode() + state.encode()
        forged = [b"", *(seal_end(other, OTHER, state, b"") for other in others)]
        moved = [seal_end(seal, ID, state, b""), seal_end(seal, OTHER, "d", b"")]
        for end in forged + moved:
            mailbox.receive(head + end)
        assert told == []
        mailbox.receive(head + seal_end(seal, OTHER, state, b""))
        assert told.pop() == (OTHER, state)
    mailbox.receive(OTHER.encode() + b"f" + seal_end(seal, OTHER, "f", b"no"))
    mailbox.receive(ID.encode() + b"c" + seal_end(seal, ID, "c", b""))

    assert told == [(ID, "c")]  # which this process has submitted as well
    assert ref.outcome().state == "c"


def test_all_refs_to_a_request_are_told_its_end(mailbox: Mailbox) -> None:
    first, second = two_refs(mailbox)

    mailbox.receive(MESSAGE)

    assert first.outcome() == second.outcome() == DONE
    assert first not in mailbox
    assert not mailbox._open


@pytest.mark.parametrize("refused_first", [True, False])
def test_a_ref_that_is_refused_leaves_the_others_open(mailbox: Mailbox, refused_first: bool) -> None:
    first, second = two_refs(mailbox)
    refused, other = (first, second) if refused_first else (second, first)

    mailbox.refuse(refused, REFUSED)

    assert refused.outcome() == REFUSED
    assert (refused in mailbox, other in mailbox) == (False, True)
    mailbox.settle(ID, DONE)
    assert (refused.outcome(), other.outcome()) == (REFUSED, DONE)


def test_a_ref_that_is_removed_is_told_nothing(mailbox: Mailbox) -> None:
    first, second = two_refs(mailbox)
    mailbox.remove(first)
    mailbox.remove(first)
    mailbox.settle(ID, DONE)
    assert (first.done.is_set(), second.done.is_set()) == (False, True)


def test_who_follows_anothers_request_does_not_decide_when_it_is_late(mailbox: Mailbox, sent: Sent) -> None:
    late_ms = int(time.time() * 1000) - 2 * GRACE_MS
    own, follower = Ref(OTHER, None), Ref(ID, None)
    mailbox.add(own, late_ms)
    mailbox.add(follower, late_ms)
    mailbox.clear_deadline(follower)

    Reading(mailbox).reply(None)

    assert sent.commands == [functions.close(KEYS.request(OTHER), OTHER, "x", seal_end(SEAL, OTHER, "x", b"")), LOOK]
    sent[0][1](1)
    assert own.outcome().state == "x"
    assert not follower.done.is_set()


def test_a_late_request_that_had_ended_in_the_broker_has_its_result(mailbox: Mailbox, sent: Sent) -> None:
    ref = Ref(ID, None)
    mailbox.add(ref, int(time.time() * 1000) - 2 * GRACE_MS)

    Reading(mailbox).reply(None)
    sent[0][1](0)

    assert sent.commands[1:] == [LOOK]
    sent[1][1]([b"d", seal_end(SEAL, ID, "d", b"result")])
    assert ref.outcome() == DONE


@pytest.mark.parametrize("message", [b"", b"short", b"\xff" * 40, ID.encode(), ID.encode() + b"?"])
def test_a_message_that_is_none_is_dropped_and_the_next_one_is_received(
    mailbox: Mailbox, message: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    ref = Ref(ID, None)
    mailbox.add(ref)

    with caplog.at_level(logging.WARNING):
        mailbox.receive(message)
    mailbox.receive(MESSAGE)

    assert ref.outcome().payload == b"result"
    assert "not a mailbox message" in caplog.text


# -- looking up requests ---------------------------------------------------------------------------


def looked_up(mailbox: Mailbox, sent: Sent, reply: Any, deadline_ms: int = 10**15, accepted: bool = True) -> Ref:
    """A ref that is open, after the broker was asked about it."""
    ref = Ref(ID, None)
    mailbox.add(ref, deadline_ms)
    if accepted:
        ref.acceptance.set(True)
    mailbox.watch(ref)
    ((command, on_reply),) = sent
    assert command == LOOK
    on_reply(reply)
    return ref


def test_a_request_of_ours_that_the_broker_does_not_know_was_lost_with_the_server_that_accepted_it(
    mailbox: Mailbox, sent: Sent
) -> None:
    with pytest.raises(BrokerStateLost, match="send it again"):
        looked_up(mailbox, sent, UNKNOWN).result(timeout_s=1)


def test_a_request_from_elsewhere_that_the_broker_does_not_know_may_never_have_existed(
    mailbox: Mailbox, sent: Sent
) -> None:
    with pytest.raises(ResultUnavailable):
        looked_up(mailbox, sent, UNKNOWN, deadline_ms=0).result(timeout_s=1)


@pytest.mark.parametrize("deadline_ms", [0, 1])
def test_a_request_that_is_open_stays_so(mailbox: Mailbox, sent: Sent, deadline_ms: int) -> None:
    assert not looked_up(mailbox, sent, [b"o", b""], deadline_ms).done.is_set()


def test_an_own_request_that_is_unknown_before_it_was_accepted_is_still_on_its_way(
    mailbox: Mailbox, sent: Sent
) -> None:
    # another thread may look at a ref between its making and its submission
    assert not looked_up(mailbox, sent, UNKNOWN, accepted=False).done.is_set()


def test_a_look_that_the_broker_cannot_answer_now_ends_nothing(mailbox: Mailbox, sent: Sent) -> None:
    error = redis.ResponseError("MISCONF Errors writing to the AOF file: No space left on device")
    assert not looked_up(mailbox, sent, error).done.is_set()


# -- reading ---------------------------------------------------------------------------------------


def test_messages_are_read_and_the_epoch_is_checked_once_a_second_while_refs_are_open(
    mailbox: Mailbox, now: list[float]
) -> None:
    reading = Reading(mailbox)
    reading.read()
    assert reading.is_read, "nothing is open, so nothing can be lost"

    two_refs(mailbox)
    reading.read()
    assert reading.asks_epoch
    reading.read()
    assert reading.is_read
    now[0] += 1.1
    reading.read()
    assert reading.asks_epoch

    reading.read(MESSAGE)
    assert not mailbox._open


def test_requests_of_another_epoch_are_lost(mailbox: Mailbox, now: list[float]) -> None:
    mailbox.change_epoch("first")
    first, _ = two_refs(mailbox)
    reading = Reading(mailbox)

    reading.read()
    assert reading.asks_epoch
    reading.reply(b"second")

    with pytest.raises(BrokerStateLost):
        first.result(timeout_s=1)


def test_a_lost_connection_is_tried_again_with_growing_pauses_and_deadlines_pass(
    mailbox: Mailbox, now: list[float]
) -> None:
    ref = Ref(ID, None)
    mailbox.add(ref, int(time.time() * 1000) - 2 * GRACE_MS - CLOSING_MS)
    reading = Reading(mailbox)
    pauses = []

    for _ in range(8):
        reading.lose()
        pauses.append(reading.action)
        reading.reply(None)
        assert reading.asks_epoch

    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, *[LONGEST_PAUSE_S] * 3]
    assert ref.outcome().state == "x"


def test_after_a_lost_connection_every_open_request_is_looked_up_twice(
    mailbox: Mailbox, sent: Sent, now: list[float]
) -> None:
    # a message may have been popped for the lost connection, or for its read that goes on in the broker for a while
    mailbox.add(Ref(ID, None), 10**15)
    reading = Reading(mailbox)
    reading.lose()
    reading.reply(None)
    reading.reply(b"first")
    assert reading.is_read
    assert sent.commands == [LOOK]

    reading.read()
    reading.read()
    assert sent.commands == [LOOK]
    now[0] += MAILBOX_BLOCK_S + STRAY_READ_S + 0.1
    reading.read()
    reading.read()
    assert sent.commands == [LOOK, LOOK]


def test_requests_that_are_open_for_long_are_looked_up_now_and_then(
    mailbox: Mailbox, sent: Sent, now: list[float]
) -> None:
    mailbox.add(Ref(ID, None), 10**15)
    reading = Reading(mailbox)
    reading.read()
    assert sent.commands == []
    for _ in range(10):
        now[0] += ASK_INTERVAL_S / 4
        reading.read()
        mailbox.add(Ref(OTHER, None), 10**15)

    assert 2 <= sent.commands.count(LOOK) <= 3


def test_few_messages_are_read_at_a_time_after_large_ones(mailbox: Mailbox) -> None:
    reading = Reading(mailbox)
    reading.read(b"x" * (2 << 20))
    counts = [reading.action[-1]]
    for message in (b"x", b"x"):
        reading.read(message)
        counts.append(reading.action[-1])
    assert counts == [4, 256, 256]


def test_an_error_reply_is_an_error_and_reading_goes_on(
    mailbox: Mailbox, now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    reading = Reading(mailbox)
    reading.reply(redis.ResponseError("LOADING the data"))
    assert reading.action == 0.05
    reading.reply(None)
    reading.reply(b"first")

    assert reading.is_read
    assert "reading the mailbox failed: the broker cannot answer now: LOADING the data" in caplog.text
    assert "Traceback" not in caplog.text


def test_an_error_of_a_kind_that_is_not_expected_is_logged_and_reading_goes_on(
    mailbox: Mailbox, now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    reading = Reading(mailbox)
    reading.lose(ZeroDivisionError())
    assert reading.action == 0.05
    assert "ZeroDivisionError" in caplog.text


def item(number: int) -> bytes:
    return ID.encode() + b"i" + SEAL.seal(item_context(ID, number), b"%d" % number)


def test_the_end_of_a_stream_that_is_looked_up_waits_for_the_items_in_the_mailbox(
    mailbox: Mailbox, sent: Sent, now: list[float]
) -> None:
    ref: ItemRef[Any] = ItemRef(ID, None)
    mailbox.add(ref, 10**15)
    reading = Reading(mailbox)
    mailbox.watch(ref)
    sent[0][1]([b"d", seal_end(SEAL, ID, "d", b"")])
    assert not ref.done.is_set()

    reading.read(item(0))  # this read was under way before the end was looked up
    assert not ref.done.is_set()
    reading.read(item(1))

    assert ref.done.is_set()
    assert [ref.next(), ref.next(), ref.next()] == [b"0", b"1", None]


@pytest.mark.parametrize(("sent_items", "is_whole"), [(2, True), (3, False), (0, False)])
def test_a_stream_ends_well_only_with_all_of_its_items(mailbox: Mailbox, sent_items: int, is_whole: bool) -> None:
    ref: ItemRef[Any] = ItemRef(ID, None)
    mailbox.add(ref, 10**15)
    for number in range(2):
        mailbox.receive(ID.encode() + b"i" + SEAL.seal(item_context(ID, number), b"item"))

    mailbox.receive(ID.encode() + b"d" + seal_end(SEAL, ID, "d", end_of_items(sent_items)))

    assert (ref.outcome().state == "d") is is_whole
    assert is_whole or "of the" in str(ref.error())
