"""``HttpMessage``: an HTTP request as plain data, cheap to make and to send.

The gateway makes one for every request and must stay small, so starlette is not imported here; on
the replicas ``qserve.http.request`` has them arrive as starlette's ``Request``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from qserve.wire import codec

Address = tuple[str, int | None]
_Message = TypeVar("_Message", bound="HttpMessage")


@dataclass(frozen=True)
class HttpMessage:
    """One HTTP request, read to its end.

    Parameters:
      method: In capital letters.
      scheme: ``http`` or ``https``.
      path: The decoded path, which begins with ``root_path``.
      root_path: The route prefix of the application; "" for the root.
      query_string: What follows the question mark, as it was sent.
      headers: Names in small letters, and values, in their order.
      client: Host and port of the other side, where known.
      server: Host and port of this side, where known.
      body: The whole body.
      path_params: What the path had in the places of its route's ``{name}``.
    """

    method: str
    scheme: str
    path: str
    root_path: str
    query_string: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    client: Address | None
    server: Address | None
    body: bytes
    path_params: Mapping[str, Any] = field(default_factory=dict)


def pack_message(message: HttpMessage) -> list[Any]:
    """The fields in a form that msgpack writes without any extension."""
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
    ]


def unpack_message(packed: list[Any], kind: type[_Message]) -> _Message:
    """Read what ``pack_message`` wrote into a message of the class ``kind``."""
    method, scheme, path, root_path, query_string, flat, client, server, body, path_params = packed
    parts = iter(flat)
    return kind(
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
    )


codec.register_packer(codec.Code.HTTP_MESSAGE, HttpMessage, pack_message)
