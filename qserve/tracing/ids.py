"""The IDs of spans that others refer to: they follow from the request, so that no message has to carry them."""

from __future__ import annotations

import hashlib


def id_of_try(request_id: str, deadline_ms: int, step: str, attempt: int) -> int:
    """Return the ID of the span of one try of a step; a replay has another deadline, and so other spans."""
    return _digest(f"{request_id}|{deadline_ms}|{step}|{attempt}")


def id_of_send(request_id: str, step: str, slot: int) -> int:
    """Return the ID of the span of what has filled a slot of a step: one commit of one step, once for ever."""
    return _digest(f"{request_id}|{step}|{slot}")


def replaced(traceparent: str, span_id: int) -> str:
    """Return a ``traceparent`` of the same trace with another span."""
    return f"{traceparent[:36]}{span_id:016x}{traceparent[52:]}"


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") or 1
