"""The secret keys with which messages are signed."""

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
      current: The key that signs; None to sign nothing.
      accepted: Further keys whose signatures are accepted while the key is being changed.
    """

    current: bytes | None = field(default=None, repr=False)
    accepted: tuple[bytes, ...] = field(default=(), repr=False)

    @cached_property
    def by_id(self) -> dict[bytes, bytes]:
        """Every key whose signature is accepted, by the ID that a message names."""
        keys = (self.current, *self.accepted) if self.current else self.accepted
        return {key_id(key): key for key in keys}

    def sign(self, body: bytes) -> bytes:
        """Return ``body`` with its HMAC-SHA256 in front."""
        assert self.current is not None
        return hmac.digest(self.current, body, "sha256") + body

    def verify(self, signed: bytes) -> bytes | None:
        """Return the body of ``signed``, or None when no key made the tag in front of it."""
        tag, body = signed[:TAG_BYTES], signed[TAG_BYTES:]
        for key in self.by_id.values():
            if hmac.compare_digest(tag, hmac.digest(key, body, "sha256")):
                return body
        return None


def key_id(key: bytes) -> bytes:
    """Return the ID of a key, which reveals nothing of it."""
    return hashlib.sha256(b"qserve key id " + key).digest()[:KEY_ID_BYTES]
