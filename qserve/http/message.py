"""``HttpMessage``: an HTTP request as plain data; ``BadRequest``: the error for one that cannot be served.

The gateway creates a message for every request and must stay small, so starlette is not imported here. On replicas,
``qserve.http.request`` decodes messages as starlette's ``Request``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qserve.exceptions import QserveException
from qserve.wire.codes import Code, register_packer

Address = tuple[str, int | None]
EMPTY_BODY = 'it is empty. Send a JSON value, for example 5 or {"name": "value"}'
"""The end of the error for an empty body, after "the request body is not valid JSON: "."""

HOP_BY_HOP = frozenset(
    b"connection expect keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer"
    b" transfer-encoding upgrade".split()
)
"""Headers about one connection and the framing of its messages, in either direction; they end at the gateway."""


class BadRequest(QserveException):
    """Raised when an HTTP request cannot be served because of the request itself.

    Parameters:
      message: What is wrong, for people.
      code: Names the kind of error for programs, such as ``invalid_json``.
      status: The HTTP status.
      close: Whether the connection ends, because the request's body was not read to its end.
    """

    status: int = 400
    code: str = "bad_request"

    def __init__(self, message: str, code: str = "bad_request", status: int = 400, close: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.close = close


@dataclass(frozen=True)
class HttpMessage:
    """An HTTP request with its whole body.

    Parameters:
      method: In capital letters.
      scheme: ``http`` or ``https``.
      path: The decoded path, which begins with ``root_path``.
      root_path: The route prefix of the application; "" for the root.
      query_string: What follows the question mark, as it was sent.
      headers: Lower-case names, and values, in their order.
      client: Host and port of the client, where known.
      server: Host and port of the server, where known.
      body: The whole body; a view of one that is in the payload store, and in a gateway ``Stored``.
      path_params: The values of the route's ``{parameters}`` in the path.
      raw_path: The path as it was sent, where that has escapes; b"" otherwise.
    """

    method: str
    scheme: str
    path: str
    root_path: str
    query_string: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    client: Address | None
    server: Address | None
    body: bytes | memoryview
    path_params: Mapping[str, Any] = field(default_factory=dict)
    raw_path: bytes = b""


def pack_message(message: HttpMessage) -> list[Any]:
    """Return the fields in a form that msgpack writes without any extension."""
    client, server = message.client, message.server
    return [
        message.method,
        message.scheme,
        message.path,
        message.root_path,
        message.query_string,
        [part for header in message.headers for part in header],
        None if client is None else list(client),
        None if server is None else list(server),
        message.body,
        dict(message.path_params),
        *((message.raw_path,) if message.raw_path else ()),
    ]


def unpack_message(packed: list[Any]) -> HttpMessage:
    """Return the message from which ``pack_message`` made ``packed``."""
    method, scheme, path, root_path, query_string, flat, client, server, body, path_params, *more = packed
    parts = iter(flat)
    return HttpMessage(
        method,
        scheme,
        path,
        root_path,
        query_string,
        tuple(zip(parts, parts, strict=True)),
        None if client is None else (client[0], client[1]),
        None if server is None else (server[0], server[1]),
        body,
        path_params,
        *more[:1],
    )


register_packer(Code.HTTP_MESSAGE, HttpMessage, pack_message)
