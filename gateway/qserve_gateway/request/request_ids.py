"""Ids of requests whose answers can be asked for: whether one was ever given out can be told from the id alone.

An id is 32 hexadecimal digits. The last eight are a check over the others, so that an answer that is no longer kept
(410) differs from one that never was (404) without a trace of it in the broker.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re

_BODY_BYTES = 12
_FORM = re.compile(r"[0-9a-f]{32}")


def new_id() -> str:
    """An id that nobody can guess."""
    return _checked(os.urandom(_BODY_BYTES).hex())


def id_of_key(key: str, app: str, namespace: str, secret: bytes | None) -> str:
    """The id that belongs to an idempotency key, the same in every gateway of an installation.

    Parameters:
      key: The client's key.
      app: The application that is asked; the keys of another one are other keys.
      namespace: The installation.
      secret: With it, nobody who guesses a key can ask for the answer by its id.
    """
    digest = hmac.new(secret or b"", "\0".join((namespace, app, key)).encode(), hashlib.sha256)
    return _checked(digest.hexdigest()[: 2 * _BODY_BYTES])


def is_id(text: str) -> bool:
    """Whether a text has the form of an id."""
    return _FORM.fullmatch(text) is not None


def was_given_out(request_id: str) -> bool:
    """Whether an id is one of ours: four billion to one that it is, if this says so."""
    return _checked(request_id[: 2 * _BODY_BYTES]) == request_id


def _checked(body: str) -> str:
    return body + hashlib.sha256(body.encode()).hexdigest()[:8]
