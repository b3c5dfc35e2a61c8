"""Results as finished HTTP responses: written by the last step's replica, relayed by the gateway.

The payload is msgpack: ``[status, [[name, value], ...], body]``.
"""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

import msgpack

from qserve.exceptions import PayloadError, PayloadTooLarge
from qserve.http.collect import collect_now
from qserve.http.jsonable import to_jsonable, with_text_keys
from qserve.wire.envelope import Answer

RESPONSE_LIMIT = 10 * 1024 * 1024
"""Longest body in bytes that is held whole, on the replica, in the broker and in the gateway; streams have no limit."""

_compact = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=to_jsonable)
# Ray Serve's plain deployments answer with json.dumps' own separators, its DAGDriver with FastAPI's
_spaced = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=to_jsonable)


class Rendered(NamedTuple):
    """An HTTP response; without ``content-length``, which whoever sends it knows."""

    status: int
    headers: list[list[str]]
    body: bytes


def _head(content_type: str) -> bytes:
    # everything before the body of a 200 is one of two constants
    whole: bytes = msgpack.packb([200, [["content-type", content_type]], None])
    return whole[:-1]


_JSON = _head("application/json")
_TEXT = _head("text/plain; charset=utf-8")


def render(value: Any, answer: Answer) -> bytes:
    """Write a result as an HTTP response.

    Parameters:
      value: What user code returned: any value with a JSON form, or a starlette response.
      answer: ``PLAIN`` (text for str and bytes, nothing for None) or ``JSON`` (always JSON).

    Returns:
      The payload that ``parse`` reads.

    Raises:
      PayloadError: The value has no JSON form; the message names its type.
      PayloadTooLarge: It is longer than ``RESPONSE_LIMIT``.
    """
    payload = _render(value, answer)
    if len(payload) > RESPONSE_LIMIT:
        raise PayloadTooLarge(
            f"a result of type {type(value).__qualname__!r} is {len(payload)} bytes as an HTTP response, and at most"
            f" {RESPONSE_LIMIT} are answered at once: return a StreamingResponse, or yield the body from a generator"
        )
    return payload


def _render(value: Any, answer: Answer) -> bytes:
    if answer is Answer.PLAIN:
        if type(value) is str:
            return _TEXT + msgpack.packb(_text(value))  # type: ignore[no-any-return]
        if isinstance(value, bytes | bytearray | memoryview):
            return _TEXT + msgpack.packb(bytes(value))  # type: ignore[no-any-return]
        if value is None:
            return _TEXT + msgpack.packb(b"")  # type: ignore[no-any-return]
    responses = sys.modules.get("starlette.responses")
    if responses is not None and isinstance(value, responses.Response):
        return _render_response(value)
    if answer is Answer.PLAIN and isinstance(value, str):
        return _TEXT + msgpack.packb(_text(str.__str__(value)))  # type: ignore[no-any-return]
    return _JSON + msgpack.packb(to_json(value, _spaced if answer is Answer.PLAIN else _compact))  # type: ignore[no-any-return]


def parse(payload: bytes) -> Rendered:
    """Read what ``render`` wrote.

    Raises:
      PayloadError: The bytes are something else.
    """
    try:
        status, headers, body = msgpack.unpackb(payload)
        if type(status) is not int or type(body) is not bytes:
            raise ValueError("its status is no number, or its body no bytes")
        for name, value in headers:
            if type(name) is not str or type(value) is not str:
                raise ValueError("its headers are no text")
        return Rendered(status, headers, body)
    except Exception as error:
        raise PayloadError(f"{len(payload)} bytes are no HTTP response: {type(error).__name__}") from error


def to_json(value: Any, encoder: json.JSONEncoder = _compact) -> bytes:
    """A value as JSON.

    Raises:
      PayloadError: It has no JSON form; the message names its type.
    """
    try:
        return encoder.encode(value).encode()
    except TypeError as error:
        if not str(error).startswith("keys must be"):
            raise _refusal(value, error) from error
    except (ValueError, RecursionError) as error:
        raise _refusal(value, error) from error
    try:
        return encoder.encode(with_text_keys(value)).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise _refusal(value, error) from error


def _refusal(value: Any, error: Exception) -> PayloadError:
    if isinstance(error, RecursionError) or "Circular" in str(error):
        why = "it is nested too deeply, or contains itself"
    elif "not JSON compliant" in str(error):
        why = "it contains NaN or Infinity, which JSON does not have"
    else:
        why = str(error)
    kind = type(value).__qualname__
    return PayloadError(f"a result of type {kind!r} cannot be answered as JSON: {why}")


def _text(value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise PayloadError(f"a result of type 'str' cannot be answered as text: {error}") from error


def _render_response(response: Any) -> bytes:
    body = getattr(response, "body", None)
    if isinstance(body, bytes | bytearray | memoryview) and response.background is None:
        status, headers = response.status_code, response.raw_headers
    else:
        status, headers, body = collect_now(response)
    named = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in headers if name != b"content-length"]
    return msgpack.packb([status, named, bytes(body)])  # type: ignore[no-any-return]
