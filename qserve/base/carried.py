"""What a request carries beside its values, from its caller to each step and to the calls that these make."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, NamedTuple

from qserve.base.trace_context import read_traceparent, read_tracestate

HEADERS_LIMIT, HEADER_BYTES, HEADERS_BYTES = 16, 1024, 4096
"""How many headers a request carries, and how long one value and all of them may be."""
_NAME = re.compile(r"[a-z0-9!#$%&'*+.^`|~-]+")
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")


class Carried(NamedTuple):
    """What a request carries; a request without any of it has None in this place.

    Parameters:
      traceparent, tracestate: W3C Trace Context, as ``read_traceparent`` and ``read_tracestate`` return them.
      tenant: On whose behalf the request is made.
      headers: Chosen headers of the HTTP request, by their names in lower case.
      origin: In a replay, the ``traceparent`` of the try that had failed.
      is_timed: Whether its response says how long each step has waited and run.
    """

    traceparent: str = ""
    tracestate: str = ""
    tenant: str = ""
    headers: Mapping[str, str] = MappingProxyType({})
    origin: str = ""
    is_timed: bool = False

    def encode(self) -> list[Any]:
        """Return it as plain data."""
        return list(self if self.is_timed else self[: _ORIGIN_AT + bool(self.origin)])

    @classmethod
    def decode(cls, parts: Any) -> Carried | None:
        """Read what ``encode`` has returned, of this release or a later one, which may have more parts.

        Raises:
          ValueError: It is something else.
        """
        if parts is None:
            return None
        if type(parts) is list and len(parts) > _HEADERS_AT and type(parts[_HEADERS_AT]) is dict:
            found = cls(*parts[: len(cls._fields)])
            texts = (*found[:_HEADERS_AT], found.origin, *found.headers, *found.headers.values())
            if (
                type(found.is_timed) is bool
                and all(type(text) is str for text in texts)
                and all(read_traceparent(parent) == parent for parent in (found.traceparent, found.origin) if parent)
            ):
                return found
        raise ValueError("what the request carries is malformed")


_ORIGIN_AT = Carried._fields.index("origin")
_HEADERS_AT = Carried._fields.index("headers")


class TooLongError(ValueError):
    """Raised for a header that is longer than a request may carry."""


class Headers(Mapping[str, str]):
    """Headers of a request; upper and lower case of their names are the same."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, str] = MappingProxyType({})) -> None:
        self._values = values

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Headers({dict(self._values)!r})"


carried_here: ContextVar[Carried | None] = ContextVar("qserve_carried_here", default=None)
"""What calls carry that are made here, in the place of what the running request carries; see ``call_context``."""


def trace_id_of(carried: Carried | None) -> str:
    """Return the trace that something belongs to; "" for none."""
    return "" if carried is None else carried.traceparent[3:35]


def is_header_name(name: str) -> bool:
    """Return whether this is the name of a header, in lower case, which requests may carry."""
    return _NAME.fullmatch(name) is not None


def checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return headers with their names in lower case.

    Raises:
      TypeError: A name or a value is not a string.
      ValueError: A name or a value cannot be one of a header, or they are too many or too long.
    """
    found: dict[str, str] = {}
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"header {name!r} and its value must be strings, not {value!r}")
        if not is_header_name(name.lower()):
            raise ValueError(f"{name!r} is not the name of a header: use letters, digits and -, such as 'x-region'")
        found[name.lower()] = checked_value(f"header {name!r}", value)
    if len(found) > HEADERS_LIMIT or sum(map(len, (*found, *found.values()))) > HEADERS_BYTES:
        raise TooLongError(f"a request carries at most {HEADERS_LIMIT} headers and {HEADERS_BYTES} characters of them")
    return found


def checked_value(what: str, value: str) -> str:
    """Return the value of a header.

    Raises:
      ValueError: It has control characters, or is too long.
    """
    if not _VALUE.fullmatch(value):
        raise ValueError(f"{what} has control characters")
    if len(value) > HEADER_BYTES:
        raise TooLongError(f"{what} has {len(value)} characters; the limit is {HEADER_BYTES}")
    return value


def common(carried: Sequence[Carried | None]) -> Carried | None:
    """Return what all of these have in common; None for nothing."""
    first, *others = carried
    if first is None or None in others:
        return None
    found = Carried()
    for names in (("traceparent", "tracestate"), ("tenant",), ("headers",)):
        parts = {name: getattr(first, name) for name in names}
        if all(getattr(other, name) == part for other in others for name, part in parts.items()):
            found = found._replace(**parts)
    return found if found != Carried() else None


def changed(
    base: Carried | None,
    tenant: str | None,
    headers: Mapping[str, str] | None,
    traceparent: str | None,
    tracestate: str | None,
) -> Carried:
    """Return what is carried when some parts of it change; None leaves a part as it is.

    Raises:
      TypeError, ValueError: A part is malformed, or too long.
    """
    found = base or Carried()
    if tenant is not None:
        found = found._replace(tenant=checked_value("the tenant", tenant))
    if headers is not None:
        found = found._replace(headers=checked_headers(headers))
    if traceparent is not None:
        parent = read_traceparent(traceparent)
        if traceparent and not parent:
            example = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            raise ValueError(f"{traceparent[:100]!r} is not a traceparent, such as {example!r}")
        found = found._replace(traceparent=parent, tracestate="")
    if tracestate is not None:
        state = read_tracestate(tracestate)
        if tracestate and not (state and found.traceparent):
            raise ValueError(f"{tracestate[:100]!r} is not a tracestate, such as 'vendor=value', or has no traceparent")
        found = found._replace(tracestate=state)
    return found
