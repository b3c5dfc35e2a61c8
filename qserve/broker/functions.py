"""The functions that run in the broker: what each takes, and the command that calls it.

Every change of a request is one of these functions, and each runs as one atomic act: all of it happens, or nothing. Lua
does not roll back, so they compute first and write last: see ``lua/lib/writes.lua``. ``allow-oom`` lets accepted work
drain when the broker's memory is full; ``submit`` and ``replay`` go without it, so that new work is refused instead.

``lua/<function>.lua`` has the text of each, and says what is true if it does not run.
"""

from collections import ChainMap
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from qserve.base import keys
from qserve.broker.library import Argument, Command, Counts, Key, Keys, Kind, Library, Number, Pairs, Strings, Word
from qserve.wire import envelope, outcome, replies, sealing
from qserve.wire.moves import INPUTS_LIMIT, Awaited, Epoch, Move, Start
from qserve.wire.replies import Found
from qserve.wire.sealing import Seal, seal_end


class Reply(bytes, Enum):
    """The replies of functions; the Lua file of each says what they mean."""

    OK = b"OK"
    DUP = b"DUP"
    """It happened before: this is the reply to the same command, sent again."""
    FULL = b"FULL"
    CROWDED = b"CROWDED"
    MOVED = b"MOVED"
    LOST = b"LOST"
    MISMATCH = b"MISMATCH"
    CLOSED = b"CLOSED"
    HELD = b"HELD"
    GONE = b"GONE"
    STALE = b"STALE"
    BADKEY = b"BADKEY"
    NONE = b"NONE"
    OPEN = b"OPEN"
    HOOKED = b"HOOKED"


ACCEPTED = (Reply.OK, Reply.DUP)
"""The replies of ``submit`` to a request that is accepted, now or before."""
NOT_REPLICATED = b"NOREPLICA"
"""Stands in the place of the reply to a submission that only the primary has."""
OTHER_EPOCH = b"EPOCH "
"""Comes before the broker's epoch when a command was meant for another one."""

RECLAIM_COUNT = 1000
"""The most calls that ``reclaim`` hands over at once."""
RETIRE_COUNT = 1000
"""The most calls of a queue that ``retire`` moves or fails at once."""
WAKE_COUNT = 100
PEEK_BYTES = 8 << 20
"""How many bytes of calls ``peek`` reads."""
LONGEST_WAIT_MS = 180_000
"""No call waits longer for its next try; see ``LONGEST_WAIT_S`` of the replicas."""
RECHECK_MS = 60_000
"""How often ``wake`` checks whether a step that waits for another request's result is still wanted."""
LONGEST_RETRY_AFTER_S = 30
HISTORY_LINES = 20
MAILBOX_CROWDED = 128
"""A mailbox with more messages gets its time to live again with each of them."""
FIELDS_AT_ONCE = 1000
"""The most fields and values in one command on a hash: Lua's ``unpack`` has a limit of nearly 8,000."""
ENTRY_LIMIT = 2 * INPUTS_LIMIT + 10
"""The most fields and values of one entry: its inputs, header, step, deaths, tries and history."""
PLACE = "e:"
"""Before the step, the field of a request that names the step's entry; or one of the words below."""
POSTPONED = "z"
READ_COUNT = 1000
"""The most entries that ``strays`` examines at once."""
LEFT_PARTS = 8
"""The parts of its time to live in which a result that is left for a reader is counted."""
UNCOUNTED_BYTES = 4096
"""Results up to this size are left without being counted: they are as large as what is stored of their requests."""
LEFT_SHARE, LETTERS_SHARE = 2, 8
"""Results that are left may take half of the broker's memory, and dead letters an eighth."""
ALL_LETTERS = "all"
NO_VALUES: Mapping[str, int] = MappingProxyType({})
UNREAD = 1 << 40
"""Passed to ``take`` when a stream has no reader any more."""
HELD_BACK = 12
"""How many items fewer are sent to a reader that counts bytes until it has taken the first one."""
ITEMS_NOTED = 64
"""How many of the last items with stored values a stream knows: more than its reader can be behind."""
LATE_MS = 1000
"""How long after its deadline a request that nobody has ended is ended by who sends its webhook."""
HOOK_BYTES = 16 * 1024
"""Longer results, in bytes as they are stored, are not sent to webhooks."""
HOOK_LEASE_MS = 60_000
"""Who sends a webhook has so long; then it is sent again."""
WEBHOOKS_LIMIT = 100_000
DEATHS = "deaths"
"""Why a call whose replicas died is a dead letter."""

