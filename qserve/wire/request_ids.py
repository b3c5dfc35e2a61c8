"""Request ids: an id tells whether its result may be asked for, and in which form it is stored, without a lookup.

An id has 32 hexadecimal digits. The last eight of an id that was given out are a checksum of the others. So a result
that is no longer stored can be told from one that never existed, without keeping anything in the broker. A private
request has an id without a checksum: its result is deleted together with its ref.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from binascii import crc32
from typing import Final

is_request_id: Final = re.compile(r"[0-9a-f]{32}").fullmatch
_DIGITS = 24  # before the checksum


def new_value_id() -> str:
    """Return the id of a request from Python, whose result is a value."""
    head = os.urandom(_DIGITS // 2)
    return (head + crc32(head).to_bytes(4)).hex()


def new_response_id() -> str:
    """Return the id of a request from HTTP, whose result is a response."""
    return _of_response(os.urandom(_DIGITS // 2).hex())


def id_of_key(key: str, app: str, namespace: str, secret: bytes | None) -> str:
    """Return the id that belongs to an idempotency key in an application, the same in every gateway.

    With a secret, an id cannot be computed by others who guess the key.
    """
    digest = hmac.new(secret or b"", "\0".join((namespace, app, key)).encode(), hashlib.sha256)
    return _of_response(digest.hexdigest()[:_DIGITS])


def value_id_of_key(key: str, namespace: str, secret: bytes | None) -> str:
    """Return the id that belongs to the id of a Celery task, the same in every process; its result is a value."""
    head = hmac.new(secret or b"", "\0".join((namespace, "task", key)).encode(), hashlib.sha256).digest()[
        : _DIGITS // 2
    ]
    return (head + crc32(head).to_bytes(4)).hex()


def is_of_value(request_id: str) -> bool:
    """Return whether ``new_value_id`` made an id; a made-up one passes with a probability of one in four billion."""
    head = bytes.fromhex(request_id[:_DIGITS])
    return f"{crc32(head):08x}" == request_id[_DIGITS:]


def is_of_response(request_id: str) -> bool:
    """Return whether ``new_response_id`` or ``id_of_key`` made an id."""
    return _of_response(request_id[:_DIGITS]) == request_id


def is_genuine(request_id: str) -> bool:
    """Return whether an id was given out."""
    return is_of_value(request_id) or is_of_response(request_id)


def _of_response(digits: str) -> str:
    return digits + hashlib.sha256(digits.encode()).hexdigest()[:8]
