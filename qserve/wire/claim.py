"""Claims: where the large parts of an encoded value are, when they do not travel inside of it.

The claim is in front of the value, so it is signed with the message that the value travels in.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple, TypeAlias

from qserve.exceptions import PayloadError

MEMORY, BROKER, FOLDER = "memory", "broker", "folder"
MARK = b"\xc1V"  # no value begins with this byte, which msgpack never writes
"""With what an encoded value begins that has a claim: where there is hardly ever one, look at that first."""
_LENGTH_BYTES = 2
_BEGIN = len(MARK) + _LENGTH_BYTES
_FORMS = [
    re.compile(rb"(%b) (%b) ([0-9a-f]{32}) ([1-9][0-9]{0,12}) ([0-9a-f]{%d})" % (store.encode(), place, 2 * digest))
    for store, place, digest in (
        (MEMORY, rb"[\w.-]{1,255}/[0-9a-f]{32}/qserve-[0-9]{1,10}-[0-9a-f]{16}", 16),
        (BROKER, rb"", 32),
        (FOLDER, rb"[0-9a-f]{16}", 32),
    )
]


Part: TypeAlias = tuple[int, memoryview]
"""Some bytes of a value that is to be stored, and their offset in it."""


class Kind(Enum):
    """What a value is stored for: ``PASSING`` from step to step, or ``KEPT`` for an accepted request or its caller."""

    PASSING = 0
    KEPT = 1


class Claim(NamedTuple):
    """Where one stored value is.

    Parameters:
      store: ``memory``, ``broker`` or ``folder``.
      place: For memory the host by its name, its token and the folder there, with slashes in between; nothing for the
        broker; for a folder the digest of its URL.
      name: What the value is called there; 32 hexadecimal digits, random.
      size: Its bytes.
      digest: Their SHA-256; for memory the 16 random bytes in front of them.
    """

    store: str
    place: str
    name: str
    size: int
    digest: bytes


def wrap(claim: Claim, inline: bytes) -> bytes:
    """Return an encoded value: its claim, and in ``inline`` what travels itself."""
    written = " ".join((*claim[:3], str(claim.size), claim.digest.hex())).encode()
    return b"%b%b%b%b" % (MARK, len(written).to_bytes(_LENGTH_BYTES, "big"), written, inline)


def claim_in(data: bytes) -> Claim | None:
    """Return the claim of an encoded value; None if all of it travels itself.

    Raises:
      PayloadError: The claim cannot be read.
    """
    return apart(data)[0]


def apart(data: bytes) -> tuple[Claim | None, bytes]:
    """Return the claim of an encoded value, or None, and what travels itself.

    Raises:
      PayloadError: The claim cannot be read.
    """
    if not data.startswith(MARK):
        return None, data
    end = _BEGIN + int.from_bytes(data[len(MARK) : _BEGIN], "big")
    written = data[_BEGIN:end]
    found = next(filter(None, (form.fullmatch(written) for form in _FORMS)), None)
    if found is None:
        raise PayloadError("the claim of a value is malformed")
    store, place, name, size, digest = (group.decode() for group in found.groups())
    return Claim(store, place, name, int(size), bytes.fromhex(digest)), data[end:]
