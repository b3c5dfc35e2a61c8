"""The secret keys with which messages are signed."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from qserve.exceptions import QserveException

TAG_BYTES = 32
KEY_ID_BYTES = 4
KEY_BYTES = 16
"""The smallest number of bytes in a key."""
PUBLISHED_KEY = b"development-key-change-me"
"""The key of docker-compose.yml, which is public."""
_VARIETY = 8


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


def check_key(key: bytes, where: str) -> None:
    """Check that a key is hard to guess and can be handed on in an environment variable.

    Parameters:
      where: The setting that it comes from.

    Raises:
      QserveException: It is too short or too weak, or cannot be named in a list of keys.
    """
    problem = _problem(key)
    if problem:
        raise QserveException(f"{where} {problem}; make a good key with: openssl rand -hex 32")


def _problem(key: bytes) -> str:
    try:
        text = key.decode()
    except UnicodeDecodeError:
        return "is not UTF-8 text"
    if "," in text or not text.isprintable() or any(map(str.isspace, text)):
        return "contains a comma, a blank or a control character, which a list of accepted keys cannot hold"
    if len(key) < KEY_BYTES:
        return f"is too short: it has {len(key)} bytes, and needs {KEY_BYTES} or more"
    # steps as well, so that neither "aaaa..." nor "abababab..." nor "0123456789..." passes
    steps = {(after - before) % 256 for before, after in pairwise(key)}
    if len(set(key)) < _VARIETY or len(steps) < _VARIETY:
        return "is too weak: it repeats a few characters or counts through them"
    return ""
