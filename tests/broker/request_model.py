"""What the function library must do, in plain Python: the reference that the state machine compares with.

A request is described by what it was given and by which of its steps are done; which calls must lie on a queue
and which slots must wait follow from that, and are not written down a second time.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from qserve.wire.moves import INPUTS_LIMIT
from qserve.wire.outcome import State
from qserve.wire.sealing import INHERITED

DEATH_LIMIT = 2
LOST, DELETED, FAILED, TRIED_OFTEN = b"replica lost", b"\0app_deleted", b"why", b"tried too often"
OWN, OTHER = ("one", "two"), ("far",)
"""The queues of the version that is retired, and those of another application."""
STREAMS = OWN + OTHER
MAILBOXES = ("me", "you")
CONSUMERS = ("first", "second", "third")
"""Replicas, which have mailboxes under their names as well."""


def may_become(state: str, following: str) -> bool:
    """Whether a request may go from one state to another: one that has ended stays as it is, until it is replayed."""
    after: dict[str, set[State]] = {State.OPEN: set(State) - {State.OPEN}, State.FAILED: {State.OPEN}}
    return following in after.get(state, set())


class Named:
    """Something that a failing history shows by its name, and not with all it holds."""

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


class Slot(NamedTuple):
    """A place for one value of a step."""

    step: int
    number: int


@dataclass(frozen=True)
class Step:
    """One step: where it runs, how many values it takes, and which slots its result fills; none for the last."""

    stream: str
    needs: int
    targets: tuple[Slot, ...] = ()


@dataclass(frozen=True)
class Plan(Named):
    """A small graph: the slots filled by the caller, and those filled by other requests' results."""

    name: str
    steps: tuple[Step, ...]
    given: tuple[Slot, ...]
    refs: tuple[Slot, ...] = ()

    def __repr__(self) -> str:
        return self.name

    @property
    def streams(self) -> set[str]:
        """The queues that submitting names: of steps that are given a value, or another's result, or need none."""
        return {self.steps[step].stream for step in {slot.step for slot in self.given + self.refs} | self.unasked}

    @property
    def unasked(self) -> set[int]:
        """The steps that need no value."""
        return {number for number, step in enumerate(self.steps) if not step.needs}

    def is_too_wide(self, slots: Iterable[Slot]) -> bool:
        """Whether one of the steps that get these values has more inputs than a step may have."""
        return any(self.steps[slot.step].needs > INPUTS_LIMIT for slot in slots)


_FIRST = (Slot(0, 0),)
PLANS = (
    Plan("a single call", (Step("one", 1),), _FIRST),
    Plan("a call elsewhere", (Step("far", 1),), _FIRST),
    Plan("a chain", (Step("one", 1, (Slot(1, 0),)), Step("two", 1, (Slot(2, 0),)), Step("one", 1)), _FIRST),
    Plan(
        "a diamond",
        (
            Step("one", 1, (Slot(1, 0), Slot(2, 0))),
            Step("two", 1, (Slot(3, 0),)),
            Step("one", 1, (Slot(3, 1),)),
            Step("two", 2),
        ),
        _FIRST,
    ),
    Plan(
        "two beginnings",
        (Step("one", 1, (Slot(2, 0),)), Step("two", 1, (Slot(2, 2),)), Step("one", 3)),
        (Slot(0, 0), Slot(1, 0), Slot(2, 1)),
    ),
    Plan("takes a result", (Step("two", 2),), _FIRST, (Slot(0, 1),)),
    Plan("takes two results", (Step("two", 3),), _FIRST, (Slot(0, 1), Slot(0, 2))),
    Plan(
        "takes a result late",
        (Step("one", 1, (Slot(1, 0),)), Step("two", 3)),
        (Slot(0, 0), Slot(1, 1)),
        (Slot(1, 2),),
    ),
    Plan("takes nothing", (Step("one", 0, (Slot(1, 0),)), Step("two", 1)), ()),
)


def fan(number: int) -> Plan:
    """A result that goes to so many steps, and a step that takes the results of all of them."""
    branches = [Step("two", 1, (Slot(number + 1, branch),)) for branch in range(number)]
    first = Step("one", 1, tuple(Slot(1 + branch, 0) for branch in range(number)))
    return Plan(f"{number} branches", (first, *branches, Step("one", number)), _FIRST)


def funnel(number: int) -> Plan:
    """A step to which so many values are given, and one that waits for one more."""
    given = tuple(Slot(step, slot) for step in (0, 1) for slot in range(number))
    return Plan(f"{number} values", (Step("one", number, (Slot(1, number),)), Step("two", number + 1)), given)