LIBRARY = Library(
    "qserve",
    Path(__file__).parent / "lua",
    ChainMap(globals(), vars(keys), vars(envelope), vars(outcome), vars(sealing)),
    start="collect()",
)


def other_epoch(reply: Any) -> str | bytes | None:
    """Return the broker's epoch ("" for none) when a function refused a command because of it; else None."""
    is_refusal = isinstance(reply, bytes) and reply.startswith(OTHER_EPOCH)
    return replies.epoch(reply[len(OTHER_EPOCH) :]) if is_refusal else None


def read_found(reply: Any) -> Found | None:
    """Return the request in a reply; None when that says something else."""
    is_request = isinstance(reply, list) and bool(reply) and reply[0] != Reply.FULL
    return replies.found(reply) if is_request else None


# -- how moves and what belongs to them travel; lua/lib/lists.lua reads them -----------------------


def _pack_moves(moves: Sequence[Move], streams: dict[str, int]) -> list[Argument]:
    packed: list[Argument] = [len(moves)]
    for move in moves:
        place = streams.setdefault(move.stream, len(streams) + 1)
        if isinstance(move, Start):
            packed += (place, move.step, 0, len(move.values), *move.values)
        else:
            packed += (place, move.step, move.needs, len(move.slots))
            for slot in move.slots:
                packed += slot
    return packed


def _pack_awaited(awaited: Sequence[Awaited], streams: dict[str, int]) -> Sequence[Argument]:
    if not awaited:
        return _NOTHING
    packed: list[Argument] = [len(awaited)]
    for result in awaited:
        place = streams.setdefault(result.stream, len(streams) + 1)
        packed += (result.request, place, result.step, result.needs, result.slot)
    return packed


def _pack_limits(limits: Mapping[str, int] | None, streams: dict[str, int]) -> Sequence[Argument]:
    return [len(streams), *(limits.get(stream, -1) for stream in streams)] if limits else _NOTHING


_NOTHING = (0,)
EpochArg = Annotated[Epoch, Kind(key="{}.key", arg="{}.value")]
Moves = Annotated[Sequence[Move], Kind(read="read_moves", pack=_pack_moves)]
AwaitedResults = Annotated[Sequence[Awaited], Kind(read="read_awaited", pack=_pack_awaited)]
Limits = Annotated[Mapping[str, int] | None, Kind(read="read_list", pack=_pack_limits)]

# -- requests and their calls ----------------------------------------------------------------------


@LIBRARY.function(
    replies=(
        Reply.OK, Reply.DUP, Reply.FULL, Reply.CROWDED, Reply.HOOKED, Reply.MOVED, Reply.LOST, Reply.MISMATCH,
    )
)  # fmt: skip
def submit(
    request: Key,
    request_id: str,
    epoch: EpochArg,
    header: bytes,
    mailbox: str,
    ttl_ms: int,
    keep_ms: int,
    moves: Moves,
    awaited: AwaitedResults = (),
    limits: Limits = None,
    model_id: str = "",
    max_ongoing: Number = 0,
    fingerprint: str = "",
    is_left: bool = False,
    is_traced: bool = False,
    webhook: bytes = b"",
    values: Counts = NO_VALUES,
) -> Command:
    """Accept a request, or refuse it.

    Parameters:
      mailbox: Is notified of the end; "" for none.
      ttl_ms, keep_ms: The time to live of the open request, and of its result.
      limits: The most calls that may wait on a stream, for those that have a limit.
      model_id: The model that the call is for; a replica that holds it, and has fewer than ``max_ongoing`` calls,
        gets the call.
      fingerprint: Of what was asked, where the same request may come again from elsewhere.
      is_left: Whether the result is left for a reader who may never come. That is refused when such results take a
        quarter of the broker's memory. When they take half of it, one more is delivered, but not left.
      is_traced: Whether its events are written down from the start, and kept for some minutes after its end.
      webhook: Where its end is to be sent, sealed; b"" for nowhere.
      values: The names of its stored values, each with the number of steps that take it.
    """


