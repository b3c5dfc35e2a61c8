"""WebSockets of an ASGI application: the messages of ASGI on one side, and a ``Wire`` to the client on the other."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message
from starlette.websockets import WebSocketDisconnect

from qserve.base.context import request_context
from qserve.exceptions import QserveException
from qserve.http.render import head_of
from qserve.http.websocket import ClientLeft, Conversation, Wire
from qserve.wire.websocket import (
    NORMAL,
    REASON_BYTES,
    SERVICE_RESTART,
    Farewell,
    Kind,
    Part,
    acceptance_part,
    text_of,
)

LINGER_S = 30.0
"""How long an application may go on after its client has left before it is cancelled."""
FAREWELL_S = 3.0
"""The same, when its call is to end."""
_OWN = "sec-websocket-"
_CODES = range(3000, 5000)
_STANDARD_CODES = frozenset((1000, 1001, 1002, 1003, *range(1007, 1015)))
_REFUSED = {"code": "websocket_refused", "message": "the application did not accept the WebSocket"}


class WebSocketConversation(Conversation):
    """One WebSocket of an ASGI application.

    Parameters:
      request: The opening handshake, as the gateway has passed it on.
      state: The state that the application's lifespan gives to every request.
    """

    def __init__(self, app: ASGIApp, request: Request, state: Mapping[str, Any]) -> None:
        named = request.headers.getlist("sec-websocket-protocol")
        subprotocols = [name.strip() for line in named for name in line.split(",") if name.strip()]
        scope = {name: value for name, value in request.scope.items() if name != "method"}
        self._scope = scope | {
            "type": "websocket",
            "subprotocols": subprotocols,
            "state": dict(state),
            "extensions": {"websocket.http.response": {}},
        }
        self._app = app
        self._wire: Wire
        self._is_connected = self._is_accepted = self._is_closed = False
        self._refusal: Response | None = None
        self._is_refused = False

    async def run(self, wire: Wire) -> Response | None:
        """See ``Conversation``; an application that returns without closing has closed with 1000."""
        self._wire = wire
        loop = asyncio.get_running_loop()
        coroutine: Any = self._app(self._scope, self._receive, self._send)
        task: asyncio.Task[None] = loop.create_task(coroutine)
        wire.when_left = partial(loop.call_later, LINGER_S, task.cancel)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            wire.leave(Farewell(SERVICE_RESTART, "the session was ended"))
            await asyncio.wait({task}, timeout=FAREWELL_S)
            task.cancel()
            raise
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None and not (wire.left and isinstance(error, _NO_ERRORS)):
            raise error
        if self._is_refused:
            return self._refusal
        if not self._is_accepted and not wire.left:
            raise QserveException("the application ended without accepting or refusing the WebSocket")
        if not self._is_closed and not wire.left:
            await self._close({})
        return None

    async def _receive(self) -> Message:
        if not self._is_connected:
            self._is_connected = True
            return {"type": "websocket.connect"}
        heard = await self._wire.hear()
        if isinstance(heard, Farewell):
            return {"type": "websocket.disconnect", "code": heard.code, "reason": heard.reason}
        if heard.kind is Kind.TEXT:
            return {"type": "websocket.receive", "text": text_of(heard.data)}
        return {"type": "websocket.receive", "bytes": heard.data}

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if self._wire.left:
            raise ClientLeft("the client has left")
        if self._is_closed:
            raise RuntimeError(f"the application has sent {kind!r} after it had closed the WebSocket")
        if self._is_accepted:
            await self._send_open(kind, message)
        elif kind == "websocket.accept" and not self._is_refused:
            await self._accept(message)
        elif kind == "websocket.close" and not self._is_refused:
            self._is_refused = self._is_closed = True
            more = {"request_id": request_context.get().request_id, "retryable": False}
            self._refusal = JSONResponse({"error": _REFUSED | more}, 403)
        elif kind == "websocket.http.response.start" and not self._is_refused:
            self._is_refused = True
            self._refusal = Response(b"", message["status"])
            self._refusal.raw_headers = [*message.get("headers", ())]
        elif kind == "websocket.http.response.body" and self._refusal is not None:
            self._refusal.body = bytes(self._refusal.body) + message.get("body", b"")
            self._is_closed = not message.get("more_body", False)
        else:
            raise RuntimeError(f"the application has sent {kind!r} before it accepted the WebSocket")

    async def _accept(self, message: Message) -> None:
        _, headers, _ = head_of(200, message.get("headers") or ())
        kept = [header for header in headers if not header[0].lower().startswith(_OWN)]
        subprotocol = message.get("subprotocol")
        if subprotocol is not None and subprotocol not in self._scope["subprotocols"]:
            offered = self._scope["subprotocols"]
            raise ValueError(f"the client has not offered the subprotocol {subprotocol!r}, but {offered}")
        self._is_accepted = True
        await self._wire.say(acceptance_part(subprotocol, kept))

    async def _send_open(self, kind: str, message: Message) -> None:
        if kind == "websocket.close":
            await self._close(message)
        elif kind != "websocket.send":
            raise RuntimeError(f"the application has sent {kind!r} after it accepted the WebSocket")
        elif (data := message.get("bytes")) is not None:
            await self._wire.say(Part(Kind.BINARY, bytes(data)))
        else:
            await self._wire.say(Part(Kind.TEXT, message["text"].encode()))

    async def _close(self, message: Message) -> None:
        code, reason = message.get("code", NORMAL), message.get("reason") or ""
        if code not in _STANDARD_CODES and code not in _CODES:
            raise ValueError(f"{code!r} is not a code that closes a WebSocket: use 1000, or one from 3000 to 4999")
        self._is_closed = True
        cut = reason.encode()[:REASON_BYTES].decode(errors="ignore")
        await self._wire.say(Farewell(code, cut).part())


_NO_ERRORS = (WebSocketDisconnect, ClientLeft, asyncio.CancelledError)
"""What ends an application whose client has left."""
