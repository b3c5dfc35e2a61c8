"""The keys by which messages are signed."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from functools import cached_property

TAG_BYTES = 32
KEY_ID_BYTES = 4


@dataclass(frozen=True)
class Keyring:
    """The keys of one installation.

    Parameters:
      current: Signs; None means that nothing is signed.
      accepted: Further keys whose signatures are taken, while the key is being changed.
    """

    current: bytes | None = field(default=None, repr=False)
    accepted: tuple[bytes, ...] = field(default=(), repr=False)

    @cached_property
    def by_id(self) -> dict[bytes, bytes]:
        """Every key whose signature is taken, by the id that a message names."""
        keys = (self.current, *self.accepted) if self.current else self.accepted
        return {key_id(key): key for key in keys}

    def sign(self, body: bytes) -> bytes:
        """``body`` with its HMAC-SHA256 in front."""
        assert self.current is not None
        return hmac.digest(self.current, body, "sha256") + body

    def verify(self, signed: bytes) -> bytes | None:
        """The body of ``signed``, or None when the tag in front of it was made with none of the keys."""
        tag, body = signed[:TAG_BYTES], signed[TAG_BYTES:]
        for key in self.by_id.values():
            if hmac.compare_digest(tag, hmac.digest(key, body, "sha256")):
                return body
        return None


def key_id(key: bytes) -> bytes:
    return hashlib.sha256(b"qserve key id " + key).digest()[:KEY_ID_BYTES]
