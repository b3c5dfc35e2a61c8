"""The load: requests at a constant rate, whatever happens to them, each with its own ID."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse

NUMBER, ANSWER = 5, 9
_RETRY_EVERY_S = 0.25


@dataclass
class Call:
    """A request of a client.

    Parameters:
      id: Its ID in the body and in the ledger.
      due: When it was to be sent; latency counts from here.
      end: When it had a response or was given up; None until then.
      outcome: "ok", or the last error.
    """

    id: str
    due: float
    end: float | None = None
    outcome: str = "under way"

    @property
    def ok(self) -> bool:
        """Whether the response was correct."""
        return self.outcome == "ok"

    @property
    def latency_s(self) -> float:
        """How long it took; infinite without a response so far."""
        return float("inf") if self.end is None else self.end - self.due


class Load:
    """Open-loop load from a thread of its own: a slow server does not get fewer requests.

    Parameters:
      port: The port of the server on 127.0.0.1.
      rate: Requests a second.
      timeout_s: How long a client waits in all.
      retries: Whether clients resend a request that failed, with the same ``Idempotency-Key``.
    """

    def __init__(self, port: int, rate: float, timeout_s: float, retries: bool) -> None:
        self.calls: list[Call] = []
        self.rate = rate
        self._port = port
        self._timeout_s = timeout_s
        self._retries = retries
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load", daemon=True)

    def start(self) -> None:
        """Start sending."""
        self._thread.start()

    def stop(self) -> None:
        """Stop sending, and wait until every request has its response or was given up."""
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        began = time.monotonic()
        tasks = set()
        number = 0
        while not self._stop.is_set():
            due = began + number / self.rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            call = Call(f"r{number}", due)
            self.calls.append(call)
            task = asyncio.create_task(self._ask(call))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
        await asyncio.gather(*tasks)

    async def _ask(self, call: Call) -> None:
        give_up = call.due + self._timeout_s
        while True:
            outcome = await ask(self._port, call.id, max(0.0, give_up - time.monotonic()))
            if outcome == "ok" or not self._retries or time.monotonic() + _RETRY_EVERY_S > give_up:
                call.outcome, call.end = outcome, time.monotonic()
                return
            await asyncio.sleep(_RETRY_EVERY_S)


async def ask(port: int, id: str, timeout_s: float, **more: object) -> str:
    """Send a request over a connection of its own, and return "ok" or a word for the error."""
    body = json.dumps({"id": id, "number": NUMBER, **more}).encode()
    head = (
        f"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"Idempotency-Key: {id}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(head.encode() + body)
                answer = await reader.read(-1)
            finally:
                writer.close()
    except TimeoutError:
        return "timeout"
    except ConnectionRefusedError:
        return "refused"
    except OSError:
        return "reset"
    return _judge(answer, id)


class _Received:
    """Received bytes with the part of a socket that ``HTTPResponse`` uses."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def _judge(answer: bytes, id: str) -> str:
    response = HTTPResponse(_Received(answer))  # type: ignore[arg-type]
    try:
        response.begin()
        body = response.read()
    except (HTTPException, ConnectionError):
        return "cut short" if answer else "reset"
    if response.status != 200:
        return f"HTTP {response.status}"
    try:
        result = json.loads(body)
    except ValueError:
        return "wrong answer"
    right = isinstance(result, dict) and result.get("id") == id and result.get("number") == ANSWER
    return "ok" if right else "wrong answer"
