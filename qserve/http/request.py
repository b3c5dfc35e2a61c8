"""HTTP requests on replicas: starlette's ``Request``, made from what the gateway sent, and sent on.

Importing this module makes every ``HttpMessage`` that is decoded in this process arrive as a
starlette ``Request``, and lets such a request travel to other replicas any number of times.
"""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.types import Message, Receive

from qserve.exceptions import PayloadError
from qserve.http.message import HttpMessage, pack_message, unpack_message
from qserve.wire import codec

_ORIGIN = "qserve.request"
_ASGI = {"version": "3.0", "spec_version": "2.4"}


class InvalidJSON(json.JSONDecodeError):
    """Raised when user code reads a body as JSON that is none; left alone, the client is answered 400."""


class _JsonReader:
    """What stands in the place of ``request.json``, and raises InvalidJSON.

    It is set on the instance, so that the request's type stays starlette's. The reference back to the request is a
    weak one: in a cycle, request and body would be freed only by the garbage collector.
    """

    __slots__ = ("_message", "_request")

    def __init__(self, request: Request, message: HttpRequest) -> None:
        self._request = weakref.ref(request)
        self._message = message

    async def __call__(self) -> Any:
        # without the request itself nobody can have read or changed anything of it
        request = self._request() or self._message.to_starlette()
        try:
            return await Request.json(request)
        except json.JSONDecodeError as error:
            raise InvalidJSON(error.msg, error.doc, error.pos) from None
        except UnicodeDecodeError as error:
            raise InvalidJSON("the body is not UTF-8", "", error.start) from None


@dataclass(frozen=True)
class HttpRequest(HttpMessage):
    """An ``HttpMessage`` that can become starlette's ``Request``, and be made from one."""

    def to_starlette(self) -> Request:
        """A request that reads as if it had just come in by HTTP; its body can be read at once."""
        scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": "1.1",
            "method": self.method,
            "scheme": self.scheme,
            "path": self.path,
            "root_path": self.root_path,
            "query_string": self.query_string,
            "headers": list(self.headers),
            "client": self.client,
            "server": self.server,
            "path_params": dict(self.path_params),
            _ORIGIN: self,
        }
        request = Request(scope, _Body(self.body))
        request.json = _JsonReader(request, self)  # type: ignore[method-assign]
        return request

    @classmethod
    def from_starlette(cls, request: Request) -> HttpRequest:
        """Describe a starlette request, whether or not its body was read.

        Raises:
          PayloadError: The body comes from a connection and has not been read yet.
        """
        scope = request.scope
        client, server = scope.get("client"), scope.get("server")
        return cls(
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
        )


def _plain_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Path parameters as msgpack has them: a framework may have made UUIDs and the like of them."""
    return {name: one if isinstance(one, str | int | float) else str(one) for name, one in params.items()}


class _Body:
    """ASGI's ``receive`` for a body that is there already."""

    __slots__ = ("_body",)

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body

    async def __call__(self) -> Message:
        body, self._body = self._body, None
        if body is None:
            # as a server does while its client stays: there is nothing more to receive
            await asyncio.get_running_loop().create_future()
            raise AssertionError("unreachable")
        return {"type": "http.request", "body": body, "more_body": False}


def _body_of(request: Request) -> bytes:
    origin = request.scope.get(_ORIGIN)
    if isinstance(origin, HttpRequest):
        return origin.body
    # A request that somebody else made: packing is not async, so its body must have been read, or
    # come at once. It is kept where starlette itself keeps it, for whoever reads this one later.
    if not hasattr(request, "_body"):
        request._body = _finish(Request(request.scope, _AtOnce(request.receive)).body())
    return request._body


class _AtOnce:
    """A ``receive`` that fails where another one would wait."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive

    async def __call__(self) -> Message:
        message: Message = _finish(self._receive())
        return message


def _finish(work: Any) -> Any:
    """What a coroutine returns that needs not wait."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value
    except PayloadError:
        raise
    except Exception as error:
        raise PayloadError(f"a request's body cannot be read to pass it on: {error!r}") from error
    work.close()
    raise PayloadError("a request can only be passed on after its body was read: `await request.body()` first")


def _pack_starlette(request: Request) -> list[Any]:
    return pack_message(HttpRequest.from_starlette(request))


def _arrive(packed: list[Any]) -> Request:
    return unpack_message(packed, HttpRequest).to_starlette()


codec.register_unpacker(codec.Code.HTTP_MESSAGE, _arrive)
codec.register(codec.Code.STARLETTE_REQUEST, Request, _pack_starlette, _arrive)
