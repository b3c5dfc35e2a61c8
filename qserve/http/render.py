"""Results as HTTP responses: the replica of the last step renders them, and the gateway sends them.

The payload is msgpack: ``[status, [[name, value], ...], body]``. A large body is in the payload store: then the payload
begins with its claim, and the last part is None.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from types import NoneType
from typing import Any, NamedTuple

import msgpack

from qserve.exceptions import PayloadError, PayloadTooLarge, ResultNotSerialisable
from qserve.http.jsonable import WalkError, to_jsonable, with_text_keys
from qserve.http.message import HOP_BY_HOP
from qserve.http.strict_json import loads
from qserve.wire.claim import MARK, Claim, Kind, apart, wrap
from qserve.wire.codec import Codec, unpack
from qserve.wire.envelope import Answer

RESPONSE_LIMIT = 10 * 1024 * 1024
"""Longest body in bytes that travels whole; one that is stored may be longer, and streams have no limit."""

_WITHOUT_STORE = Codec()
_compact = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=to_jsonable)
# Ray Serve's plain deployments use the separators of json.dumps, and its DAGDriver uses FastAPI's
_spaced = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=to_jsonable)


class Rendered(NamedTuple):
    """An HTTP response; ``content-length`` is left out where there is a body."""

    status: int
    headers: list[list[str]]
    body: bytes


class Parsed(NamedTuple):
    """What ``render`` wrote; ``claim`` is that of a body which is stored, and not here."""

    response: Rendered
    claim: Claim | None

    @property
    def length(self) -> int:
        """How many bytes the body has."""
        return len(self.response.body) if self.claim is None else self.claim.size


def _head(content_type: str) -> bytes:
    # what comes before the body of a 200 is one of two constants
    whole: bytes = msgpack.packb([200, [["content-type", content_type]], None])
    return whole[:-1]


_JSON = _head("application/json")
_TEXT = _head("text/plain; charset=utf-8")


def render(value: Any, answer: Answer, codec: Codec = _WITHOUT_STORE) -> bytes:
    """Return the payload of an HTTP response for a result.

    Parameters:
      value: What user code returned: a starlette response, or any value that can be converted to JSON.
      answer: ``PLAIN`` (text for str and bytes, nothing for None, else JSON) or ``JSON`` (always JSON).
      codec: Stores a large body.

    Raises:
      PayloadError: The value cannot be converted; the message names its type.
      PayloadTooLarge: The response is longer than ``RESPONSE_LIMIT``, or than the store takes.
      BrokerError, StoreUnavailable, Heavy: See ``Codec.encode``.
    """
    head, body = _render(value, answer)
    kind = type(value).__qualname__
    claim = codec.store(kind, memoryview(body), Kind.KEPT)
    if claim is not None:
        return wrap(claim, head + msgpack.packb(None))
    payload: bytes = head + msgpack.packb(body)
    if len(payload) > RESPONSE_LIMIT:
        raise PayloadTooLarge(
            f"a result of type {kind!r} takes {len(payload)} bytes as an HTTP response, and the"
            f" limit is {RESPONSE_LIMIT}: return a StreamingResponse, or yield the body from a generator"
        )
    return payload


def _render(value: Any, answer: Answer) -> tuple[bytes, bytes]:
    """Return what comes before the body in the payload, and the body."""
    is_plain = answer is Answer.PLAIN
    if is_plain and isinstance(value, str):
        return _TEXT, _text(value)
    if is_plain and (value is None or isinstance(value, bytes | bytearray | memoryview)):
        return _TEXT, b"" if value is None else bytes(value)
    responses = sys.modules.get("starlette.responses")
    if responses is not None and isinstance(value, responses.Response):
        return _render_response(value)
    return _JSON, to_json(value, _spaced if is_plain else _compact)


def parse(payload: bytes, codec: Codec = _WITHOUT_STORE) -> Rendered:
    """Read what ``render`` returned, with its whole body.

    Parameters:
      codec: Reads a body that is stored.

    Raises:
      PayloadError: The bytes are something else, or the body is stored and the codec has no store.
      ValueLost, ValueUnreachable, BrokerError, StoreUnavailable: The body cannot be read.
    """
    response, claim = parse_apart(payload)
    return response if claim is None else response._replace(body=bytes(codec.get(claim)))


def parse_apart(payload: bytes) -> Parsed:
    """Read what ``render`` returned, but not a body that is stored.

    Raises:
      PayloadError: The bytes are something else.
    """
    claim, inline = apart(payload) if payload.startswith(MARK) else (None, payload)
    parts = unpack(inline, "a response", depth=8)
    if type(parts) is not list or len(parts) < 3 or type(parts[2]) is not (bytes if claim is None else NoneType):
        raise _not_response(payload)
    _check_head(payload, *parts[:2])
    return Parsed(Rendered(parts[0], parts[1], parts[2] or b""), claim)


def with_header(payload: bytes, name: str, value: str) -> bytes:
    """Return what ``render`` returned with one more header."""
    (status, headers, body), claim = parse_apart(payload)
    inline = msgpack.packb([status, [*headers, [name, value]], body if claim is None else None])
    return inline if claim is None else wrap(claim, inline)


def as_value(content_type: str, body: bytes) -> Any:
    """Return the body of a response as a value that can be part of JSON: what its JSON says, or its text.

    Raises:
      QserveException: It is neither.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        return loads(body)
    if kind.startswith("text/") or not body:
        try:
            return body.decode()
        except UnicodeDecodeError as error:
            raise PayloadError(f"a text is not UTF-8: {error}") from error
    raise PayloadError(f"a body of type {kind!r} is neither JSON nor text")


