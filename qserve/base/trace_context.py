"""W3C Trace Context: ``traceparent`` and ``tracestate``, read strictly, and written in their shortest form."""

from __future__ import annotations

import re

STATE_CHARS = 512
"""The longest ``tracestate`` that is carried on; its entries from the right are left out of a longer one."""
_STATE_LIMIT = 8192  # no entries are looked for in more than this
_ENTRIES = 32
_LONG_ENTRY = 128  # these go first
_SAMPLED_AND_RANDOM = 0x03
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[\x21-\x7e]*)?", re.ASCII)
_ENTRY = re.compile(
    r"([a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]",
    re.ASCII,
)


def read_traceparent(text: str) -> str:
    """Return a ``traceparent`` in the form of version 00; "" for one that is malformed, which must be ignored.

    Of the flags, those are kept that version 00 defines: sampled, and random trace id.
    """
    found = _PARENT.fullmatch(text)
    if found is None:
        return ""
    version, trace, parent, flags, more = found.groups()
    if version == "ff" or (version == "00" and more is not None) or not (trace.strip("0") and parent.strip("0")):
        return ""
    return f"00-{trace}-{parent}-{int(flags, 16) & _SAMPLED_AND_RANDOM:02x}"


def trace_id_in(traceparent: str) -> str:
    """Return the trace that a ``traceparent`` in the form of version 00 names; "" for ""."""
    return traceparent[3:35]


def numbers_in(traceparent: str) -> tuple[int, int, int]:
    """Return the IDs of trace and span, and the flags, of what ``read_traceparent`` has returned."""
    return int(traceparent[3:35], 16), int(traceparent[36:52], 16), int(traceparent[53:55], 16)


def read_tracestate(text: str) -> str:
    """Return a ``tracestate`` without needless characters, and at most ``STATE_CHARS`` long; "" if it is malformed."""
    if len(text) > _STATE_LIMIT:
        return ""
    entries = [entry for part in text.split(",") if (entry := part.strip(" \t"))]
    keys = {entry.partition("=")[0] for entry in entries}
    if len(entries) > _ENTRIES or len(keys) < len(entries) or not all(map(_ENTRY.fullmatch, entries)):
        return ""
    if _length(entries) > STATE_CHARS:
        entries = [entry for entry in entries if len(entry) <= _LONG_ENTRY]
    while _length(entries) > STATE_CHARS:
        entries.pop()
    return ",".join(entries)


def _length(entries: list[str]) -> int:
    return sum(map(len, entries)) + len(entries) - 1
