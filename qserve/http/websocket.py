"""What a web application and a replica say to each other about a WebSocket: ``Conversation`` and its ``Wire``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from starlette.responses import Response

from qserve.wire.websocket import Farewell, Part

NO_WEBSOCKETS = (
    "WebSockets are served by FastAPI and ASGI applications (@serve.ingress) that are the root of their application:"
    " send an HTTP request, and stream the response"
)


class ClientLeft(OSError):
    """Raised when something is sent in a session that has ended; ASGI asks for an OSError."""


class Wire(Protocol):
    """Carries one session between an application and its client.

    Attributes:
      left: How it has ended; None as long as it goes on.
      when_left: Is called when it ends.
    """

    left: Farewell | None
    when_left: Callable[[], object]

    async def hear(self) -> Part | Farewell:
        """Wait for the next whole message, or the end."""

    async def say(self, part: Part) -> None:
        """Send a message, and wait while the client is too far behind.

        Raises:
          ClientLeft: The session has ended.
        """

    def leave(self, how: Farewell) -> None:
        """Tell the application that the session has ended."""


class Conversation(ABC):
    """A WebSocket that a web application may accept; what runs a call returns it, and the replica runs it."""

    @abstractmethod
    async def run(self, wire: Wire) -> Response | None:
        """Run the application to its end.

        Returns:
          The response to a client that was not accepted.

        Raises:
          BaseException: Any error of the application.
        """