def parse_head(payload: bytes) -> tuple[int, list[list[str]]]:
    """Read status and headers, which are the first item of a streamed response.

    Raises:
      PayloadError: The bytes are something else.
    """
    parts = unpack(payload, "the head of a response", depth=8)
    if type(parts) is not list or len(parts) < 2:
        raise _not_response(payload)
    _check_head(payload, *parts[:2])
    return parts[0], parts[1]


def _check_head(payload: bytes, status: Any, headers: Any) -> None:
    if type(status) is not int or not 200 <= status <= 599 or type(headers) is not list:
        raise _not_response(payload)
    for header in headers:
        if type(header) is not list or len(header) != 2 or type(header[0]) is not str or type(header[1]) is not str:
            raise _not_response(payload)


def _not_response(payload: bytes) -> PayloadError:
    return PayloadError(f"{len(payload)} bytes are not an HTTP response")


# -- text and JSON ---------------------------------------------------------------------------------


def to_json(value: Any, encoder: json.JSONEncoder = _compact) -> bytes:
    """Return a value as JSON.

    Raises:
      PayloadError: It cannot be converted; the message names its type.
    """
    try:
        return encoder.encode(value).encode()
    except TypeError as error:
        if not isinstance(error, WalkError) and not str(error).startswith("keys must be"):
            raise _not_json(value, error) from error
    except (ValueError, RecursionError) as error:
        raise _not_json(value, error) from error
    try:
        return encoder.encode(with_text_keys(value)).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise _not_json(value, error) from error


def _not_json(value: Any, error: Exception) -> PayloadError:
    if isinstance(error, RecursionError) or "Circular" in str(error):
        why = "it is nested too deeply, or contains itself"
    elif "not JSON compliant" in str(error):
        why = "it contains NaN or Infinity, which JSON does not have"
    else:
        why = str(error)
    return PayloadError(f"a result of type {type(value).__qualname__!r} cannot be sent as JSON: {why}")


def _text(value: str) -> bytes:
    try:
        return str.encode(value)
    except UnicodeEncodeError as error:
        raise PayloadError(f"a result of type 'str' cannot be sent as text: {error}") from error


# -- responses that user code returned -------------------------------------------------------------

RawHeaders = list[tuple[bytes, bytes]]
Collected = tuple[int, RawHeaders, bytes]

_SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.4"},
    "http_version": "1.1",
    "method": "GET",
    "path": "/",
    "headers": [],
}


def _render_response(response: Any) -> tuple[bytes, bytes]:
    body = getattr(response, "body", None)
    if hasattr(response, "body") and response.background is None:
        status, headers = response.status_code, response.raw_headers
    else:
        status, headers, body = collect_now(response)
    if not isinstance(body, _BYTES):
        raise ResultNotSerialisable(f"the body of a response must be bytes, not {type(body).__qualname__!r}")
    status, named, length = head_of(status, headers)
    if length and not body:
        named.append(["content-length", str(length)])  # what HEAD says of the body that GET would have
    return msgpack.packb([status, named, None])[:-1], bytes(body)


