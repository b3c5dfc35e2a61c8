"""Replies of the broker, decoded and checked: no other module calls ``decode`` or ``int`` on what the broker sent.

Any client of the broker may have written anything there. So each reader returns a value of ours or raises
PayloadError, and nothing else; ``each`` leaves out what cannot be read, and names it once in the log.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeVar

from qserve.base.keys import PERSONAL
from qserve.base.log import get_logger, printable
from qserve.base.once import may_say
from qserve.exceptions import PayloadError
from qserve.wire.codec import unpack
from qserve.wire.envelope import REQUEST_ID_CHARS
from qserve.wire.outcome import ANNOUNCED, AWAITS, ENDED, ITEM, OBSERVED, RETRIES, RUNS, TOLD, WAITS, Outcome, State

log: Final = get_logger(__name__)
T = TypeVar("T")
NAME_LIMIT = 1024
"""The most bytes of a name."""
_SHOWN = 80
_NAMED = 1000
_SAID_FOR_S = 600.0
_NUMBER = re.compile(rb"-?[0-9]{1,19}").fullmatch
_RUN_ID = re.compile("[0-9a-zA-Z]{1,64}").fullmatch
_RUN_LINE = re.compile(rb"^run_id:([0-9a-zA-Z]{1,64})\r?$", re.MULTILINE).search
_CONNECTION_ID = re.compile(rb"^id=([0-9]{1,19}) ", re.MULTILINE).findall
_CONNECTIONS_LIMIT = 8
_POSITION = re.compile(rb"[0-9]{1,20}-[0-9]{1,20}").fullmatch
_REQUEST_ID = re.compile(rb"[0-9a-f]{%d}" % REQUEST_ID_CHARS).fullmatch
_STATES = frozenset(state.encode() for state in (*ENDED, ITEM, ANNOUNCED, OBSERVED, TOLD))
_named: OrderedDict[str, None] = OrderedDict()


def warn_once(message: str) -> None:
    """Log a warning, unless the same one was logged before."""
    if message not in _named:
        _named[message] = None
        if may_say(message, _SAID_FOR_S):
            log.warning("%s", message)
        if len(_named) > _NAMED:
            _named.popitem(last=False)


def each(items: Iterable[Any], read: Callable[[Any], T]) -> Iterator[T]:
    """Yield what ``read`` returns for each item; one that it refuses is left out, and named once in the log."""
    for item in items:
        try:
            value = read(item)
        except PayloadError as error:
            warn_once(f"skipped in the broker: {error}")
        else:
            yield value


# -- single values ---------------------------------------------------------------------------------


def text(raw: Any, what: str = "a name") -> str:
    """Return a name as text: UTF-8, and no longer than ``NAME_LIMIT``."""
    if type(raw) is not bytes or len(raw) > NAME_LIMIT:
        raise _unreadable(raw, what)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise _unreadable(raw, what) from None


def shown(raw: bytes) -> str:
    """Return the bytes of a name as text for people, even if they are not UTF-8."""
    return raw[:NAME_LIMIT].decode(errors="backslashreplace")


def number(raw: Any, what: str = "a number") -> int:
    """Return an integer, of which the broker stores the digits."""
    if type(raw) is int:
        return raw
    if type(raw) is not bytes or _NUMBER(raw) is None:
        raise _unreadable(raw, what)
    return int(raw)


@lru_cache(1024)
def step_name(raw: bytes) -> str:
    """Return the name of a step as text; there are few, and each call has one."""
    return text(raw, "a step")


@lru_cache(1024)
def step_number(step: str) -> int | None:
    """Return the number of a graph's step; None for what is the name of a method."""
    return int(step) if step.isascii() and step.isdigit() and len(step) < 10 else None


def position(raw: Any) -> str:
    """Return the ID of an entry of a stream."""
    if type(raw) is not bytes or _POSITION(raw) is None:
        raise _unreadable(raw, "the ID of an entry")
    return raw.decode()


def order_of(place: str) -> tuple[int, int]:
    """Return the numbers in the ID of an entry, by which IDs are compared; PayloadError when it is not an ID."""
    first, second = position(place.encode()).split("-")
    return int(first), int(second)


def entered_ms(entry_id: bytes) -> int:
    """Return when an entry was added to its stream, by the broker's clock, as its ID says."""
    first = entry_id.partition(b"-")[0]
    return int(first) if first.isdigit() and len(first) < 20 else 0


