"""starlette's ``Request`` on replicas: created from what the gateway sent, and sent on to other replicas.

Importing this module makes every ``HttpMessage`` that is decoded in this process arrive as a ``Request``, and lets
such a request be sent to other replicas any number of times.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.types import Message

from qserve.base.context import request_context
from qserve.base.promise import Promise
from qserve.exceptions import PayloadError
from qserve.http.message import EMPTY_BODY, HttpMessage, pack_message, unpack_message
from qserve.http.pieces import pieces
from qserve.wire.codes import Code, register, register_unpacker

_MESSAGE = "qserve.request"
"""The key of a request's scope under which its message is kept."""
_BLANK = 1 << 16
_ASGI = {"version": "3.0", "spec_version": "2.4"}


class InvalidJSON(json.JSONDecodeError):
    """Raised by ``request.json()`` when the body is not valid JSON; the client gets 400 unless user code catches it."""


def to_starlette(message: HttpMessage) -> Request:
    """Return a request like one that has just arrived over HTTP, whose body can be read without waiting."""
    scope = {
        "type": "http",
        "asgi": _ASGI,
        "http_version": "1.1",
        "method": message.method,
        "scheme": message.scheme,
        "path": message.path,
        "raw_path": message.raw_path or message.path.encode(),
        "root_path": message.root_path,
        "query_string": message.query_string,
        "headers": list(message.headers),
        "client": message.client,
        "server": message.server,
        "path_params": dict(message.path_params),
        _MESSAGE: message,
    }
    request = with_own_json(Request(scope, ReceiveBody(message.body)))
    if isinstance(message.body, memoryview):
        request.body = _ReadBody(request, message.body)  # type: ignore[method-assign]
    return request


def with_own_json(request: Request) -> Request:
    """Let ``request.json()`` raise InvalidJSON; the request was made from a message's scope."""
    # on the instance and not in a subclass, so that the request's type is starlette's
    request.json = _ReadJson(request, request.scope[_MESSAGE])  # type: ignore[method-assign]
    return request


class _ReadJson:
    """``request.json`` with InvalidJSON as its error."""

    __slots__ = ("_message", "_request")

    def __init__(self, request: Request, message: HttpMessage) -> None:
        # weak, because the request refers to this object: in a cycle, only the garbage collector could free its body
        self._request = weakref.ref(request)
        self._message = message

    async def __call__(self) -> Any:
        # a request that is gone was neither read nor changed by anyone, so another one reads the same
        request = self._request() or to_starlette(self._message)
        try:
            return await Request.json(request)
        except json.JSONDecodeError as error:
            raise _invalid(error, self._message.body) from None
        except UnicodeDecodeError as error:
            raise InvalidJSON("the body is not UTF-8", "", error.start) from None


class _ReadBody:
    """``request.body`` of a body in the store, which starlette would copy twice: into pieces, and into one."""

    __slots__ = ("_body", "_request")

    def __init__(self, request: Request, body: memoryview) -> None:
        self._request = weakref.ref(request)
        self._body = body

    async def __call__(self) -> bytes:
        request = self._request()
        if request is None:
            return bytes(self._body)
        if not hasattr(request, "_body"):
            if request._stream_consumed:
                return await Request.body(request)  # which raises an error
            request._body, request._stream_consumed = bytes(self._body), True
        return request._body


def _invalid(error: json.JSONDecodeError, body: bytes | memoryview) -> InvalidJSON:
    invalid = InvalidJSON(error.msg, error.doc, error.pos)
    if not bytes(body[:_BLANK]).strip() and len(body) <= _BLANK:  # a byte order mark alone is text without characters
        invalid.args = (EMPTY_BODY,)  # its text, instead of "Expecting value: line 1 column 1"
    return invalid


class ReceiveBody:
    """ASGI's ``receive`` for a body that has already arrived; a cancelled request looks like a client that has left."""

    __slots__ = ("_messages",)

    def __init__(self, body: bytes | memoryview) -> None:
        self._messages = body_messages(body)

    async def __call__(self) -> Message:
        message = next(self._messages, None)
        if message is not None:
            return message
        left: Promise[None] = Promise()
        with request_context.get().when_cancelled(partial(left.set, None)):
            await left
        return {"type": "http.disconnect"}


def body_messages(body: bytes | memoryview) -> Iterator[Message]:
    """Return the messages of ASGI by which an application receives a body: one, or many for one in the store."""
    if isinstance(body, memoryview) and body:
        for piece in pieces(body):
            is_last = piece.begin + len(piece) == len(body)
            yield {"type": "http.request", "body": piece, "more_body": not is_last}
    else:
        yield {"type": "http.request", "body": bytes(body), "more_body": False}


def from_starlette(request: Request) -> HttpMessage:
    """Return a request as a message.

    Raises:
      PayloadError: The body comes from a connection and has not been read yet.
    """
    scope = request.scope
    client, server = scope.get("client"), scope.get("server")
    return HttpMessage(
        scope["method"],
        scope.get("scheme", "http"),
        scope["path"],
        scope.get("root_path", ""),
        scope.get("query_string", b""),
        tuple((name, value) for name, value in scope.get("headers", ())),
        None if client is None else (client[0], client[1]),
        None if server is None else (server[0], server[1]),
        _body_of(request),
        _plain_params(scope.get("path_params", {})),
        raw_path if b"%" in (raw_path := scope.get("raw_path") or b"") else b"",
    )


def _plain_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Turn path parameters that a framework has converted, to UUIDs for example, back into text."""
    return {name: value if isinstance(value, str | int | float) else str(value) for name, value in params.items()}


async def read_body(request: Request) -> bytes | memoryview:
    """Return the body of a request; a view of one that is in the store."""
    message = request.scope.get(_MESSAGE)
    if isinstance(message, HttpMessage) and isinstance(message.body, memoryview):
        return message.body
    return await request.body()


def _body_of(request: Request) -> bytes | memoryview:
    message = request.scope.get(_MESSAGE)
    if isinstance(message, HttpMessage):
        return message.body
    # Somebody else created this request. Encoding cannot wait, so the body must have been read before, or be available
    # at once. It is stored where starlette stores it, for later readers of this request.
    if not hasattr(request, "_body"):

        async def receive_at_once() -> Any:
            return _run_at_once(request.receive())

        request._body = _run_at_once(Request(request.scope, receive_at_once).body())
    return request._body


def _run_at_once(coroutine: Any) -> Any:
    """Return the result of a coroutine that does not wait."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    except PayloadError:
        raise
    except Exception as error:
        raise PayloadError(f"the request cannot be sent on, because its body cannot be read: {error!r}") from error
    coroutine.close()
    raise PayloadError("a request can be sent on only after its body was read: `await request.body()` first")


def _unpack(packed: list[Any]) -> Request:
    return to_starlette(unpack_message(packed))


register_unpacker(Code.HTTP_MESSAGE, _unpack)
register(Code.STARLETTE_REQUEST, Request, lambda request: pack_message(from_starlette(request)), _unpack)
