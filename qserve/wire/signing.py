"""Signatures: proof that bytes were written by somebody who holds the application's key."""

from __future__ import annotations

import hmac

TAG_BYTES = 32


def sign(key: bytes, body: bytes) -> bytes:
    """``body`` with its HMAC-SHA256 in front (RFC 2104)."""
    return hmac.digest(key, body, "sha256") + body


def verify(key: bytes, signed: bytes) -> bytes | None:
    """The body of ``signed``, or None when the tag in front of it was not made with ``key``."""
    tag, body = signed[:TAG_BYTES], signed[TAG_BYTES:]
    return body if hmac.compare_digest(tag, hmac.digest(key, body, "sha256")) else None
