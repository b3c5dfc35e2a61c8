"""Signatures: proof that bytes were written by somebody who holds the application's key.

A sealed message is ``version | flags | key id | tag | body``; the tag is HMAC-SHA256 (RFC 2104) over all the rest and
over the message's context, so that a genuine message proves nothing in another place. Without a key, key id and tag
are left out.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

from qserve.base.keyring import KEY_ID_BYTES, TAG_BYTES, Keyring, key_id
from qserve.exceptions import PayloadError

_VERSION = 1
_BLOCK_BYTES = 64
_UNSIGNED, _SIGNED = bytes((_VERSION, 0)), bytes((_VERSION, 1))
_TAG_AT = len(_SIGNED) + KEY_ID_BYTES
_BODY_AT = _TAG_AT + TAG_BYTES


class Seal:
    """Seals messages with their context, and opens those that others have sealed.

    Parameters:
      keys: Without a key nothing is signed, and signed messages are refused.
    """

    def __init__(self, keys: Keyring) -> None:
        self._macs = {_SIGNED + key_id: _mac_of(key) for key_id, key in keys.by_id.items()}
        self._mac = _mac_of(keys.current) if keys.current else None
        self._head = _SIGNED + key_id(keys.current) if keys.current else _UNSIGNED

    def seal(self, context: bytes, body: bytes) -> bytes:
        """``body``, sealed for the place that ``context`` names."""
        if self._mac is None:
            return self._head + body
        return self._head + self._mac(_signed_part(self._head, context, body)) + body

    def open(self, context: bytes, sealed: bytes) -> bytes:
        """The body of a message that was sealed for this place; nothing in it is looked at before its tag is.

        Raises:
          PayloadError: It is not sealed, not with one of our keys, not for this place, or by a newer version.
        """
        head = sealed[:_TAG_AT]
        mac = self._macs.get(head)
        if mac is not None:
            body = sealed[_BODY_AT:]
            if hmac.compare_digest(sealed[_TAG_AT:_BODY_AT], mac(_signed_part(head, context, body))):
                return body
            raise PayloadError("a message's signature is wrong: it was changed, or belongs elsewhere")
        if sealed[:2] == _UNSIGNED and self._mac is None:
            return sealed[2:]
        raise PayloadError(self._why_not(sealed))

    def _why_not(self, sealed: bytes) -> str:
        if sealed[:2] == _SIGNED:
            return _OTHER_KEY if self._macs else _NO_KEY
        if sealed[:2] == _UNSIGNED:
            return "a message is not signed: set QSERVE_SECRET_KEY to the same secret in every process"
        if sealed[:1] > bytes((_VERSION,)):
            return f"a message has format {sealed[0]}, which only a newer qserve reads"
        return f"{len(sealed)} bytes are no sealed message"


_NO_KEY = "a message is signed, and this process has no key: set QSERVE_SECRET_KEY to the secret of the others"
_OTHER_KEY = (
    "a message is signed with a key that is not known here: while a key is changed, name the other one"
    " in QSERVE_ACCEPTED_KEYS"
)


def _signed_part(head: bytes, context: bytes, body: bytes) -> bytes:
    # the context's length keeps context and body apart
    return b"%b%d|%b%b" % (head, len(context), context, body)


def _mac_of(key: bytes) -> Callable[[bytes], bytes]:
    """HMAC-SHA256 of one key, of which the padded key is hashed once (RFC 2104, section 4).

    For the short messages of this path that takes 0.6 us instead of ``hmac.digest``'s 1.5.
    """
    padded = (key if len(key) <= _BLOCK_BYTES else hashlib.sha256(key).digest()).ljust(_BLOCK_BYTES, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded))
    outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in padded))

    def mac(message: bytes) -> bytes:
        first, second = inner.copy(), outer.copy()
        first.update(message)
        second.update(first.digest())
        return second.digest()

    return mac