@LIBRARY.function(
    "allow-oom",
    replies=(Reply.OK, Reply.CLOSED, Reply.HELD, Reply.GONE, Reply.STALE, Reply.DUP, Reply.BADKEY),
)
def commit(
    stream: Key,
    request: Key,
    entry_id: bytes,
    request_id: str,
    epoch: EpochArg,
    attempt: Word,
    step: str,
    moves: Moves = (),
    state: str = "",
    payload: bytes = b"",
    event: bytes = b"",
    values: Counts = NO_VALUES,
) -> Command:
    """End a call.

    Parameters:
      attempt: Tells this run of the call from others.
      moves: What starts now; nothing when the request ends.
      state, payload: How the request ends; "" when it goes on.
      event: What those who follow the request read of it; b"" for nothing.
      values: The names of stored values: of what starts, each with the number of steps that take it, and of what the
        call was given, -1 for each use. When the request ends, only that of its result.
    """


@LIBRARY.function("allow-oom", replies=(Reply.OK, Reply.STALE))
def postpone(
    stream: Key,
    request: Key,
    delayed: Key,
    entry_id: bytes,
    wait_ms: int,
    tries: int,
    ttl_ms: int,
    replica: str,
    what: str,
    event: bytes = b"",
) -> Command:
    """End one try of a call, which comes back after ``wait_ms``.

    Parameters:
      replica, what: Who ran it and what happened, for its history.
      event: See ``commit``.
    """


@LIBRARY.function("allow-oom", replies=(Reply.OK, Reply.STALE))
def dead_letter(
    stream: Key,
    request: Key,
    entry_id: bytes,
    request_id: str,
    why: str,
    failure: bytes,
    replica: str,
    what: str,
    is_known: bool = True,
) -> Command:
    """End a delivery as a dead letter and fail its request.

    Parameters:
      why: ``retries`` or ``unreadable``.
      failure: The error for the caller.
      replica, what: Who ran it and what happened, for its history.
      is_known: Whether the message says whose it is; otherwise ``request_id`` is what its first bytes claim.
    """


@LIBRARY.function("allow-oom")
def give_back(stream: Key, to: Key, entry_ids: Strings, request_prefix: str) -> Command:
    """Put deliveries that were not begun back, on the stream ``to``."""


@LIBRARY.function("no-writes")
def strays(streams: Keys, consumer: str, request_prefix: str, after: Strings) -> Command:
    """Return which entries that ``consumer`` has read after those ids are copies, and which somebody follows."""


@LIBRARY.function("no-writes")
def unwanted(requests: Keys, steps: Strings, places: Strings) -> Command:
    """Return which running calls would change nothing: for each its request, its step, and its stream and entry."""


# -- results and their readers ---------------------------------------------------------------------


@LIBRARY.function("allow-oom")
def watch(request: Key, mailbox: str) -> Command:
    """Return what is known of a request, and have ``mailbox`` notified of its end when it is still open."""


@LIBRARY.function("no-writes")
def look(request: Key, mailbox: str = "") -> Command:
    """Return what is known of a request, as the reader of ``mailbox`` wants it."""


@LIBRARY.function("allow-oom")
def emit(request: Key, request_id: str, number: Number, items: Strings, value: str = "") -> Command:
    """Send items of a streamed result from ``number`` (from 0) on; none only asks.

    Parameters:
      value: Names the stored value of the item, which is the only one then.
    """


@LIBRARY.function("allow-oom")
def take(request: Key, count: Number) -> Command:
    """Say that the reader has taken ``count`` items more, or with UNREAD that it takes no more."""


@LIBRARY.function("allow-oom")
def tell(request: Key, request_id: str, number: Number, payload: bytes) -> Command:
    """Send part ``number`` (from 0) of what the client of a WebSocket has sent; -1 only asks."""


@LIBRARY.function("allow-oom")
def heard(request: Key, count: Number) -> Command:
    """Say how many of these parts the application has taken in all."""


@LIBRARY.function(replies=(Reply.OK, Reply.CLOSED, Reply.STALE))
def note(request: Key, stream: str, entry_id: Word, step: str, event: bytes, is_progress: bool) -> Command:
    """Write down an event of a call that runs."""


@LIBRARY.function("allow-oom")
def observe(request: Key, request_id: str, after: int) -> Command:
    """Return the events of a request behind the one of that number, and have those that come written down."""


@LIBRARY.function("no-writes")
def peek(queue: Key, limit: Number) -> Command:
    """Return which calls of a deployment run, wait and are delayed, up to ``limit`` of each kind and stream."""


@LIBRARY.function("no-writes")
def inspect(request: Key) -> Command:
    """Return what the calls of an open request do."""


@LIBRARY.function("allow-oom", replies=(Reply.OK,))
def forget(requests: Keys) -> Command:
    """Drop results that are not needed any more."""


@LIBRARY.function("allow-oom", replies=(Reply.OK,))
def release(values: Keys) -> Command:
    """Note that items were read whose stored values these are."""


