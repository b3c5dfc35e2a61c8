"""The header of a request, which travels with each of its calls, unchanged from step to step."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import NamedTuple

import msgpack

from qserve.base.carried import Carried
from qserve.base.clock import clock
from qserve.exceptions import PayloadError
from qserve.wire.codec import unpack
from qserve.wire.request_ids import is_request_id

REQUEST_ID_CHARS = 32


class Answer(IntEnum):
    """The form in which the last step writes its result."""

    VALUE = 0
    """A value of the codec, for callers in Python."""
    PLAIN = 1
    """An HTTP response by the rules of a plain ingress: text for str, JSON otherwise."""
    JSON = 2
    """An HTTP response that is always JSON, as a DAGDriver gives it."""


_ANSWERS = {answer.value: answer for answer in Answer}  # as ``Answer(answer)``, in a fifth of the time
_CONTEXT_AT = 4  # where the fields begin that no step decides by
_DEPTH = 256  # no header is nested so deep, and most are shorter than this, so that nobody has to look


class Header(NamedTuple):
    """The part of a message that every step of a request shares.

    New fields come last and have a default; see ``qserve.wire`` for what older readers do with them.

    Parameters:
      request_id: 32 hexadecimal digits, unique for ever; state and result are stored under it.
      app: The application whose plan or deployment is called.
      graph: The plan's name, or None for a direct call of one method.
      deadline_ms: Unix time by the broker's clock after which no step starts any more.
      answer: The form of the result.
      trace_id: The id that people see: ``X-Request-ID`` of the HTTP request.
      route: The route prefix of that request.
      model_id: The multiplexed model that the caller asked for.
      stream: The caller takes the result as items.
      awaits: Slots (``step.slot``) that another request's result fills, with that request's id.
      carried: What the request carries beside its values; None, which takes no bytes, for nothing.
    """

    request_id: str
    app: str
    graph: str | None
    deadline_ms: int
    answer: Answer = Answer.VALUE
    trace_id: str = ""
    route: str = ""
    model_id: str = ""
    stream: bool = False
    awaits: Mapping[str, str] = MappingProxyType({})
    carried: Carried | None = None

    def encode(self) -> bytes:
        """Return the request's id, which the broker's functions read, and the rest as msgpack."""
        # the default buffer of 1 MiB would be mapped and unmapped each time by a gateway: see ``_return_freed_memory``
        parts = self[1:-1] if self.carried is None else (*self[1:-1], self.carried.encode())
        rest: bytes = msgpack.packb(parts, default=dict, buf_size=512)
        return self.request_id.encode() + rest

    @classmethod
    def decode(cls, data: bytes) -> Header:
        """Read what ``encode`` wrote; PayloadError for anything else."""
        try:
            request_id = data[:REQUEST_ID_CHARS].decode()
            parts = unpack(data[REQUEST_ID_CHARS:], "a header", _DEPTH)
            app, _, deadline_ms, answer = parts[:_CONTEXT_AT]
            if not is_request_id(request_id):
                raise ValueError(f"{request_id!r} is not a request id")
            if type(deadline_ms) is not int or type(app) is not str:
                raise ValueError(f"{app!r} is not an application name, or {deadline_ms!r} is not a time")
            parts[_CONTEXT_AT - 1] = _ANSWERS[answer]
            if len(parts) < _PARTS:  # nothing is carried, or an older version wrote it
                parts += _DEFAULTS[len(parts) :]
            elif len(parts) > _PARTS:  # a newer one did
                del parts[_PARTS:]
            if parts[-1] is not None:
                parts[-1] = Carried.decode(parts[-1])
            return cls(request_id, *parts)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise PayloadError(f"{len(data)} bytes are not a message header: {reason}") from error

    def expired(self) -> bool:
        """Return whether the deadline has passed, by the broker's clock."""
        return clock.judge_ms() > self.deadline_ms


_DEFAULTS = [Header._field_defaults.get(name) for name in Header._fields[1:]]
_PARTS = len(_DEFAULTS)
APP_AT, GRAPH_AT, STREAM_AT, AWAITS_AT = map(Header._fields.index, ("app", "graph", "stream", "awaits"))
"""The places of these in what is encoded after the request's id, counted from 1, as the broker's functions do."""
