"""The broker as a tier: values in pieces of a megabyte, each a field of the hash ``y:<name>``.

The pieces come first. Crash before the broker accepts the command that tells it of the value: they expire after ten
minutes. From then on the broker's functions count who holds the value, and remove it with the last of them.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from qserve.base.forks import on_fork
from qserve.base.keys import Keys
from qserve.broker.connection import CLIENT_ERRORS, Client, broker_errors, connect, refusal
from qserve.broker.library import Command
from qserve.broker.link import ThreadLink
from qserve.exceptions import BrokerError, PayloadError, ValueLost
from qserve.payloads.tier import PIECE_BYTES, Filler, IsKnown, pieces
from qserve.wire import replies
from qserve.wire.claim import BROKER, Claim, Part

UPLOAD_TTL_MS = 600_000
CHUNK_BYTES = 1 << 20
PATIENCE_S = 6.0
"""How long a broker that is away is tried again: a failover takes four seconds."""
_PAUSE_S = 0.1


class Chunks:
    """The tier for values in the broker.

    Parameters:
      url: The broker's address.
      keys: The names of keys.
    """

    name = BROKER
    heavy_from = 0  # a broker may be silent for a while, whatever is sent to it

    def __init__(self, url: str, keys: Keys) -> None:
        self._url = url
        self._keys = keys
        self._begin()
        on_fork(self)

    def _begin(self) -> None:
        self._client: Client | None = None
        # a connection belongs to one thread at a time; list.pop and list.append are atomic
        self._idle: list[ThreadLink] = []

    def leave_to_parent(self) -> None:
        """In a forked child: connect anew."""
        self._begin()

    def put(self, parts: Sequence[Part], size: int) -> Claim:
        filler = _Filler(self)
        for piece in pieces(parts, size, CHUNK_BYTES):
            filler.write(memoryview(piece))
        return filler.finish()

    def filler(self, size: int | None) -> Filler:
        return _Filler(self)

    def get(self, claim: Claim) -> memoryview:
        if claim.size <= CHUNK_BYTES:
            (whole,) = self._chunks(claim)
            return memoryview(whole)
        value, end = bytearray(claim.size), 0
        for chunk in self._chunks(claim):
            value[end : end + len(chunk)] = chunk
            end += len(chunk)
        return memoryview(value).toreadonly()

    def pieces(self, claim: Claim) -> Iterator[bytes]:
        for chunk in self._chunks(claim):
            for begin in range(0, len(chunk), PIECE_BYTES):
                yield chunk[begin : begin + PIECE_BYTES]

    def _chunks(self, claim: Claim) -> Iterator[bytes]:
        digest = hashlib.sha256()
        for number in range(-(-claim.size // CHUNK_BYTES)):
            chunk = self.read(claim.name, number)
            if chunk is None:
                raise ValueLost(
                    f"a value of {claim.size} bytes is no longer in the broker: its request has ended, or the broker"
                    " has lost data"
                )
            digest.update(chunk)
            is_last = (number + 1) * CHUNK_BYTES >= claim.size
            if is_last and digest.digest() != claim.digest:
                raise PayloadError("a stored value in the broker is not the one that was claimed")
            yield chunk

    def read(self, name: str, number: int) -> bytes | None:
        """Return a chunk of a value; None if it is not there."""
        (chunk,) = self._ask([("HGET", self._keys.value(name), number)])
        return chunk  # type: ignore[no-any-return]

    def write(self, name: str, number: int, chunk: memoryview) -> None:
        """Write a chunk of a value that the broker has not been told of."""
        key = self._keys.value(name)
        # in one act, so that no chunk is left without a time to live
        write: list[Any] = [("HSET", key, number, chunk), ("PEXPIRE", key, UPLOAD_TTL_MS)]
        self._ask([("MULTI",), *write, ("EXEC",)])

    def remove(self, name: str) -> None:
        """Remove a value that the broker has not been told of."""
        self._ask([("DEL", self._keys.value(name))])

    def epoch(self) -> str:
        """Return the broker's epoch; "" if it has none."""
        (found,) = self._ask([("GET", self._keys.epoch)])
        return replies.epoch_text(replies.epoch(found))

    @broker_errors()
    def _ask(self, commands: list[Command]) -> list[Any]:
        """Send commands that may be sent twice, and return their replies."""
        give_up = time.monotonic() + PATIENCE_S
        while (found := self._try(commands, time.monotonic() > give_up)) is None:
            time.sleep(_PAUSE_S)
        for reply in found:
            if isinstance(reply, Exception):
                raise refusal(reply)
        return found

    def _try(self, commands: list[Command], is_last: bool) -> list[Any] | None:
        if self._client is None:
            self._client = connect(self._url)
        link = self._idle.pop() if self._idle else ThreadLink(self._client)
        try:
            found = link.exchange(commands)
        except CLIENT_ERRORS:
            if is_last:
                raise
            return None
        self._idle.append(link)
        return found

    def settled(self, names: Iterable[str]) -> None:
        """Do nothing: the broker counts."""

    def forget(self, claims: Iterable[Claim]) -> None:
        """Do nothing: the broker removes what nobody holds, and what it never heard of expires."""

    def sweep(self, is_known: IsKnown) -> None:
        """Do nothing: all of it expires."""

    def trim(self) -> None:
        """Do nothing: a connection costs little."""

    def stats(self) -> None:
        """Return nothing: the broker would have to look at all of its keys."""

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()
        if self._client is not None:
            self._client.close()
            self._client = None


class _Filler:
    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._name = secrets.token_hex(16)
        self._digest = hashlib.sha256()
        self._written = 0
        self._rest = bytearray()
        self.size = 0

    def write(self, piece: memoryview) -> None:
        self._digest.update(piece)
        self.size += len(piece)
        while len(self._rest) + len(piece) >= CHUNK_BYTES:
            if not self._rest:
                self._send(piece[:CHUNK_BYTES])
                piece = piece[CHUNK_BYTES:]
                continue
            room = CHUNK_BYTES - len(self._rest)
            chunk, self._rest = self._rest + piece[:room], bytearray()
            self._send(memoryview(chunk))
            piece = piece[room:]
        self._rest += piece

    def _send(self, chunk: memoryview) -> None:
        self._chunks.write(self._name, self._written, chunk)
        self._written += 1

    def written(self) -> Iterator[memoryview | bytes]:
        for number in range(self._written):
            yield self._chunks.read(self._name, number) or b""
        yield memoryview(self._rest)

    def finish(self) -> Claim:
        if self._rest:
            self._send(memoryview(self._rest))
        return Claim(BROKER, "", self._name, self.size, self._digest.digest())

    def abort(self) -> None:
        if self._written:
            with suppress(BrokerError):  # it expires
                self._chunks.remove(self._name)