def wide() -> tuple[Plan, ...]:
    """Graphs about the limits of what a step may be given and may give."""
    return tuple(make(number) for make in (fan, funnel) for number in (255, 256, 257)) + (
        funnel(INPUTS_LIMIT - 1), funnel(INPUTS_LIMIT), funnel(4_000), funnel(100_000), fan(4_000),
    )  # fmt: skip


@dataclass(eq=False)
class Request(Named):
    """One request that was accepted.

    ``state`` is "" once nothing is known of it any more. ``is_dead`` while a dead letter keeps what it had reached:
    its branches go no further, and a replay goes on with all of them.
    """

    id: str
    plan: Plan
    mailbox: str
    keep_ms: int
    state: str = State.OPEN
    result: bytes = b""
    by: str = ""
    slots: dict[Slot, bytes] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)
    waiters: list[str | tuple[Request, Slot]] = field(default_factory=list)
    deaths: Counter[int] = field(default_factory=Counter)
    tries: Counter[int] = field(default_factory=Counter)
    sent: int = 0
    taken: int = 0
    is_dead: bool = False
    is_abandoned: bool = False
    is_needed: bool = True
    fingerprint: str = ""
    progress: bytes = b""
    is_large: bool = False  # whether its values are stored beside its messages
    names: dict[Slot, str] = field(default_factory=dict)  # the stored values of slots
    noted: list[str] = field(default_factory=list)  # the stored values of its items
    uses: Counter[str] = field(default_factory=Counter)  # those that it holds, or its dead letter, or its result
    events: int | None = None  # None until somebody wants to know of them
    asked_from: str = ""

    def __post_init__(self) -> None:
        self.asked_from = self.mailbox  # also after a replay, of which nobody is told

    def __repr__(self) -> str:
        return f"{self.id.lstrip('0') or '0'} ({self.plan}, {self.state or 'unknown'})"

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.state == State.OPEN

    def values(self, step: int) -> list[bytes]:
        """The values of a step's slots, as far as they are there."""
        return [self.slots[slot] for slot in self._slots_of(step) if slot in self.slots]

    def _slots_of(self, step: int) -> list[Slot]:
        return [Slot(step, number) for number in range(self.plan.steps[step].needs)]

    def due(self) -> set[int]:
        """The steps that have all their values and are not done: each must be one call, in one place."""
        return {
            step
            for step, one in enumerate(self.plan.steps)
            if step not in self.done and len(self.values(step)) == one.needs
        }

    def waiting(self) -> dict[Slot, bytes]:
        """The slots of joins that are not yet complete."""
        started = self.due() | self.done
        return {slot: value for slot, value in self.slots.items() if slot.step not in started}

    def given_names(self) -> dict[str, int]:
        """The stored values of its submission, each with the number of slots that take it."""
        return {f"given to {self.id}": len(self.plan.given)} if self.is_large and self.plan.given else {}

    def taken_names(self, step: int) -> Counter[str]:
        """The stored values that a call of this step is given."""
        return Counter(self.names[slot] for slot in self._slots_of(step) if slot in self.names)

    def begin_again(self, step: int) -> None:
        """A call is kept in the dead letter: a replay starts counting from 0."""
        self.deaths[step] = self.tries[step] = 0

    def outcome(self, step: int) -> bytes:
        """What a step makes of its values: depends on each of them, and on their order."""
        return hashlib.blake2s(b"%d(%s)" % (step, b",".join(self.values(step))), digest_size=6).hexdigest().encode()


@dataclass(frozen=True)
class Delivery(Named):
    """A call in the memory of a replica."""

    consumer: str
    stream: str
    entry: bytes
    request: Request
    step: int
    epoch: str = ""
    is_copy: bool = False

    def __repr__(self) -> str:
        return f"{self.consumer}'s {self.entry.decode()} of {self.stream}: step {self.step} of {self.request}"

    @property
    def by(self) -> str:
        """How the broker remembers its commit."""
        return f"{self.step}:{self.entry.decode()}"


def order(entry: bytes) -> tuple[int, ...]:
    """The place of an entry in its stream."""
    return tuple(int(part) for part in entry.split(b"-"))


class Delayed(NamedTuple):
    """A call that waits for its next try."""

    stream: str
    request: Request
    step: int


def header_of(request: Request) -> bytes:
    """What each call of a request carries."""
    return request.id.encode() + b" and the rest"


