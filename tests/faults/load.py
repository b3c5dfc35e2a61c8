"""Load at a constant rate, whatever the answers do: a closed loop would send less while things are bad."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from ledger import reference
from processes import PATIENCE_S, wait_until

from qserve.calls import ref as refs
from qserve.calls.client import ClientPlane
from qserve.calls.ref import Ref
from qserve.exceptions import QserveException

RATE = 50.0
"""Requests a second."""


@dataclass
class Call:
    """One request of the load.

    Parameters:
      job: What was sent.
      sent_at, ended_at: By the monotonic clock; 0 while there is no end.
      accepted: Whether the system said that it had taken the request.
      answer: The result; None when there is none.
      error, exception: How it failed; "" and None when it did not.
      status: The HTTP status; 0 for calls by handle.
      ends: How many ends were told of it.
    """

    job: dict[str, Any]
    sent_at: float
    ended_at: float = 0.0
    accepted: bool = False
    answer: Any = None
    error: str = ""
    exception: Exception | None = None
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    ends: int = 0
    ref: Ref | None = None

    @property
    def id(self) -> str:
        """The name by which the ledger knows it."""
        return str(self.job["id"])

    @property
    def took_s(self) -> float:
        """From its sending to its end."""
        return self.ended_at - self.sent_at

    @property
    def is_right(self) -> bool:
        """Whether its answer is what plain Python would have answered."""
        return bool(self.answer) and self.answer["id"] == self.id and self.answer["value"] == reference(self.job["x"])


class Client(Protocol):
    """Sends requests in some way, without waiting for their ends."""

    def send(self, job: dict[str, Any]) -> Call:
        """Send one."""

    def wait(self, calls: list[Call], timeout_s: float = PATIENCE_S) -> None:
        """Wait until all of these have ended."""


class HandleClient:
    """Sends by the Python plane, where ``accepted`` is known of each request."""

    def __init__(self, plane: ClientPlane, timeout_s: float = PATIENCE_S) -> None:
        self._plane = plane
        self._timeout_s = timeout_s

    def send(self, job: dict[str, Any], **options: Any) -> Call:
        """Start the diamond."""
        call = Call(job, time.monotonic())
        chosen = {"timeout_s": self._timeout_s, "result_ttl_s": 60.0, **options}
        try:
            call.ref = self._plane.submit(refs.Call("default", args=(job,), graph="", **chosen))
        except QserveException as error:
            call.error, call.ends, call.ended_at = f"{type(error).__name__}: {error}", 1, time.monotonic()
            return call
        call.ref.acceptance.call_when_set(lambda: self._on_accepted(call))
        call.ref.done.call_when_set(lambda: self._on_done(call))
        return call

    def _on_accepted(self, call: Call) -> None:
        assert call.ref is not None
        refused = call.ref.done.is_set() and call.ref.outcome().state == "f" and call.ref.refusal() is not None
        call.accepted = not refused

    def _on_done(self, call: Call) -> None:
        assert call.ref is not None
        try:
            call.answer = call.ref.result()
        except Exception as error:
            call.error, call.exception = f"{type(error).__name__}: {error}", error
        call.ends += 1
        call.ended_at = time.monotonic()

    def wait(self, calls: list[Call], timeout_s: float = PATIENCE_S) -> None:
        """Wait until all of these have ended."""
        _wait(calls, timeout_s)


class HttpClient:
    """Sends by HTTP, each request on a connection of its own and in a thread of its own."""

    def __init__(self, port: int, timeout_s: float = PATIENCE_S, threads: int = 64) -> None:
        self.port = port
        self._timeout_s = timeout_s
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="load")

    def send(self, job: dict[str, Any], headers: Mapping[str, str] | None = None) -> Call:
        """POST it to the application."""
        call = Call(job, time.monotonic())
        self._pool.submit(self._post, call, dict(headers or {}))
        return call

    def _post(self, call: Call, headers: dict[str, str]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self._timeout_s)
        try:
            connection.request("POST", "/", json.dumps(call.job), {"content-type": "application/json", **headers})
            response = connection.getresponse()
            call.headers = {name.lower(): value for name, value in response.getheaders()}
            text = response.read()
            call.status = response.status
            if response.status == 200:
                call.accepted, call.answer = True, json.loads(text)
            else:
                call.error = text.decode()
        except (OSError, http.client.HTTPException) as error:
            call.error = f"{type(error).__name__}: {error}"
        finally:
            connection.close()
            call.ends += 1
            call.ended_at = time.monotonic()

    def wait(self, calls: list[Call], timeout_s: float = PATIENCE_S) -> None:
        """Wait until all of these have ended."""
        _wait(calls, timeout_s)


def _wait(calls: list[Call], timeout_s: float = PATIENCE_S) -> None:
    def open_calls() -> list[str]:
        return [call.id for call in calls if not call.ended_at]

    def said() -> str:
        return f"all {len(calls)} requests have ended"

    try:
        wait_until(lambda: not open_calls(), description=said(), timeout_s=timeout_s)
    except AssertionError as error:
        raise AssertionError(f"{error}; open: {open_calls()[:10]}") from None


_numbers = itertools.count(1)


def new_job(**more: Any) -> dict[str, Any]:
    """A request that no other is equal to."""
    number = next(_numbers)
    return {"id": f"r{number}", "x": number, **more}


class Load:
    """A stream of requests in the background.

    Parameters:
      client: Sends them.
      rate: Requests a second.
      make: Makes each request.
    """

    def __init__(self, client: Client, rate: float = RATE, make: Callable[[], dict[str, Any]] = new_job) -> None:
        self.calls: list[Call] = []
        self.faults: list[tuple[float, float]] = []
        self._client, self._pause_s, self._make = client, 1 / rate, make
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def start(self) -> Load:
        """Begin to send."""
        self._thread.start()
        return self

    def _run(self) -> None:
        at = time.monotonic()
        while not self._stop.wait(max(0.0, at - time.monotonic())):
            self.calls.append(self._client.send(self._make()))
            at += self._pause_s

    def more(self, count: int) -> None:
        """Wait until this many more requests were sent."""
        goal = len(self.calls) + count
        wait_until(lambda: len(self.calls) >= goal, description=f"{count} more requests are sent")

    @contextmanager
    def fault(self) -> Iterator[None]:
        """Note that the fault happens now; what is under way meanwhile is touched by it."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.faults.append((began, time.monotonic()))

    def stop(self, timeout_s: float = PATIENCE_S) -> list[Call]:
        """Send no more, wait until everything sent has ended, and answer it."""
        self._stop.set()
        self._thread.join()
        self._client.wait(self.calls, timeout_s)
        return self.calls


class Crowd(Load):
    """So many clients, each of which sends its next request when its last one has ended.

    For rows that ask for a number of requests and not for a rate: it tells nothing of how long bad times last.

    Parameters:
      client: Sends for all of them, by handles.
      size: How many there are.
    """

    def __init__(self, client: HandleClient, size: int) -> None:
        super().__init__(client)
        self._idle = threading.Semaphore(size)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._idle.acquire()
            call = self._client.send(self._make())
            self.calls.append(call)
            if call.ref is None:
                self._idle.release()
            else:
                call.ref.done.call_when_set(self._idle.release)


def percentile(values: list[float], share: float) -> float:
    """The value that this share of the values does not exceed; 0 of none."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else 0.0