def head_of(status: Any, headers: Iterable[tuple[bytes, bytes]]) -> tuple[int, list[list[str]], int | None]:
    """Check what user code wants to send before a body, and leave out what the gateway decides.

    Returns:
      The status, names and values without the headers of a connection and without ``x-request-id``, and the length of
      the body as far as it was declared.

    Raises:
      ResultNotSerialisable: HTTP does not allow the status or one of the headers.
    """
    if not isinstance(status, int) or not 200 <= status <= 599:
        raise ResultNotSerialisable(
            f"a response has the status {status!r}, and must have a whole number from 200 to 599"
        )
    try:
        return int(status), *_sent(headers)
    except (TypeError, ValueError, AttributeError) as error:
        raise _unfit(headers) from error


def _sent(headers: Iterable[tuple[bytes, bytes]]) -> tuple[list[list[str]], int | None]:
    named, length = [], None
    for raw_name, value in headers:
        name = bytes(raw_name).lower()
        if _NAME.fullmatch(name) is None:
            raise ResultNotSerialisable(f"a response has a header with the name {_shown(name)}, which HTTP cannot send")
        if _VALUE.fullmatch(value) is None:  # not shown: it may be a secret
            raise ResultNotSerialisable(
                f"the response header {_shown(name)} has a value that HTTP cannot send, such as one with a line break"
            )
        if name == b"content-length":
            if not value.isdigit() or (length is not None and length != int(value)):
                raise ResultNotSerialisable("the response header 'content-length' must be one whole number")
            length = int(value)
        elif name not in _NOT_SENT:
            named.append([name.decode("latin-1"), value.decode("latin-1")])
    return named, length


def _unfit(headers: Any) -> ResultNotSerialisable:
    """Return the error for headers that are not pairs of bytes."""
    for header in headers if isinstance(headers, list | tuple) else ():
        if not (
            isinstance(header, list | tuple) and len(header) == 2 and all(isinstance(part, _BYTES) for part in header)
        ):
            return ResultNotSerialisable(
                f"a response has {header!r:.200} among its raw_headers, which must be pairs of bytes: write"
                " response.headers[name] = text"
            )
    return ResultNotSerialisable(f"the raw_headers of a response must be pairs of bytes, not {headers!r:.200}")


_BYTES = bytes | bytearray | memoryview
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]{1,256}")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_NOT_SENT = HOP_BY_HOP | {b"x-request-id"}


def _shown(name: bytes) -> str:
    return repr(name[:100].decode("latin-1"))


def explain(error: BaseException) -> None:
    """Add to an error of a starlette response's constructor which argument is wrong, and what to write."""
    trace, given = error.__traceback__, dict[str, Any]()
    responses = sys.modules.get("starlette.responses")
    while trace is not None and responses is not None:
        frame, trace = trace.tb_frame, trace.tb_next
        if frame.f_code.co_filename == responses.__file__ and "self" in frame.f_locals:
            given = frame.f_locals
    made: Any = given.get("self")
    if responses is None or not isinstance(made, responses.Response):
        return
    why = ""
    status, media_type, headers = made.status_code, made.media_type, given.get("headers")
    if not isinstance(status, int):
        why = f"status_code={status!r} must be a whole number, such as 200"
    elif not isinstance(media_type, str | None):
        why = f"media_type={media_type!r} must be text, such as 'text/plain'"
    elif headers is not None and not hasattr(headers, "items"):
        why = "headers must be a dict of text"
    elif headers is not None:
        wrong = [(key, text) for key, text in headers.items() if not (isinstance(key, str) and isinstance(text, str))]
        why = f"name and value of the header {wrong[0][0]!r} must be text" if wrong else ""
    elif isinstance(error, AttributeError) and "content" in given:
        content = type(given["content"]).__qualname__
        why = f"content of type {content!r} must be str or bytes: return the value itself, or a JSONResponse"
    if why and error.args == (str(error),):
        error.args = (f"{error} ({type(made).__qualname__}(...): {why})",)


async def collect(response: Any) -> Collected:
    """Run a response that has no body yet (a stream, a file, a background task), and return status, headers and body.

    Parameters:
      response: An ASGI application, such as a starlette ``StreamingResponse``.
    """
    status, headers, chunks = 200, [], []

    async def send(message: Any) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status, headers = message["status"], list(message["headers"])
        elif message["type"] == "http.response.body":
            chunks.append(message.get("body", b""))

    await response(dict(_SCOPE), _receive_nothing, send)
    return status, headers, b"".join(chunks)


def collect_now(response: Any) -> Collected:
    """Do the same for callers that cannot await: a thread with its own event loop runs the response."""
    with ThreadPoolExecutor(1, "qserve-collect") as thread:
        return thread.submit(asyncio.run, collect(response)).result()


async def _receive_nothing() -> Any:
    return await asyncio.get_running_loop().create_future()
