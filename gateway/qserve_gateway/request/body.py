"""Read the body of an HTTP request: into memory, or piece by piece into the payload store."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import gevent
from gunicorn.http.errors import ParseException

from qserve.http.message import BadRequest
from qserve.payloads.store import ValueStore
from qserve.payloads.tier import PIECE_BYTES
from qserve.wire.claim import BROKER, MEMORY, Kind
from qserve.wire.outside import Stored
from qserve_gateway.request.environ import BODY_READ, SMALL, Environ, has_body

BODY_TIMEOUT_S = 15.0
"""How long a body may take that is held in memory, and each piece of another one."""
STORED_PER_S = 128 * 1024
"""How fast a body must come, on the average, whose pieces are stored."""
_KIB = 1024
# 1 KiB/s from the fifth second on, checked three times; a client that has sent 15 KiB may keep that pace to the end
_PACE = ((5 * _KIB, 5.0), (10 * _KIB, 10.0), (sys.maxsize, BODY_TIMEOUT_S))
_HELD_BYTES = 4 * PIECE_BYTES
"""What a body takes here while its pieces go to another store than the memory of the host."""

Digest = Callable[[bytes | memoryview], object]


class Limit(NamedTuple):
    """The most bytes of a body, and the setting that says so; "" if none does."""

    size: int
    setting: str = ""


def held_bytes(store: str) -> int:
    """Return what a body takes here while it is stored piece by piece, or read from the store."""
    return PIECE_BYTES if store == MEMORY else _HELD_BYTES


def read_body(environ: Environ, take: Callable[[int], None], limit: Limit) -> bytes:
    """Read the whole body into memory.

    Flask's ``get_data`` is not used because it truncates: it returns the first part of a chunked body that is too
    long, or of a body whose connection was closed.

    Parameters:
      take: Called with the bytes of a large body before they are read; it may refuse them.

    Raises:
      BadRequest: The body is longer than the limit (413), incomplete or malformed (400), too slow (408), or in an
        unsupported transfer coding (501).
      Refused: There is no memory left for the body (503).
    """
    body = _read(environ, take, limit, None, None)
    assert isinstance(body, bytes)
    return body


def read_or_store(
    environ: Environ, take: Callable[[int], None], limit: Limit, store: ValueStore, digest: Digest | None
) -> bytes | Stored:
    """Read the body, and store it if it is large, so that it is never whole in this process.

    Crash meanwhile: what was stored has no name yet, and goes with the process, or expires.

    Parameters:
      take: Called with the bytes that are held here before they are.
      digest: Takes all of a body that is stored, piece by piece.

    Raises:
      BadRequest, Refused: See ``read_body``.
      BrokerError, StoreUnavailable: It cannot be stored.
    """
    return _read(environ, take, limit, store, digest)


def _read(
    environ: Environ, take: Callable[[int], None], limit: Limit, store: ValueStore | None, digest: Digest | None
) -> bytes | Stored:
    if not has_body(environ):
        return b""
    length = _length_of(environ)
    stream, body = environ["wsgi.input"], _Body(take, limit, store, digest, length)
    if length is not None and length > limit.size:
        raise _too_long(limit)
    try:
        body.begin()
        direct = _direct(stream, length, environ.get("gunicorn.socket"))
        while body.wants_more():
            piece, within_s = body.next_piece()
            received = _within(within_s, direct or stream.read, piece, body.is_stored)
            body.add(received)
            if len(received) < piece:
                break
        if length is not None and body.size < length:
            message = f"the request body has {body.size} bytes, but Content-Length says {length}"
            raise BadRequest(message, "incomplete_body", close=True)
        found = body.finish()
    except BaseException:
        body.abort()
        raise
    environ[BODY_READ] = True
    return found


def _length_of(environ: Environ) -> int | None:
    """Return what ``Content-Length`` says; None for a chunked body."""
    coding = environ.get("HTTP_TRANSFER_ENCODING")
    if coding is None:
        announced = environ["CONTENT_LENGTH"]
        if not (announced.isascii() and announced.isdigit()) or len(announced) > 18:
            raise BadRequest("Content-Length is not a number", "invalid_header", close=True)
        return int(announced)
    if coding.strip().lower() != "chunked":
        message = "the only supported transfer coding is 'chunked'"
        raise BadRequest(message, "unsupported_transfer_coding", 501, close=True)
    return None


def _too_long(limit: Limit) -> BadRequest:
    why = f", the limit set by {limit.setting}" if limit.setting else ""
    return BadRequest(f"the request body is longer than {limit.size} bytes{why}", "body_too_large", 413, close=True)


class _Body:
    """A body that is being read: in memory at first, and in the store as soon as it is large."""

    def __init__(
        self,
        take: Callable[[int], None],
        limit: Limit,
        store: ValueStore | None,
        digest: Digest | None,
        length: int | None,
    ) -> None:
        self._take, self._limit, self._store, self._digest, self._length = take, limit, store, digest, length
        self._end = limit.size + 1 if length is None else length
        self._began = time.monotonic()
        self._memory = io.BytesIO()  # it grows in place, where joining pieces at the end would copy them
        self._filler: Any = None
        self._held = 0
        self.size = 0

    def begin(self) -> None:
        length, store = self._length, self._store
        if store is not None and length is not None and length >= store.threshold:
            self._begin_to_store(store)
        elif length is not None and length > SMALL:
            self._take(length)

    @property
    def is_stored(self) -> bool:
        return self._filler is not None

    def _begin_to_store(self, store: ValueStore) -> None:
        self._filler = store.filler(Kind.KEPT, self._length)
        self._count(self._length or 0)
        if self.size:
            self._store_piece(self._memory.getbuffer())
            self._memory = io.BytesIO()

    def _count(self, size: int) -> None:
        """Take what a body of this size holds: little here, and all of it in the broker."""
        # clients that never finish their bodies must not fill the broker, which has the requests of all others
        held = held_bytes(self._filler.tier) + (size if self._filler.tier == BROKER else 0)
        if held > self._held:
            self._take(held - self._held)
            self._held = held

    def _store_piece(self, piece: bytes | memoryview) -> None:
        if self._digest is not None:
            self._digest(piece)
        self._filler.write(memoryview(piece))

    def wants_more(self) -> bool:
        return self.size < self._end

    def next_piece(self) -> tuple[int, float]:
        """Return how many bytes to read next, and within how many seconds."""
        spent_s = time.monotonic() - self._began
        if self.is_stored:
            left_s = BODY_TIMEOUT_S + self.size / STORED_PER_S - spent_s
            return min(self._end - self.size, PIECE_BYTES), min(left_s, BODY_TIMEOUT_S)
        paced, within_s = next(pace for pace in _PACE if self.size < pace[0])
        piece = min(self._end, paced, self.size + SMALL) - self.size
        if self._length is None and self.size >= SMALL:
            self._take(piece)
        return piece, min(within_s, BODY_TIMEOUT_S) - spent_s

    def add(self, received: bytes | memoryview) -> None:
        if self.size + len(received) > self._limit.size:
            raise _too_long(self._limit)
        if self._filler is not None:
            self._store_piece(received)
            self._count(max(self.size, self._length or 0))
        else:
            self._memory.write(received)
        self.size += len(received)
        if self._filler is None and self._store is not None and self.size >= self._store.threshold:
            self._begin_to_store(self._store)

    def finish(self) -> bytes | Stored:
        return self._memory.getvalue() if self._filler is None else Stored(self._filler.finish())

    def abort(self) -> None:
        if self._filler is not None:
            self._filler.abort()


def _direct(stream: Any, length: int | None, sock: Any) -> Callable[[int], memoryview] | None:
    """Return what reads a body of known length from its connection into one buffer; None where that cannot be done.

    The server's own reader asks for up to 1 MiB at a time, and copies it five times.
    """
    reader: Any = getattr(stream, "reader", None)
    if length is None or length <= SMALL or sock is None or getattr(reader, "length", None) != length:
        return None
    if stream.arrived > SMALL:
        return None
    buffer = memoryview(bytearray(min(length, PIECE_BYTES)))
    early = iter((stream.read(stream.arrived),)) if stream.arrived else iter(())

    def read(size: int) -> memoryview:
        first = next(early, b"")
        buffer[: len(first)] = first
        filled = len(first)
        while filled < size:
            count = sock.recv_into(buffer[filled:size])
            if not count:
                break
            filled += count
            reader.length -= count
        return buffer[:filled]

    return read


def _within(left_s: float, read: Callable[[int], bytes | memoryview], size: int, is_stored: bool) -> bytes | memoryview:
    stalled = gevent.Timeout.start_new(max(0.0, left_s))
    try:
        return read(size)
    except gevent.Timeout as timeout:
        if timeout is not stalled:
            raise
        pace = f"{STORED_PER_S // _KIB} KiB/s" if is_stored else f"1 KiB/s, and all of it within {BODY_TIMEOUT_S:g} s"
        message = f"the request body came too slowly: send at least {pace}"
        raise BadRequest(message, "body_timeout", 408, close=True) from None
    except (ParseException, OSError) as error:
        code = "incomplete_body" if isinstance(error, OSError) else "invalid_chunk"
        raise BadRequest("the request body is truncated or malformed", code, close=True) from error
    finally:
        stalled.close()
        del stalled  # its traceback would refer to this frame, and keep the body until the next garbage collection