def request_id(raw: Any) -> str:
    """Return the ID of a request."""
    if type(raw) is not bytes or _REQUEST_ID(raw) is None:
        raise _unreadable(raw, "the ID of a request")
    return raw.decode()


def claimed_id(header: bytes) -> str:
    """Return the ID that the first bytes of an unreadable header claim; "" when they are not an ID."""
    claimed = header[:REQUEST_ID_CHARS]
    return claimed.decode() if _REQUEST_ID(claimed) else ""


def epoch(raw: Any) -> str | bytes:
    """Return the broker's epoch, "" for none; one that is not text stays as it is, since it is only compared."""
    if raw is None:
        return ""
    try:
        return text(raw, "the epoch")
    except PayloadError:
        return bytes(raw) if type(raw) is bytes else ""


def epoch_text(epoch: str | bytes) -> str:
    """Return an epoch as text, by which the stored values of installations on one host are kept apart."""
    return epoch if isinstance(epoch, str) else epoch.hex()


def time_s(reply: Any) -> float | None:
    """Return the Unix time in the reply to ``TIME``; None for an error, because an ACL may forbid the command."""
    if isinstance(reply, Exception):
        return None
    seconds, micros = _parts(reply, 2, "the time")
    return number(seconds) + number(micros) / 1e6


def address(reply: Any) -> tuple[str, int]:
    """Return host and port of a primary, as a Sentinel names it."""
    host, port = _parts(reply, 2, "an address")
    return text(host, "a host"), number(port, "a port")


# -- requests --------------------------------------------------------------------------------------


class Found(NamedTuple):
    """A request as the broker's functions reply it: state "" when it is not known.

    Parameters:
      state: What is stored as its state, which may be invalid; see ``sealing.open_end``.
      payload: Its result or failure, once it has ended.
      header: That of an open one.
    """

    state: str
    payload: bytes
    header: bytes = b""


def found(reply: Sequence[Any]) -> Found:
    """Return the request in a reply of ``watch``, ``look``, or a second ``submit``; this raises nothing."""
    state, payload, header = [*(part if type(part) is bytes else b"" for part in reply[:3]), b"", b"", b""][:3]
    return Found(state.decode("latin-1"), payload, header)


def stored(state: bytes | None, payload: bytes | None) -> Outcome:
    """Return the outcome in the fields of a request's hash, which is not checked yet; see ``sealing.open_end``."""
    return Outcome((state or b"").decode("latin-1"), payload or b"")


def length(announced: Outcome) -> int:
    """Return the length of a result of which only that was sent."""
    if not announced.payload.isdigit() or len(announced.payload) > 19:
        raise PayloadError("the length of a result is not a number")
    return int(announced.payload)


def message(data: Any) -> tuple[str, Outcome]:
    """Return the request ID in a message of a mailbox, and its outcome; an item or a length by its own state.

    A message is the ID, one character for the state, and the payload.
    """
    if type(data) is not bytes:
        raise _unreadable(data, "a message")
    end = REQUEST_ID_CHARS + 1
    state = data[REQUEST_ID_CHARS:end]
    if _REQUEST_ID(data[:REQUEST_ID_CHARS]) is None or state not in _STATES:
        raise PayloadError(f"{len(data)} bytes are not a mailbox message: {_shown(data)}")
    return data[:REQUEST_ID_CHARS].decode(), Outcome(state.decode(), data[end:])


def events(reply: Any) -> list[tuple[int, bytes]]:
    """Return the events of a request in a reply of ``observe`` with their numbers, still sealed."""
    if type(reply) is not list or len(reply) % 2 or not all(type(part) is bytes for part in reply):
        raise _unreadable(reply, "the events of a request")
    entries = zip(reply[::2], reply[1::2], strict=True)
    return [(order_of(shown(entry_id))[0], sealed) for entry_id, sealed in entries]


def ends(reply: Any) -> list[tuple[str, str, int]]:
    """Return application, state and count of requests that have ended, in a reply of ``take_ends``."""
    if type(reply) is not list or len(reply) % 2:
        raise _unreadable(reply, "the ends of requests")

    def read(item: tuple[Any, Any]) -> tuple[str, str, int]:
        what = text(item[0], "the end of a request")
        if what[:1] not in ENDED:
            raise _unreadable(item[0], "the end of a request")
        return what[1:], State(what[:1]).word, number(item[1])

    return list(each(zip(reply[::2], reply[1::2], strict=True), read))


