"""Request bodies: read to their end or refused, never cut short.

Flask's ``get_data`` answers with the first part of a chunked body that is too long, and with what came
of a body whose connection was closed; the stream below it tells the difference.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import gevent
from gunicorn.http.errors import ParseException

from qserve.http.bad_request import BadRequest

BODY_LIMIT = 10 * 1024 * 1024
READ_LIMIT_S = 15.0
_KIB = 1024
# 1 KiB a second from the fifth second on, looked at three times; whoever brings 15 KiB keeps that pace up to the limit
_PACE = ((5 * _KIB, 5.0), (10 * _KIB, 10.0), (sys.maxsize, READ_LIMIT_S))


def has_body(environ: dict[str, Any]) -> bool:
    """Whether a request brings a body, by what its head says."""
    return "HTTP_TRANSFER_ENCODING" in environ or environ.get("CONTENT_LENGTH") not in (None, "", "0")


def read_body(environ: dict[str, Any], limit: int = BODY_LIMIT) -> bytes:
    """The whole body of a request.

    Parameters:
      environ: The request, as WSGI has it.
      limit: Longest body in bytes.

    Raises:
      BadRequest: It is too long (413), incomplete or malformed (400), came too slowly (408), or in a transfer
        coding that is not known (501).
    """
    if not has_body(environ):
        return b""
    coding = environ.get("HTTP_TRANSFER_ENCODING")
    if coding is not None:
        if coding.strip().lower() != "chunked":
            message = "the only transfer coding that is understood is 'chunked'"
            raise BadRequest(message, "unsupported_transfer_coding", 501, close=True)
        return _read(environ["wsgi.input"], limit, None)
    length = _length(environ["CONTENT_LENGTH"])
    if length > limit:
        raise _too_long(limit)
    return _read(environ["wsgi.input"], limit, length)


def _length(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise BadRequest("Content-Length is not a number", "invalid_header", close=True)
    return int(text)


def _read(stream: Any, limit: int, length: int | None) -> bytes:
    wanted = limit + 1 if length is None else length
    body, began = b"", time.monotonic()
    for size, within_s in _PACE:
        goal = min(size, wanted)
        left_s = min(within_s, READ_LIMIT_S) - (time.monotonic() - began)
        body += _read_within(stream, goal - len(body), left_s)
        if len(body) < goal or goal == wanted:
            break
    if length is None and len(body) > limit:
        raise _too_long(limit)
    if length is not None and len(body) < length:
        message = f"the body has {len(body)} bytes, Content-Length says {length}"
        raise BadRequest(message, "incomplete_body", close=True)
    return body


def _read_within(stream: Any, size: int, left_s: float) -> bytes:
    """That many bytes, or what there is up to the body's end."""
    stalled = gevent.Timeout.start_new(max(0.0, left_s))
    try:
        return stream.read(size)  # type: ignore[no-any-return]
    except gevent.Timeout as timeout:
        if timeout is not stalled:
            raise
        message = f"the body came too slowly: send 1 KiB a second, and all of it within {READ_LIMIT_S:g} s"
        raise BadRequest(message, "body_timeout", 408, close=True) from None
    except (ParseException, OSError) as error:
        code = "incomplete_body" if isinstance(error, OSError) else "invalid_chunk"
        raise BadRequest("the body is cut off or malformed", code, close=True) from error
    finally:
        stalled.close()


def _too_long(limit: int) -> BadRequest:
    message = f"the body is longer than {limit} bytes"
    return BadRequest(message, "body_too_large", 413, close=True)