@LIBRARY.function("allow-oom")
def close(request: Key, request_id: str, state: str, payload: bytes) -> Command:
    """End an open request without a result."""


# -- for supervisors and operators -----------------------------------------------------------------


@LIBRARY.function("allow-oom")
def reclaim(stream: Key, to: Key, consumer: Word, death_limit: Number, failure: bytes, request_prefix: str) -> Command:
    """Hand over what a dead consumer held.

    Parameters:
      failure: The error for the callers of calls that have had ``death_limit`` deaths.
    """


@LIBRARY.function("allow-oom")
def disband(personal: Key, stream: Key, models: Key, consumer: str, request_prefix: str) -> Command:
    """Move what waits for a replica that is gone to the common stream."""


@LIBRARY.function("allow-oom")
def retire(
    queues: Keys,
    force: bool,
    failure: bytes,
    request_prefix: str,
    is_same_code: bool = False,
    next_queues: Pairs = MappingProxyType({}),
    other_graphs: Strings = (),
) -> Command:
    """Remove a version's queues when they are empty, or with ``force`` move what is left to the next version.

    Parameters:
      failure: The error for requests that cannot go on there.
      is_same_code: Whether the next version has the same code, so that it may go on with what has begun.
      next_queues: The queues of the next version, by those that they take the place of.
      other_graphs: The graphs that the next version does not have, or has in another form.
    """


@LIBRARY.function("allow-oom")
def take_ends(ends: Key) -> Command:
    """Return how many requests have ended that no replica has counted, and begin again."""


@LIBRARY.function("no-writes")
def backlog(queues: Keys) -> Command:
    """Return how many calls wait in each queue, how many run, and for how long the oldest has waited."""


@LIBRARY.function("allow-oom")
def wake(delayed: Key, stream: Key) -> Command:
    """Put calls whose wait is over back on their queue."""


@LIBRARY.function("allow-oom", replies=(Reply.OK,))
def advertise(models: Key, personal: Key, consumer: str, ttl_ms: int, held: Strings) -> Command:
    """Say which models a replica holds; calls for them come to its own stream while it is free."""


@LIBRARY.function(replies=(Reply.OK, Reply.NONE, Reply.OPEN, Reply.MOVED))
def replay(
    letter: Key, request: Key, request_id: str, header: bytes, ttl_ms: int, keep_ms: int, moved: Pairs
) -> Command:
    """Open a dead letter's request again.

    Parameters:
      moved: The queue that has taken the place of an old one.
    """


@LIBRARY.function("allow-oom")
def purge(index: Key, letters: Keys, request_ids: Strings) -> Command:
    """Throw dead letters away."""


# -- webhooks ---------------------------------------------------------------------------------------


@LIBRARY.function("allow-oom")
def due(index: Key, webhook_prefix: str, count: Word) -> Command:
    """Take webhooks whose time has come, at most so many."""


@LIBRARY.function("allow-oom", replies=(Reply.OK, Reply.STALE))
def settle(index: Key, webhook: Key, request_id: str, tries: int, wait_ms: Number) -> Command:
    """End one try to deliver a webhook.

    Parameters:
      tries: How many there were.
      wait_ms: Until the next one; -1 when there is none.
    """


# -- which worker runs what -------------------------------------------------------------------------


@LIBRARY.function("allow-oom", replies=(Reply.OK, Reply.STALE))
def lead(lead: Key, was: bytes, now: bytes, ttl_ms: int) -> Command:
    """Take, keep or give up what one process at a time may hold.

    Parameters:
      was: What the caller has read there; b"" for nothing.
      now: What to write; b"" to give it up.
    """


@LIBRARY.function("allow-oom", replies=(Reply.OK, Reply.STALE))
def assign(lead: Key, plan: Key, mine: bytes, workers: Strings, assignments: Strings) -> Command:
    """Say what workers are to run, as long as ``lead`` holds ``mine``.

    Parameters:
      workers, assignments: As many of each; an empty assignment is removed.
    """


LOAD = LIBRARY.complete()
"""Loads all of them."""
_SUBMIT = LIBRARY.name_of("submit")


def end(seal: Seal, request: str, request_id: str, state: str) -> Command:
    """Return the command that ends an open request without a result: as cancelled or expired."""
    return close(request, request_id, state, seal_end(seal, request_id, state, b""))


def is_submission(command: Command) -> bool:
    """Return whether ``submit`` built this command."""
    return command[1] == _SUBMIT