def freed(reply: Any) -> tuple[Any, frozenset[str]]:
    """Return what a function replies, and the names of the stored values behind it that nobody holds any more."""
    if type(reply) is not list or not reply or not all(type(part) is bytes for part in reply):
        return reply, frozenset()
    return reply[0], frozenset(map(shown, reply[1:]))


def told(reply: Any) -> tuple[int, int] | None:
    """Return the two numbers in a reply of ``tell``; None when the session has ended."""
    if reply == []:
        return None
    waiting, sent = _parts(reply, 2, "how far a session is")
    return number(waiting), number(sent)


def attempts(history: bytes) -> int:
    """Return how often a call was tried, or handed over, by its history; 0 if that cannot be read."""
    try:
        found = unpack(history, "a history")
    except PayloadError:
        return 0
    return len(found) if type(found) is list else 0


# -- streams and groups ----------------------------------------------------------------------------


def fields(flat: Any) -> dict[bytes, bytes]:
    """Return the fields of an entry, or of a call inside of a record."""
    if type(flat) is not list or len(flat) % 2 or not all(type(part) is bytes for part in flat):
        raise _unreadable(flat, "the fields of an entry")
    return dict(zip(flat[::2], flat[1::2], strict=True))


def deliveries(reply: Any) -> list[tuple[str, list[tuple[bytes, Any]]]]:
    """Return the entries of each stream in a reply to XREADGROUP: IDs and fields, None for one that was deleted."""
    return [(text(name, "a stream"), [(entry_id, flat) for entry_id, flat in entries]) for name, entries in reply or ()]


def backlogs(reply: Any, count: int) -> list[tuple[int, int, int]]:
    """Return for each of ``count`` queues how many calls wait and run, and for how many ms the oldest has waited."""
    found = [_parts(load, 3, "the load of a queue") for load in _parts(reply, count, "the load of queues")]
    return [(number(waiting), number(running), number(oldest_ms)) for waiting, running, oldest_ms in found]


class Peeked(NamedTuple):
    """A call of an open request, without its values.

    Parameters:
      header: It is not opened yet.
      stream: Its queue; "" if that is not known.
      attempt: Which try of the step this is, from 1.
      how: RUNS, WAITS, RETRIES or AWAITS; see ``wire.outcome``.
      since_ms: When it was put on its queue, or comes back to it, in Unix ms.
      replica: The replica that runs it; "" for none.
    """

    header: bytes
    stream: str
    step: str
    attempt: int
    how: str
    since_ms: int
    replica: str


def _doing(raw: Any) -> str:
    how = text(raw)
    if how not in (RUNS, WAITS, RETRIES, AWAITS):
        raise _unreadable(raw, "what a call does")
    return how


def peeked(reply: Any) -> list[Peeked]:
    """Return the calls in a reply of ``peek`` or ``inspect``."""

    def read(found: Any) -> Peeked:
        header, stream, step, attempt, how, since_ms, replica = _parts(found, 7, "a call")
        if type(header) is not bytes:
            raise _unreadable(header, "the header of a call")
        # the score of a delayed call may have a fraction
        since_ms = since_ms.partition(b".")[0] if type(since_ms) is bytes else since_ms
        return Peeked(
            header, text(stream, "a stream"), text(step, "a step"), number(attempt), _doing(how),
            number(since_ms, "a time"), text(replica),
        )  # fmt: skip

    if type(reply) is not list:
        raise _unreadable(reply, "the calls of a queue")
    return list(each(reply, read))


def places(reply: Any) -> set[tuple[str, bytes]]:
    """Return the streams and IDs of the copies in a reply of ``strays``; none for an error reply."""
    return set() if isinstance(reply, Exception) else {(shown(found[0]), found[1]) for found in reply if len(found) < 3}


def observed(reply: Any) -> set[tuple[str, bytes]]:
    """Return the streams and IDs of calls that somebody follows in a reply of ``strays``; none for an error reply."""
    return set() if isinstance(reply, Exception) else {(shown(found[0]), found[1]) for found in reply if len(found) > 2}


def states(reply: Any) -> list[str]:
    """Return the states in a reply of ``unwanted``; none for an error reply."""
    return [] if isinstance(reply, Exception) else [shown(state) for state in reply]


