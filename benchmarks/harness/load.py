"""Closed-loop load: so many requests in flight, each followed by the next, over HTTP or by a handle."""

from __future__ import annotations

import asyncio
import re
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import qserve


class Load(NamedTuple):
    """The figures of some seconds of load."""

    p50_ms: float
    p99_ms: float
    rate: float
    """Correct answers per second."""
    failed: int


def load_of(times_s: list[float], seconds: float, failed: int = 0) -> Load:
    """Return the percentiles and the rate of requests that took these times."""
    times_s.sort()
    return Load(percentile(times_s, 0.5) * 1e3, percentile(times_s, 0.99) * 1e3, len(times_s) / seconds, failed)


def percentile(ordered: list[float], part: float) -> float:
    """Return the value that this part of an ordered list does not exceed."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else float("nan")


PATIENCE_S = 10.0
"""A request without an answer by then has failed."""

Send = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bool]]


def posting(body: bytes, expected: bytes, path: str = "/", content_type: str = "application/json") -> Send:
    """Return what posts a body over an open connection, and returns whether the answer is the expected one."""
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    request = head.encode() + body

    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(request)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", answer, re.I)
        got = await reader.readexactly(int(length[1])) if length else await _chunks(reader)
        return got == expected and answer.split(b" ", 2)[1] == b"200"

    return send


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    got = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        got += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return got


def over_http(port: int, send: Send, connections: int, seconds: float) -> Load:
    """Put load on a server of this machine, each connection with one request after the other."""
    return asyncio.run(_over_http(port, send, connections, seconds))


async def _over_http(port: int, send: Send, connections: int, seconds: float) -> Load:
    times: list[float] = []
    failed = 0

    async def connection() -> None:
        nonlocal failed
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        until = time.perf_counter() + seconds  # so that the shortest load sends a request as well
        while time.perf_counter() < until:
            began = time.perf_counter()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    is_right = await send(reader, writer)
            except (OSError, asyncio.IncompleteReadError):  # a TimeoutError is an OSError
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                is_right = False
            if is_right:
                times.append(time.perf_counter() - began)
            else:
                failed += 1
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(connection() for _ in range(connections)))
    return load_of(times, time.perf_counter() - began, failed)


def answers(port: int, send: Send) -> bool:
    """Return whether a server gives the expected answer."""
    try:
        return not over_http(port, send, 1, 0.0001).failed
    except OSError:
        return False


def answer_of(port: int, body: bytes, path: str = "/", content_type: str = "application/json") -> bytes:
    """Return the answer to a single request, or that of an error; nothing while the server does not listen."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, {"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=10.0) as response:
            return bytes(response.read())
    except urllib.error.HTTPError as error:
        return error.read()
    except OSError:
        return b""


def by_handle(call: Callable[[], Any], seconds: float, at_least: int = 3) -> Load:
    """Call one after the other, at least a few times; ``call`` returns a ref."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < at_least or time.perf_counter() - began < seconds:
        sent = time.perf_counter()
        qserve.get(call())
        times.append(time.perf_counter() - sent)
    return load_of(times, time.perf_counter() - began)
