"""Random histories of submissions, commits, deaths and cancellations, each step compared with a model in Python.

Replies get lost, replicas die or freeze and commit late, requests expire, queues are removed; after every step
the whole content of the broker must be what the model says, and no more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgpack
import pytest
import redis
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from request_model import (
    CONSUMERS,
    DEATH_LIMIT,
    DELETED,
    FAILED,
    LOST,
    MAILBOXES,
    OTHER,
    OWN,
    PLANS,
    STREAMS,
    TRIED_OFTEN,
    Delayed,
    Delivery,
    Model,
    Plan,
    Request,
    Slot,
    header_of,
    may_become,
    order,
    wide,
)

from qserve.base.keys import EVENTS_KEPT, GROUP, LETTER_BYTES, Keys
from qserve.broker import functions
from qserve.broker.connection import create_group
from qserve.broker.library import Command
from qserve.wire.moves import Awaited, Epoch, Join, Move, Start
from qserve.wire.outcome import State

T = TypeVar("T")

LIFE_MS, KEEP_MS = 120_000, 60_000

Act = Callable[["Requests"], None]
ACTS: dict[str, tuple[int, Callable[[Any], Any], Act]] = {}


def act(weight: int, when: Callable[[Any], Any] = lambda self: True) -> Callable[[Act], Act]:
    """Something that may happen next.

    One rule chooses among them by their weights. As rules of their own they would be switched off at random
    by Hypothesis' swarm testing, each in half of the examples, and few requests would ever come to an end.
    """

    def register(method: Act) -> Act:
        ACTS[method.__name__] = (weight, when, method)
        return method

    return register


@dataclass
class Seen:
    """What lies in the broker after a step."""

    entries: dict[str, dict[bytes, dict[bytes, bytes]]] = field(default_factory=dict)
    pending: dict[str, dict[bytes, str]] = field(default_factory=dict)

    def undelivered(self, stream: str) -> list[bytes]:
        """The entries that nobody has fetched, oldest first."""
        return [entry for entry in self.entries[stream] if entry not in self.pending[stream]]


class Requests(RuleBasedStateMachine):
    """Drives the functions in a real broker, and the model beside them."""

    client: redis.Redis
    plans: tuple[Plan, ...] = PLANS

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.keys = Keys("machine")
        self.names = {name: self.keys.stream("other" if name in OTHER else "own", "v", name) for name in STREAMS}
        self.letter_bytes = f"{self.keys.dead_letters}:{LETTER_BYTES}"
        self.boxes = {name: self.keys.mailbox(name) for name in MAILBOXES + CONSUMERS}
        self.model = Model()
        self.seen = Seen()
        self.submissions: list[tuple[Request, str, Command]] = []
        self.deliveries: list[Delivery] = []
        self.commits: list[tuple[Delivery, Command]] = []
        self.epoch = ""
        self.kept: dict[Request, set[int]] = {}
        self.states: dict[Request, str] = {}
        self.copies: set[tuple[str, bytes]] = set()
        self.held: dict[str, int] = {}

    def teardown(self) -> None:
        self.client.flushall()

    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        self.data = data
        # the weightiest first: Hypothesis chooses what comes first more often, and shrinks to it
        ordered = sorted(ACTS.items(), key=lambda item: -item[1][0])
        possible = [name for name, (weight, when, _) in ordered for _ in range(weight) if when(self)]
        ACTS[self.one_of(possible)][2](self)

    def one_of(self, things: Iterable[T]) -> T:
        return self.data.draw(st.sampled_from(list(things)))

    def send(self, command: Command) -> Any:
        try:
            reply = self.client.execute_command(*command)
        except redis.ResponseError as error:
            assert "more than" in str(error), error
            reply = b"ERR"
        note(f"{command[1:]!s:.999} answers {reply!r}")
        return reply

    # -- requests come in and are asked for --------------------------------------------------------

    @initialize()
    def deploy(self) -> None:
        if not self.model.epoch:
            self.model.epoch = self.epoch = f"{self.epoch}+"
            self.client.set(self.keys.epoch, self.epoch)
        for stream in self.names.values():
            create_group(self.client, stream)
        self.model.is_deployed = True

    @act(3, when=lambda self: not self.model.is_deployed)
    def deploy_again(self) -> None:
        self.deploy()

    @act(4)
    def submit(self) -> None:
        # those with branches more often: what one of them goes through, the others must notice
        plans = (*self.plans, *(plan for plan in self.plans if len(plan.steps) > 2))
        plan = self.one_of(plan for plan in plans if self.model.requests or not plan.refs)
        mailbox = self.one_of((*MAILBOXES, ""))
        keep_ms = self.one_of((KEEP_MS, KEEP_MS, KEEP_MS, 0))
        limit = self.one_of((-1, -1, -1, 2))
        fingerprint, is_large = self.one_of(("", "what was asked")), self.one_of((True, False))
        request = Request(
            f"{len(self.model.requests):032x}", plan, mailbox, keep_ms, fingerprint=fingerprint, is_large=is_large
        )
        others = {slot: self.one_of(self.model.requests[::-1]) for slot in plan.refs}
        limits = dict.fromkeys(plan.streams, limit) if limit >= 0 else {}
        command = self.submission(request, others, limits)

        expected = self.model.submit(request, others, self.is_full(limits), self.epoch)

        reply = self.send(command)
        assert (reply[0] if isinstance(reply, list) else reply) == expected
        if expected == b"OK":
            self.submissions.append((request, self.epoch, command))

    def is_full(self, limits: dict[str, int]) -> bool:
        return any(
            stream in self.seen.entries and len(self.seen.entries[stream]) - len(self.seen.pending[stream]) >= limit
            for stream, limit in limits.items()
        )

    def submission(self, request: Request, others: dict[Slot, Request], limits: dict[str, int]) -> Command:
        given = {slot: b"given to %d.%d" % slot for slot in request.plan.given}
        awaited = [
            Awaited(
                self.keys.request(other.id),
                self.names[request.plan.steps[slot.step].stream],
                str(slot.step),
                request.plan.steps[slot.step].needs,
                slot.number,
            )
            for slot, other in others.items()
        ]
        return functions.submit(
            self.keys.request(request.id),
            request.id,
            Epoch(self.keys.epoch, self.epoch),
            self.header(request),
            self.boxes.get(request.mailbox, ""),
            LIFE_MS,
            request.keep_ms,
            list(self.moves(request, given, request.plan.unasked)),
            awaited,
            {self.names[stream]: limit for stream, limit in limits.items()},
            fingerprint=request.fingerprint,
            values=request.given_names(),
        )

    def header(self, request: Request) -> bytes:
        return header_of(request)

    def moves(
        self,
        request: Request,
        filled: dict[Slot, bytes],
        unasked: set[int] = frozenset(),  # type: ignore[assignment]
    ) -> Iterator[Move]:
        by_step: dict[int, list[tuple[int, bytes]]] = {step: [] for step in unasked}
        for slot, value in sorted(filled.items()):
            by_step.setdefault(slot.step, []).append((slot.number, value))
        for step, slots in sorted(by_step.items()):
            one = request.plan.steps[step]
            if len(slots) == one.needs:
                yield Start(self.names[one.stream], str(step), [value for _, value in slots])
            else:
                yield Join(self.names[one.stream], str(step), one.needs, slots)

    @act(1, when=lambda self: self.submissions)
    def lose_the_reply_of_a_submission_and_send_it_again(self) -> None:
        request, epoch, command = self.one_of(self.submissions)
        if epoch != self.model.epoch:
            assert self.send(command) == b"EPOCH " + self.model.epoch.encode()
        elif request.state and not request.fingerprint:
            assert self.send(command) == b"DUP"
        elif request.state:
            self.check_followed(request, self.send(command), request.asked_from)

    @act(1, when=lambda self: self.model.requests)
    def watch(self) -> None:
        request, mailbox = self.one_of(self.model.requests), self.one_of(("", *MAILBOXES))

        key = self.keys.request(request.id)
        command = functions.watch(key, self.boxes[mailbox]) if mailbox else functions.look(key)

        self.check_followed(request, self.send(command), mailbox)

    def check_followed(self, request: Request, reply: Any, mailbox: str) -> None:
        """Whoever asks is answered, or will be told, once."""
        state, result, *header = reply
        assert header == [self.header(request)] * request.is_open
        assert (state.decode(), result) == (request.state, b"" if request.state in ("", State.OPEN) else request.result)
        if request.is_open and mailbox not in ("", request.mailbox, *request.waiters):
            request.waiters.append(mailbox)

    @act(1, when=lambda self: self.model.requests)
    def forget(self) -> None:
        requests = {self.one_of(self.model.requests) for _ in range(self.one_of((1, 2)))}
        for request in requests:
            self.model.forget(request)

        self.check_freed(self.send(functions.forget([self.keys.request(request.id) for request in requests])), b"OK")

    def check_freed(self, reply: Any, expected: bytes) -> None:
        """A reply tells of each value that is gone with what was held until now."""
        freed = set(reply[1:]) if isinstance(reply, list) else set()
        assert (reply[0] if isinstance(reply, list) else reply) == expected
        assert {name.decode() for name in freed} == set(self.held) - set(self.model.holders())

    @act(2, when=lambda self: self.model.requests)
    def cancel(self) -> None:
        request, state = self.one_of(self.model.requests), self.one_of((State.CANCELLED, State.EXPIRED))

        expected = self.model.close(request, state)

        assert self.send(functions.close(self.keys.request(request.id), request.id, state, b"")) == expected

    def owner(self, fields: dict[bytes, bytes]) -> tuple[Request, int]:
        return self.model.requests[int(fields[b"h"][:32], 16)], int(fields[b"s"])

    @act(1, when=lambda self: self.model.requests)
    def expire(self) -> None:
        request = self.one_of(self.model.requests)
        self.client.delete(self.keys.request(request.id))
        self.model.expire(request)

    # -- replicas work -----------------------------------------------------------------------------

    @act(6, when=lambda self: self.busy())
    def fetch(self) -> None:
        stream, consumer, count = self.one_of(self.busy()), self.one_of(CONSUMERS), self.one_of((1, 2, 3))
        expected = self.seen.undelivered(stream)[:count]

        found: Any = self.client.xreadgroup(GROUP, consumer, {self.names[stream]: ">"}, count=count)

        entries = found[0][1] if found else []
        assert [entry for entry, _ in entries] == expected
        for entry, fields in entries:
            is_copy = (stream, entry) in self.copies
            delivery = Delivery(consumer, stream, entry, *self.owner(fields), self.epoch, is_copy)
            self.deliveries.append(delivery)
            self.model.held[stream, entry] = delivery

    def busy(self) -> list[str]:
        """The queues on which something lies that nobody has fetched."""
        return [stream for stream in self.seen.entries if self.seen.undelivered(stream)]

    @act(2, when=lambda self: any(self.seen.entries.values()))
    def copy_an_entry(self) -> None:
        """Somebody without a key adds the very fields of an entry once more."""
        stream = self.one_of(name for name, entries in self.seen.entries.items() if entries)
        fields: Any = self.seen.entries[stream][self.one_of(self.seen.entries[stream])]

        self.copies.add((stream, self.client.xadd(self.names[stream], fields)))

    @act(1, when=lambda self: self.model.held)
    def read_the_own_history(self) -> None:
        stream, consumer = self.one_of(self.seen.entries), self.one_of(CONSUMERS)
        expected = [entry for entry, owner in self.seen.pending[stream].items() if owner == consumer]

        found: Any = self.client.xreadgroup(GROUP, consumer, {self.names[stream]: "0"})

        assert [entry for entry, _ in found[0][1]] == expected

    @act(8, when=lambda self: self.deliveries)
    def commit(self) -> None:
        delivery, is_failure = self.one_of(self.deliveries), self.one_of((False, False, False, False, True))
        targets = delivery.request.plan.steps[delivery.step].targets
        is_stored = delivery.request.is_large and (targets or self.one_of((True, False))) and not is_failure
        value = f"made by {delivery.entry.decode()} of {delivery.request.id}" if is_stored else ""
        command = self.commitment(delivery, is_failure, value)
        expected = self.model.commit(delivery, is_failure, value)

        self.check_freed_by_commit(self.send(command), expected, value)
        if expected != b"ERR":
            self.deliveries.remove(delivery)
            self.commits.append((delivery, command))

    def check_freed_by_commit(self, reply: Any, expected: bytes, value: str) -> None:
        if expected != b"OK":
            assert reply == expected
            return
        if value and value not in self.model.holders():
            self.held[value] = 1  # nobody wants it
        self.check_freed(reply, expected)

    def commitment(self, delivery: Delivery, is_failure: bool, made: str) -> Command:
        request, step = delivery.request, delivery.step
        targets, value = request.plan.steps[step].targets, request.outcome(step)
        end: dict[str, Any] = {}
        if is_failure:
            end = {"state": State.FAILED, "payload": FAILED}
        elif not targets:
            end = {"state": State.DONE, "payload": value}
        else:
            end = {"moves": list(self.moves(request, dict.fromkeys(targets, value)))}
            uses = Counter({made: len(targets)} if made else {})
            uses.subtract(request.taken_names(step))
            end["values"] = dict(uses)
        if not targets and made:
            end["values"] = {made: 1}
        stream, entry = self.names[delivery.stream], delivery.entry
        epoch, attempt = Epoch(self.keys.epoch, delivery.epoch), entry.decode()
        return functions.commit(
            stream, self.keys.request(request.id), entry, request.id, epoch, attempt, str(step), **end
        )

    @act(1, when=lambda self: self.commits)
    def lose_the_reply_of_a_commit_and_send_it_again(self) -> None:
        delivery, command = self.one_of(self.commits[::-1])
        expected = self.model.commit(delivery, False)
        assert expected in (b"DUP", b"STALE", b"CLOSED", b"GONE", b"EPOCH " + self.model.epoch.encode())

        assert self.send(command) == expected

    @act(2, when=lambda self: self.deliveries)
    def postpone(self) -> None:
        delivery, is_soon = self.one_of(self.deliveries), self.one_of((True, False))
        request, stream = delivery.request, self.names[delivery.stream]
        command = functions.postpone(
            stream,
            self.keys.request(request.id),
            self.keys.delayed_of(stream),
            delivery.entry,
            0 if is_soon else 100_000,
            request.tries[delivery.step] + 1,
            LIFE_MS,
            delivery.consumer,
            "it failed",
        )

        assert self.send(command) == self.model.postpone(delivery)
        self.deliveries.remove(delivery)

    @act(2, when=lambda self: self.model.delayed)
    def wake(self) -> None:
        stream = self.one_of(self.seen.entries)
        name, delayed = self.names[stream], self.keys.delayed_of(self.names[stream])
        soon_ms = self.client.time()[0] * 1000 + LIFE_MS // 2
        due = self.delayed(stream, self.client.zrangebyscore(delayed, "-inf", soon_ms))

        assert self.send(functions.wake(delayed, name)) == len(due)
        self.model.wake(set(due))

    def delayed(self, stream: str, members: Iterable[bytes]) -> list[Delayed]:
        """The calls among the members of a zset; the others are steps that wait for a result."""
        found = []
        for member in members:
            _, *rest = msgpack.unpackb(member, raw=True)
            if len(rest) > 1:
                found.append(Delayed(stream, *self.owner(dict(zip(rest[::2], rest[1::2], strict=True)))))
        return found

    @act(1, when=lambda self: self.model.delayed)
    def let_time_pass(self) -> None:
        for name in self.names.values():
            delayed = self.keys.delayed_of(name)
            for member in self.client.zrange(delayed, 0, -1):
                if self.delayed(name, [member]):
                    self.client.zadd(delayed, {member: 1}, xx=True)

    @act(3, when=lambda self: self.model.held)
    def die_or_freeze(self) -> None:
        """A frozen replica is taken for dead: it goes on later with what it has in memory."""
        holders = {one.consumer for one in self.model.held.values()}
        consumer, is_frozen = self.one_of(sorted(holders)), self.one_of((False, True))
        for stream, name in self.names.items():
            if stream not in self.seen.entries:
                continue
            expected = self.model.reclaim(consumer, stream)
            command = functions.reclaim(name, name, consumer, DEATH_LIMIT, LOST, self.keys.request(""))
            assert self.send(command) == expected
            names = [one["name"] for one in self.client.xinfo_consumers(name, GROUP)]
            assert consumer.encode() not in names
        if not is_frozen:
            self.deliveries = [one for one in self.deliveries if one.consumer != consumer]

    @act(1, when=lambda self: self.deliveries)
    def give_back(self) -> None:
        delivery = self.one_of(self.deliveries)
        is_there = delivery.entry in self.seen.entries.get(delivery.stream, {})
        name = self.names[delivery.stream]
        command = functions.give_back(name, name, [delivery.entry], self.keys.request(""))

        assert self.send(command) == self.model.give_back(delivery, is_there)
        self.deliveries.remove(delivery)

    @act(2, when=lambda self: self.deliveries)
    def dead_letter(self) -> None:
        delivery = self.one_of(self.deliveries)
        stream, request = self.names[delivery.stream], delivery.request
        command = functions.dead_letter(
            stream,
            self.keys.request(request.id),
            delivery.entry,
            request.id,
            "retries",
            TRIED_OFTEN,
            delivery.consumer,
            "no",
        )

        assert self.send(command) == self.model.dead_letter(delivery)
        self.deliveries.remove(delivery)

    @act(3, when=lambda self: any(one.is_dead for one in self.model.requests))
    def replay(self) -> None:
        request = self.one_of(one for one in self.model.requests if one.is_dead)
        dead, key = self.keys.dead_letter(request.id), self.keys.request(request.id)
        command = functions.replay(dead, key, request.id, self.header(request), LIFE_MS, KEEP_MS, {})

        expected = self.model.replay(request, KEEP_MS, self.kept.get(request, set()))

        assert self.send(command) == expected
        if expected == b"OK":
            assert self.send(command) == b"NONE"

    @act(1, when=lambda self: any(one.is_dead for one in self.model.requests))
    def purge(self) -> None:
        requests = {self.one_of(self.model.requests[::-1]) for _ in range(2)}
        ids = [one.id for one in requests]
        command = functions.purge(self.keys.dead_letters, [self.keys.dead_letter(one) for one in ids], ids)

        assert self.send(command) == self.model.purge(requests)

    @act(2, when=lambda self: self.deliveries)
    def emit(self) -> None:
        request, is_again = self.one_of(self.deliveries).request, self.one_of((False, True))
        item = max(0, request.sent - is_again)
        value = f"item {item} of {request.id}" if request.is_large else ""
        end = item + (1 if value else self.one_of((1, 2)))
        items = [b"%d" % number for number in range(item, end)]
        command = functions.emit(self.keys.request(request.id), request.id, item, items, value)

        assert self.send(command) == self.model.emit(request, range(item, end), value)

    @act(1, when=lambda self: self.model.items)
    def read_an_item(self) -> None:
        value = self.one_of(sorted(self.model.items))

        self.model.release(value)

        self.check_freed(self.send(functions.release([self.keys.value(value)])), b"OK")

    @act(2, when=lambda self: self.deliveries)
    def note(self) -> None:
        one = self.one_of(self.deliveries)
        request, stream, progress = self.keys.request(one.request.id), self.names[one.stream], b"%d" % len(self.commits)
        command = functions.note(request, stream, one.entry, str(one.step), progress, True)

        assert self.send(command) == self.model.note(one, progress)

    @act(1, when=lambda self: self.model.requests)
    def observe(self) -> None:
        request = self.one_of(self.model.requests)

        found = self.send(functions.observe(self.keys.request(request.id), request.id, 0))

        numbers = [b"%d-0" % number for number in range(1, self.model.observe(request) + 1)]
        assert found[::2] == numbers[-EVENTS_KEPT:]

    @act(1, when=lambda self: any(one.sent for one in self.model.requests))
    def take(self) -> None:
        request = self.one_of(one for one in self.model.requests if one.sent)
        count = request.sent - request.taken

        assert self.send(functions.take(self.keys.request(request.id), count)) == self.model.take(request, count)

    @act(1, when=lambda self: self.model.is_deployed)
    def retire(self) -> None:
        force = self.one_of((False, False, False, False, False, True))
        is_idle = not any(self.seen.entries[stream] for stream in OWN)
        streams = [self.names[stream] for stream in OWN]
        keys = streams + [self.keys.delayed_of(name) for name in streams]

        expected = self.model.retire(force, is_idle, [*self._requests_in(keys)])

        assert self.send(functions.retire(keys, force, DELETED, self.keys.request(""))) == expected

    def _requests_in(self, keys: list[str]) -> Iterator[str]:
        """Yield the ids of requests in the order in which `retire` comes to what they have in these keys.

        Where one of them waits for another, the end of the second is that of the first if it comes before.
        """
        prefix = self.keys.request("")
        for key in keys:
            if self.client.type(key) == b"stream":
                for entry, fields in self.client.xrange(key):
                    request = fields.get(b"h", b"")[:32].decode("latin-1")
                    place = self.client.hget(prefix + request, b"e:" + fields.get(b"s", b""))
                    if place == f"{key} ".encode() + entry:
                        yield request
            else:
                for member in self.client.zrange(key, 0, -1):
                    name, *rest = msgpack.unpackb(member, raw=True)
                    call = dict(zip(rest[::2], rest[1::2], strict=True)) if len(rest) > 1 else {}
                    if not call or self.client.hget(name, b"e:" + call[b"s"]) == b"z":
                        yield name.decode().removeprefix(prefix)

    @act(1, when=lambda self: len(self.model.requests) > 3)
    def lose_everything(self) -> None:
        newest = max((order(entry)[0] for entries in self.seen.entries.values() for entry in entries), default=0)
        self.client.flushall()
        self.model.lose_everything()
        self.copies.clear()
        # no entry of the new state may have the id of one that is gone
        while self.client.time()[0] * 1000 + self.client.time()[1] // 1000 <= newest:
            pass

    # -- after every step --------------------------------------------------------------------------

    @invariant()
    def the_broker_holds_what_the_model_says_and_nothing_else(self) -> None:
        content = self.read()
        expected = {self.names[stream] for stream in (STREAMS if self.model.is_deployed else OTHER)}
        expected |= {self.keys.epoch}
        if not self.model.epoch:
            expected = set()
        dead = [one for one in self.model.requests if one.is_dead]
        expected |= {self.keys.dead_letter(one.id) for one in dead} | {self.keys.dead_letters for _ in dead[:1]}
        expected |= {self.keys.request(one.id) for one in self.model.requests if one.state}
        expected |= {self.keys.delayed_of(self.names[one.stream]) for one in self.model.delayed}
        expected |= {self.boxes[name] for name, mail in self.model.mail.items() if mail}
        waiting = {self.keys.delayed_of(name) for name in self.names.values()}
        logs = {self.log(one) for one in self.model.requests if one.events}
        self.held = {name: count for name, count in self.model.holders().items() if count}
        expected |= {self.keys.value(name) for name in self.held}
        assert expected <= set(content) <= expected | waiting | logs | {self.letter_bytes}
        self.look(content)
        self.check_requests(content)
        self.check_letters(content)
        self.check_calls(content)
        for name, mail in self.model.mail.items():
            assert Counter(content.get(self.boxes[name], ())) == mail
        stored = {name: int(content[self.keys.value(name)][b"n"]) for name in self.held}
        assert stored == self.held

    def log(self, request: Request) -> str:
        return self.keys.request(request.id).replace(":r:", ":v:")

    def read(self) -> dict[str, Any]:
        """All keys and what they hold; only queues may live for ever."""
        names = [name.decode() for name in self.client.keys("*")]
        streams = set(self.names.values())
        pipe = self.client.pipeline(transaction=False)
        for name in names:
            if name in streams:
                pipe.xrange(name)
                pipe.xpending_range(name, GROUP, "-", "+", 1000)
            else:
                if name == self.keys.epoch:
                    pipe.get(name)
                elif any(part in name for part in (":r:", ":d:", ":y:")) or name == self.letter_bytes:
                    pipe.hgetall(name)
                elif name.startswith("{machine}:v:"):
                    pipe.xrange(name)
                elif ":m:" in name:
                    pipe.lrange(name, 0, -1)
                else:
                    pipe.zrange(name, 0, -1)
                pipe.pttl(name)
        replies = iter(pipe.execute())
        content = {}
        for name in names:
            value, more = next(replies), next(replies)
            content[name] = (value, more) if name in streams else value
            assert name in streams or name == self.keys.epoch or more > 0, f"{name} has no time to live"
        return content

    def look(self, content: dict[str, Any]) -> None:
        self.seen = Seen()
        for stream, name in self.names.items():
            if name in content:
                entries, pending = content[name]
                self.seen.entries[stream] = dict(entries)
                self.seen.pending[stream] = {one["message_id"]: one["consumer"].decode() for one in pending}
        held = {(stream, entry): who for stream, pending in self.seen.pending.items() for entry, who in pending.items()}
        assert held == {key: one.consumer for key, one in self.model.held.items()}

    def check_requests(self, content: dict[str, Any]) -> None:
        before, self.states = self.states, {}
        for request in self.model.requests:
            if not request.state:
                continue
            fields = {name.decode(): value for name, value in content[self.keys.request(request.id)].items()}
            state = self.states[request] = fields["st"].decode()
            assert state == before.get(request, state) or may_become(before[request], state)
            if not request.is_open:
                asked = {"fp": request.fingerprint.encode()} if request.fingerprint else {}
                end = {"st": request.state.encode(), "res": request.result, "by": request.by.encode()}
                fields.pop("y", None)
                assert fields == end | asked
                continue
            assert state == State.OPEN
            assert fields["h"] == self.header(request)
            assert fields["to"].decode() == self.boxes.get(request.mailbox, "")
            assert fields["keep"] == b"%d" % request.keep_ms
            assert fields.get("by", b"").decode() == request.by
            assert int(fields.get("w", 0)) == len(request.waiters)
            assert fields.get("at", b"") == request.progress
            assert fields.get("ev") == (None if request.events is None else b"%d" % request.events)
            assert len(content.get(self.log(request), ())) == min(request.events or 0, EVENTS_KEPT)
            self.check_joins(request, fields)

    def check_joins(self, request: Request, fields: dict[str, bytes]) -> None:
        slots = {name: value for name, value in fields.items() if name[0].isdigit() and not name.endswith(".n")}
        assert slots == {f"{slot.step}.{slot.number}": value for slot, value in request.waiting().items()}

    def check_letters(self, content: dict[str, Any]) -> None:
        """A dead letter holds what its request had reached, but for calls that still lie on a queue."""
        self.kept = {}
        for request in self.model.requests:
            if not request.is_dead:
                continue
            fields = {name.decode(): value for name, value in content[self.keys.dead_letter(request.id)].items()}
            self.check_joins(request, fields)
            assert fields["!failure"] in (TRIED_OFTEN, LOST)
            self.kept[request] = set()
            for number in range(1, int(fields["!n"]) + 1):
                _, flat = msgpack.unpackb(fields[f"!{number}"], raw=True)
                call = dict(zip(flat[::2], flat[1::2], strict=True))
                owner, step = self.owner(call)
                assert owner is request
                assert step not in self.kept[request], "a call is kept twice"
                self.kept[request].add(step)
                assert self.without_history(call) == self.fields(request, step)

    def without_history(self, fields: dict[bytes, bytes]) -> dict[bytes, bytes]:
        return {name: value for name, value in fields.items() if name != b"y"}

    def check_calls(self, content: dict[str, Any]) -> None:
        """Each unfinished call of an open request lies in exactly one place, with what it needs."""
        calls: Counter[tuple[Request, int]] = Counter()
        for stream, entries in self.seen.entries.items():
            for entry, fields in entries.items():
                if (stream, entry) in self.copies:
                    continue
                request, step = self.owner(fields)
                calls[request, step] += 1
                if request.is_open or request.is_dead:
                    assert self.without_history(fields) == self.fields(request, step)
                elif request.state and not request.is_abandoned:
                    assert entry in self.seen.pending[stream], "a call of an ended request is still queued"
        delayed = [
            one
            for stream, name in self.names.items()
            for one in self.delayed(stream, content.get(self.keys.delayed_of(name), ()))
        ]
        assert Counter(delayed) == Counter(self.model.delayed)
        calls.update((one.request, one.step) for one in delayed)
        calls.update((request, step) for request, steps in self.kept.items() for step in steps)
        alive = [request for request in self.model.requests if request.is_open or request.is_dead]
        due = Counter((request, step) for request in alive for step in request.due())
        assert Counter({call: count for call, count in calls.items() if call[0] in alive}) == due

    def fields(self, request: Request, step: int) -> dict[bytes, bytes]:
        fields = {b"h": self.header(request), b"s": b"%d" % step}
        for number, value in enumerate(request.values(step)):
            fields[b"%d" % number] = value
        for name, count in ((b"x", request.deaths[step]), (b"t", request.tries[step])):
            if count:
                fields[name] = b"%d" % count
        return fields


def run(client: redis.Redis, how: settings, plans: tuple[Plan, ...] = PLANS) -> None:
    machine = type("Machine", (Requests,), {"client": client, "plans": plans})
    run_state_machine_as_test(machine, settings=settings(how, phases=PHASES))


PHASES = (Phase.generate, Phase.shrink)
COMMON = settings(
    deadline=None,
    stateful_step_count=40,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
    database=None,
)


@pytest.mark.slow
@pytest.mark.timeout(400)  # to find the shortest history that goes wrong takes longer than to see that all go right
def test_every_history_of_a_request_ends_as_the_model_says(client: redis.Redis) -> None:
    run(client, settings(COMMON, max_examples=100, derandomize=True))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(600)
def test_long_histories_that_differ_at_every_run_end_as_the_model_says(client: redis.Redis) -> None:
    run(client, settings(COMMON, max_examples=150, stateful_step_count=60))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(600)
def test_steps_of_any_number_of_inputs_and_branches_go_as_the_model_says(client: redis.Redis) -> None:
    run(client, settings(COMMON, max_examples=25, stateful_step_count=15, derandomize=True), wide())
