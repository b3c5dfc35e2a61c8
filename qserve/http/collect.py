"""Responses that have no body yet (streams, files, background tasks), run and collected."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

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


async def collect(response: Any) -> Collected:
    """Run any ASGI response and gather what it sends: status, headers, body.

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
    """``collect`` for callers that cannot await: a thread with its own loop runs it meanwhile."""
    found: list[Collected] = []
    errors: list[BaseException] = []

    def run(work: Coroutine[Any, Any, Collected]) -> None:
        try:
            found.append(asyncio.run(work))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, args=(collect(response),), name="qserve-collect")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return found[0]


async def _receive_nothing() -> Any:
    return await asyncio.get_running_loop().create_future()
