"""HTTP as the tests here speak it: a client that sends, and the answer as it came."""

from __future__ import annotations

import contextlib
import http.client
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

WAIT_FOR_S = 40
"""Longer than any request here may wait for its answer."""


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error that it tells."""
        assert self.headers["content-type"] == "application/json"
        found: dict[str, Any] = self.json["error"]
        return found

    @property
    def code(self) -> str:
        """The word for programs in its error."""
        return str(self.error["code"])


class Client:
    """Sends requests to one gateway, each over a connection of its own.

    Parameters:
      place: Its URL, or its port on this machine.
      timeout_s: Longest wait for anything to come.
    """

    def __init__(self, place: str | int, timeout_s: float = WAIT_FOR_S) -> None:
        self.url = place if isinstance(place, str) else f"http://127.0.0.1:{place}"
        self.address = urlsplit(self.url).hostname or "", urlsplit(self.url).port or 0
        self._timeout_s = timeout_s

    def send(self, method: str, path: str = "/", body: Any = None, **headers: str) -> Answer:
        """Send a request: bytes as they are, anything else as JSON; ``X_Request_ID=`` is a header."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with contextlib.closing(http.client.HTTPConnection(*self.address, timeout=self._timeout_s)) as connection:
            connection.request(method, path, data, named)
            response = connection.getresponse()
            answered = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, answered, response.read())

    def get(self, path: str = "/", body: Any = None, **headers: str) -> Answer:
        return self.send("GET", path, body, **headers)

    def post(self, path: str = "/", body: Any = None, **headers: str) -> Answer:
        return self.send("POST", path, body, **headers)

    def is_up(self) -> bool:
        """Whether the gateway works, with or without an application to serve."""
        with contextlib.suppress(OSError):
            answer = self.get("/-/healthz")
            return answer.status == 200 or answer.code == "no_application"
        return False

    def is_healthy(self) -> bool:
        with contextlib.suppress(OSError):
            return self.get("/-/healthz").status == 200
        return False