def count_of(found: Mapping[str, Any], name: str) -> int:
    """Return a number from the replies to INFO, which redis-py has read; 0 for anything else."""
    value = found.get(name, 0)
    return value if type(value) is int else 0


def version(value: Any) -> tuple[int, ...]:
    """Return the numbers of a server's version."""
    return tuple(int(part) for part in str(value).split(".") if part.isascii() and part.isdigit() and len(part) < 10)


def run_id(found: Any) -> str:
    """Return the id of the broker's run from the reply to INFO, as it came or as redis-py has read it; "" for none."""
    value = found.get("run_id") if type(found) is dict else None
    if type(found) is bytes and (line := _RUN_LINE(found)):
        value = line[1].decode()
    return value if type(value) is str and _RUN_ID(value) else ""


def field_values(reply: Any) -> Any:
    """Return the reply to HGETALL as a dict, also one that redis-py has not read; anything else as it is."""
    return dict(zip(reply[::2], reply[1::2], strict=True)) if type(reply) is list and len(reply) % 2 == 0 else reply


def connection_ids(reply: Any) -> set[int]:
    """Return the ids in the reply to CLIENT LIST."""
    if type(reply) is not bytes:
        raise _unreadable(reply, "a list of connections")
    return {int(found) for found in _CONNECTION_ID(reply)}


def connections(data: bytes) -> tuple[int, str, frozenset[int]]:
    """Return what a replica says of its connections: its heartbeat's count, the broker's run, and their ids."""
    count, run, *ids = data.split(b" ") if data.count(b" ") in range(1, _CONNECTIONS_LIMIT) else (b"", b"")
    found = frozenset(number(one, "the id of a connection") for one in ids)
    if any(one <= 0 for one in found):
        raise _unreadable(data, "a list of connections")
    return number(count, "a heartbeat"), text(run, "the id of a run"), found


def last_position(reply: Any) -> str | None:
    """Return the ID of the newest entry in a reply to XREVRANGE, as redis-py gives it; None when there is none."""
    return position(_parts(reply[0], 2, "an entry")[0]) if reply else None


def consumer_names(reply: Any) -> list[bytes]:
    """Return the names in the reply to XINFO CONSUMERS, as redis-py gives it."""
    return [found["name"] for found in reply if type(found) is dict and type(found.get("name")) is bytes]


def consumer_count(reply: Any) -> int:
    """Return how many consumers the groups in the reply to XINFO GROUPS have, as redis-py gives it."""
    return sum(count_of(group, "consumers") for group in reply if type(group) is dict)


def personal_streams(held: Mapping[bytes, bytes], stream: str) -> list[str]:
    """Return the streams of single replicas in the hash that says which replica holds which model.

    Another key in the place of such a stream is left out: it would be removed with the version.
    """

    def read(item: tuple[bytes, bytes]) -> str:
        name, own = text(item[0]), text(item[1], "a stream")
        if own != f"{stream}{PERSONAL}{name[2:]}":
            raise _unreadable(item[1], "the stream of a replica")
        return own

    return list(each((item for item in held.items() if item[0].startswith(b"s:")), read))


# -- Celery's control messages ---------------------------------------------------------------------


def control_message(data: Any) -> dict[str, Any]:
    """Return one of Celery's control messages in kombu's form, so far as kombu depends on that form."""
    if type(data) is not bytes:
        raise _unreadable(data, "a control message")
    found = unpack(data, "a control message")
    properties = found.get("properties") if type(found) is dict else None
    if type(properties) is not dict:
        raise _unreadable(data, "a control message")
    info, tag = properties.get("delivery_info"), properties.get("delivery_tag")
    is_known = type(info) is dict and type(tag) is str and type(found.get("headers", {})) is dict
    if not is_known or properties.get("body_encoding") is not None or type(found.get("body")) not in (str, bytes):
        raise _unreadable(data, "a control message")
    return found  # type: ignore[no-any-return]


def _parts(reply: Any, count: int, what: str) -> Any:
    if type(reply) not in (list, tuple) or len(reply) != count:
        raise _unreadable(reply, what)
    return reply


def _unreadable(raw: Any, what: str) -> PayloadError:
    return PayloadError(f"{_shown(raw)} is not {what}")


def _shown(raw: Any) -> str:
    if type(raw) is bytes:
        return printable(repr(raw[:_SHOWN])) + ("..." if len(raw) > _SHOWN else "")
    return f"a {type(raw).__name__}"