def inherited(request: Request, other: Request, payload: bytes) -> bytes:
    """The end of a request that waited for another one, which ended with this payload."""
    depth = payload[len(INHERITED)] + 1 if payload.startswith(INHERITED) else 1
    header = header_of(request)
    return b"%b%c%08d%b%b%b" % (INHERITED, depth, len(header), header, other.id.encode(), payload)


class Model:
    """All requests of one installation, and who holds which delivery; each method answers what the broker must."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.held: dict[tuple[str, bytes], Delivery] = {}
        self.delayed: set[Delayed] = set()
        self.mail: dict[str, Counter[bytes]] = {name: Counter() for name in MAILBOXES + CONSUMERS}
        self.is_deployed = True
        self.epoch = ""
        self.items: Counter[str] = Counter()
        self.left: Counter[str] = Counter()
        """Stored values of items that nobody has read yet; and what requests held that have expired."""

    def holders(self) -> Counter[str]:
        """How many hold each stored value."""
        found = self.items + self.left
        for request in self.requests:
            found.update(list(+request.uses))
        return found

    def submit(self, request: Request, refs: dict[Slot, Request], is_full: bool, epoch: str) -> bytes:
        """A request comes in: it is accepted with all it needs, or nothing of it is kept."""
        if epoch != self.epoch:
            return b"EPOCH " + self.epoch.encode()
        if not self.is_deployed and not request.plan.streams <= set(OTHER):
            return b"MOVED"
        if is_full:
            return b"FULL"
        if any(not other.state for other in refs.values()):
            return b"LOST"
        if request.plan.is_too_wide(request.plan.given):
            return b"ERR"
        self.requests.append(request)
        failed = next((other for other in refs.values() if other.state not in (State.OPEN, State.DONE)), None)
        if failed is not None:
            self.finish(request, failed.state, inherited(request, failed, failed.result))
            return b"OK"
        for slot in request.plan.given:
            request.slots[slot] = b"given to %d.%d" % slot
            request.names.update(dict.fromkeys([slot], *request.given_names()) if request.is_large else {})
        request.uses.update(request.given_names())
        for slot, other in refs.items():
            if other.is_open:
                other.waiters.append((request, slot))
            else:
                self._take(request, slot, other, other.state, other.result, next(iter(+other.uses), ""))
        return b"OK"

    def _take(self, request: Request, slot: Slot, other: Request, state: str, payload: bytes, value: str) -> None:
        if request.is_dead and state == State.DONE:
            self._fill(request, slot, payload, value)
        elif not request.is_open:
            return
        elif not self.is_deployed:
            self.finish(request, State.FAILED, DELETED)
        elif state == State.DONE:
            self._fill(request, slot, payload, value)
        else:
            ended = inherited(request, other, payload)
            self.unqueue(request, state, ended)
            self.finish(request, state, ended)

    def _fill(self, request: Request, slot: Slot, payload: bytes, value: str) -> None:
        request.slots[slot] = payload
        if value:
            request.names[slot] = value
            request.uses[value] += 1

    def unqueue(self, request: Request, state: str = "", payload: bytes = b"") -> None:
        """A request ends while its calls wait, or run: nobody holds one of them any more, and who did so is told."""
        for one in self.held.values():
            if one.request is request and not one.is_copy and state in (State.CANCELLED, State.EXPIRED):
                self.mail[one.consumer][request.id.encode() + state.encode() + payload] += 1
        self.held = {place: one for place, one in self.held.items() if one.request is not request or one.is_copy}

    def finish(self, request: Request, state: str, payload: bytes, by: str = "", value: str = "") -> None:
        """A request ends: each waiter gets one message."""
        assert may_become(request.state, state)
        waiters, request.waiters = request.waiters, []
        if state in (State.CANCELLED, State.EXPIRED):  # its reader reads no more items
            self.items -= Counter(request.noted)
        is_kept = request.keep_ms > 0 or (value and (request.keep_ms == 0 or waiters))
        request.state, request.result, request.by = (state if is_kept else ""), payload, by
        if not request.is_dead:
            request.uses = Counter([value] if is_kept and value else [])
        if request.mailbox:
            self.mail[request.mailbox][request.id.encode() + state.encode() + payload] += 1
        for waiter in waiters:
            if isinstance(waiter, str):
                self.mail[waiter][request.id.encode() + state.encode() + payload] += 1
            else:
                self._take(*waiter, request, state, payload, value)

    def commit(self, delivery: Delivery, is_failure: bool, value: str = "") -> bytes:
        """A call ends. Its effects happen when its delivery is pending and its request open, and never otherwise.

        Parameters:
          value: Names the stored value of what it returns; "" if that is not stored.
        """
        request, step = delivery.request, delivery.step
        if delivery.epoch != self.epoch:
            return b"EPOCH " + self.epoch.encode()
        targets = request.plan.steps[step].targets
        is_forward = targets and not is_failure
        place = (delivery.stream, delivery.entry)
        is_mine = place in self.held and not delivery.is_copy
        if is_forward and is_mine and (request.is_open or request.is_dead) and request.plan.is_too_wide(targets):
            return b"ERR"
        self.held.pop(place, None)
        if not is_mine and request.state and request.by == delivery.by:
            return b"DUP"
        if not request.is_open and not request.is_dead:
            return b"CLOSED" if request.state else b"GONE"
        if not is_mine:
            return b"STALE"
        if request.is_dead:
            if is_forward:
                self._forward(request, step, value)
            else:
                request.begin_again(step)
            return b"HELD"
        if is_forward:
            request.by = delivery.by
            self._forward(request, step, value)
        elif is_failure:
            self.unqueue(request)
            self.finish(request, State.FAILED, FAILED, delivery.by)
        else:
            self.finish(request, State.DONE, request.outcome(step), delivery.by, value)
        return b"OK"

    def _forward(self, request: Request, step: int, made: str) -> None:
        value, targets = request.outcome(step), request.plan.steps[step].targets
        request.uses.subtract(request.taken_names(step))
        request.done.add(step)
        request.slots.update(dict.fromkeys(targets, value))
        if made:
            request.names.update(dict.fromkeys(targets, made))
            request.uses[made] += len(targets)

    def give_back(self, delivery: Delivery, is_there: bool) -> int:
        """A call was not begun: it is as if nobody had fetched it."""
        if self.held.pop((delivery.stream, delivery.entry), None) is None or not is_there:
            return 0
        if delivery.request.is_dead and not delivery.is_copy:
            delivery.request.begin_again(delivery.step)
        return 1

    def dead_letter(self, delivery: Delivery) -> bytes:
        """A call is not worth another try."""
        if self.held.pop((delivery.stream, delivery.entry), None) is None:
            return b"STALE"
        if delivery.is_copy:
            return self._drop(delivery.request)
        self._make_dead_letter(delivery.request, delivery.step, TRIED_OFTEN)
        return b"OK"

    def _drop(self, request: Request) -> bytes:
        """A copy ends: its request goes on without it."""
        return b"STALE" if request.is_open or request.is_dead else b"OK"

    def _make_dead_letter(self, request: Request, step: int, failure: bytes) -> None:
        if request.is_dead:
            request.begin_again(step)
        elif request.is_open:
            request.begin_again(step)
            request.is_dead = True
            self.finish(request, State.FAILED, failure)

    def replay(self, request: Request, keep_ms: int, kept: set[int]) -> bytes:
        """A dead letter's request is opened again; ``kept`` are the steps whose calls the letter holds."""
        if not request.is_dead:
            return b"NONE"
        if not self.is_deployed and {request.plan.steps[step].stream for step in kept} - set(OTHER):
            return b"MOVED"
        request.is_dead = False
        request.state, request.result, request.by, request.mailbox = State.OPEN, b"", "", ""
        request.keep_ms, request.sent, request.taken, request.progress, request.noted = keep_ms, 0, 0, b"", []
        return b"OK"

    def purge(self, requests: set[Request]) -> int:
        """Dead letters are thrown away; what of them still lies on a queue will have no effects."""
        dead = [request for request in requests if request.is_dead]
        for request in dead:
            request.is_dead, request.is_abandoned, request.uses = False, True, Counter()
        return len(dead)

    def lose_everything(self) -> None:
        """The broker's data is gone."""
        for request in self.requests:
            request.state, request.waiters, request.is_dead, request.events = "", [], False, None
            request.uses = Counter()
        self.items, self.left = Counter(), Counter()
        self.held.clear()
        self.delayed.clear()
        self.mail = {name: Counter() for name in MAILBOXES + CONSUMERS}
        self.is_deployed, self.epoch = False, ""

    def postpone(self, delivery: Delivery) -> bytes:
        """A try ends; the call, if anybody still wants it, is delayed."""
        if self.held.pop((delivery.stream, delivery.entry), None) is None:
            return b"STALE"
        if delivery.is_copy:
            return self._drop(delivery.request)
        if delivery.request.is_dead:
            delivery.request.begin_again(delivery.step)
        elif delivery.request.is_open:
            delivery.request.tries[delivery.step] += 1
            delivery.request.deaths[delivery.step] = 0
            self.delayed.add(Delayed(delivery.stream, delivery.request, delivery.step))
        return b"OK"

    def wake(self, calls: set[Delayed]) -> None:
        """Calls have waited long enough."""
        self.delayed -= calls
        for call in calls:
            if call.request.is_dead:
                call.request.begin_again(call.step)

    def reclaim(self, consumer: str, stream: str) -> int:
        """A replica died: every call it held is on the queue again, or has killed often enough."""
        mine = [one for one in self.held.values() if (one.consumer, one.stream) == (consumer, stream)]
        for delivery in sorted(mine, key=lambda one: order(one.entry)):
            # a request that waited for one of those before it may have ended with that
            if self.held.pop((delivery.stream, delivery.entry), None) is None or delivery.is_copy:
                continue
            request, step = delivery.request, delivery.step
            request.deaths[step] += 1
            if request.is_dead or request.deaths[step] >= DEATH_LIMIT:
                self._make_dead_letter(request, step, LOST)
        return len(mine)

    def close(self, request: Request, state: str) -> int:
        """A request is ended from outside."""
        if not may_become(request.state, state):
            return 0
        self.unqueue(request, state)
        self.finish(request, state, b"")
        return 1

    def forget(self, request: Request) -> None:
        """Nobody will ask for a result."""
        if request.is_open:
            request.keep_ms = -1
        else:
            request.state = ""
            if not request.is_dead:
                request.uses = Counter()

    def expire(self, request: Request) -> None:
        """The broker's time for a request is over; that of what only it held is over as well, but later here."""
        request.state, request.waiters = "", []
        if not request.is_dead:
            self.left.update(dict.fromkeys(+request.uses, 1))
            request.uses = Counter()

    def note(self, delivery: Delivery, progress: bytes) -> bytes:
        """Its code says how far it is; only the entry that stands for the step may."""
        request = delivery.request
        if not request.is_open:
            return b"CLOSED"
        if (delivery.stream, delivery.entry) not in self.held or delivery.is_copy:
            return b"STALE"
        request.progress = progress
        request.events = (request.events or 0) + 1
        return b"OK"

    def observe(self, request: Request) -> int:
        """Somebody follows it: who runs it is told, once. Returns how many events there are."""
        if request.is_open and request.events is None:
            request.events = 0
            for one in self.held.values():
                if one.request is request and not one.is_copy:
                    self.mail[one.consumer][request.id.encode() + b"w"] += 1
        return request.events or 0

    def emit(self, request: Request, numbers: Sequence[int], value: str) -> int:
        """Items of a streamed result, each delivered at its turn; ``value`` names the stored value of the only one."""
        if not request.is_open:
            return -1
        for number in numbers:
            if number == request.sent:
                request.sent += 1
                if request.mailbox:
                    self.mail[request.mailbox][request.id.encode() + b"i%d" % number] += 1
                    self.items.update([value] if value else [])
                    request.noted += [value] if value else []
        return request.sent - request.taken

    def release(self, value: str) -> None:
        """The reader of a stream has read an item."""
        self.items -= Counter([value])

    def take(self, request: Request, count: int) -> int:
        """The reader has taken items."""
        if not request.is_open:
            return 0
        request.taken += count
        return request.taken

    def retire(self, force: bool, is_idle: bool, order: list[str]) -> int:
        """The own version's queues go when nothing needs them; by force, requests that need them fail in this order."""
        own = [one for one in self.requests if one.plan.streams <= set(OWN)]
        # once replayed, a request that waits for another's result only is not known to need the queues
        mine = [one for one in own if one.is_open and (one.is_needed or one.due())]
        if not force and (mine or not is_idle):
            return 0
        for request in sorted(mine, key=lambda one: order.index(one.id)):
            if request.is_open:
                self.finish(request, State.FAILED, DELETED)
        for request in own:
            request.is_needed = False
            for step in range(len(request.plan.steps)):
                if request.is_dead:
                    request.begin_again(step)
        self.held = {key: one for key, one in self.held.items() if key[0] not in OWN}
        self.delayed = {one for one in self.delayed if one.stream not in OWN}
        self.is_deployed = False
        return 1
