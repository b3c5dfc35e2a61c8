"""The parts in which the messages of a WebSocket travel between gateway and replica, in both directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

import msgpack

from qserve.exceptions import PayloadError
from qserve.wire.codec import unpack

_HEAD_BYTES = 8
PART_BYTES = 16 * 1024 - _HEAD_BYTES
"""The most bytes of a message in one part."""
PULSE_S, SILENCE_S = 5.0, 20.0
"""How often a gateway says that it is there; a replica that has heard nothing for so long takes it for lost."""
NORMAL, GOING_AWAY, NO_STATUS, ABNORMAL, POLICY = 1000, 1001, 1005, 1006, 1008
TOO_LONG, INTERNAL_ERROR, SERVICE_RESTART = 1009, 1011, 1012
"""The codes with which sessions end (RFC 6455, section 7.4.1, and the registry that it begins)."""
REASON_BYTES = 123
_DEPTH = 4


class Kind(IntEnum):
    """What a part is of; the values are its first byte."""

    ACCEPT = 1
    """The application has accepted: its subprotocol, and the headers of the response."""
    TEXT = 2
    BINARY = 3
    CLOSE = 4
    """The other side has closed, or its connection is lost: code and reason."""
    PULSE = 5
    """The gateway is there."""


_KINDS = {kind.value: kind for kind in Kind}


class Part(NamedTuple):
    """A message, or one of its parts, of which all but the last say that there are more."""

    kind: Kind
    data: bytes = b""
    is_last: bool = True

    def encode(self, number: int) -> bytes:
        """Return its bytes with its number: where nothing is signed, that alone shows that another part was lost."""
        return bytes((self.kind, self.is_last)) + number.to_bytes(_HEAD_BYTES - 2) + self.data


def part_in(raw: bytes, number: int) -> Part:
    """Return the part that ``encode`` has written; PayloadError for anything else, and for another number."""
    kind = _KINDS.get(raw[0]) if len(raw) >= _HEAD_BYTES and raw[1] < 2 else None
    if kind is None:
        raise PayloadError(f"{len(raw)} bytes are not a part of a WebSocket's message")
    found = int.from_bytes(raw[2:_HEAD_BYTES])
    if found != number:
        raise PayloadError(f"part {found} of what a WebSocket carries came in the place of part {number}")
    return Part(kind, raw[_HEAD_BYTES:], bool(raw[1]))


class Farewell(NamedTuple):
    """How a session ends."""

    code: int
    reason: str = ""

    def part(self) -> Part:
        return Part(Kind.CLOSE, self.code.to_bytes(2) + self.reason.encode())


def farewell(data: bytes) -> Farewell:
    """Return how a session ends; PayloadError when the part does not say so."""
    return Farewell(int.from_bytes(data[:2]), text_of(data[2:]))


def acceptance_part(subprotocol: str | None, headers: Sequence[Sequence[str]]) -> Part:
    """Return what says that the application has accepted."""
    return Part(Kind.ACCEPT, msgpack.packb([subprotocol, headers]))


def acceptance(part: Part) -> tuple[str | None, list[tuple[str, str]]]:
    """Return the subprotocol and the headers with which an application accepts; PayloadError for another part."""
    found = unpack(part.data, "an acceptance", _DEPTH) if part.kind is Kind.ACCEPT else None
    if type(found) is not list or len(found) < 2 or type(found[1]) is not list:
        raise PayloadError("a WebSocket was not accepted as it should be")
    subprotocol, headers = found[:2]
    pairs = [tuple(header) for header in headers if type(header) is list and len(header) == 2]
    texts = [subprotocol or "", *(text for pair in pairs for text in pair)]
    if len(pairs) < len(headers) or any(type(text) is not str for text in texts):
        raise PayloadError("a WebSocket was not accepted as it should be")
    return subprotocol, pairs


def text_of(data: bytes) -> str:
    """Return a text; PayloadError when it is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise PayloadError(f"{len(data)} bytes of a WebSocket are not text") from None


def parts_of(kind: Kind, data: bytes, is_last: bool = True) -> Iterator[Part]:
    """Yield the parts of a message, or of what there is of it; text is cut between two characters."""
    start = 0
    while len(data) - start > PART_BYTES:
        end = start + PART_BYTES
        while kind is Kind.TEXT and data[end] & 0xC0 == 0x80:
            end -= 1
        yield Part(kind, data[start:end], False)
        start = end
    yield Part(kind, data[start:], is_last)
