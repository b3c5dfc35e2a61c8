"""Dead letters as plain data, for terminals and the live page: the same of each, and nothing that may hold secrets."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from qserve.base.carried import trace_id_of
from qserve.base.log import on_one_line
from qserve.wire.dead_letter import DeadLetter

_VALUE_CHARS = 2000


def summary_of(letter: DeadLetter) -> dict[str, Any]:
    """Return a dead letter as one line of a list."""
    header, failure = letter.header, letter.failure
    return {
        "request_id": letter.request_id,
        "client_id": on_one_line(header.trace_id) if header else "",
        "at": time_of(letter.at),
        "age_s": round(time.time() - letter.at, 1),
        "why": on_one_line(letter.why),
        "where": on_one_line(letter.call.stream.partition(":q:")[2] or letter.call.stream),
        "app": header.app if header else None,
        "error": "" if failure is None else on_one_line(f"{failure.type}: {failure.message}"),
    }


def details_of(letter: DeadLetter, payload: Sequence[str]) -> dict[str, Any]:
    """Return all that is shown of a dead letter.

    Parameters:
      payload: The arguments of its call as text, see ``DeadLetters.shown``.
    """
    return {
        **summary_of(letter),
        "step": on_one_line(letter.call.step),
        "trace_id": trace_id_of(letter.header.carried) if letter.header else "",
        "payload": [_shown(text) for text in payload],
        "other_calls": len(letter.others),
        "traceback": letter.failure.traceback if letter.failure else "",
        "history": [asdict(event) for event in letter.history],
    }


def _shown(text: str) -> str:
    return text if len(text) <= _VALUE_CHARS else f"{text[:_VALUE_CHARS]}… ({len(text)} characters)"


def time_of(at: float) -> str:
    """Return a Unix time as text."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
