"""The start and end of an ASGI application, by the lifespan protocol."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import ASGIApp, Message

from qserve.base.log import get_logger
from qserve.exceptions import QserveException

log = get_logger(__name__)


class Lifespan:
    """Runs an application's startup and shutdown, in one task as its context managers need it.

    Parameters:
      app: The application; one that knows no lifespan is served without.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._outbox: asyncio.Queue[Message] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        """Whether the application has started and waits for its end."""
        return self._task is not None

    async def start(self) -> None:
        """Run the application's startup.

        Raises:
          QserveException: The application says that it failed.
          Exception: What its startup raised.
        """
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        task = asyncio.create_task(self._run(scope))
        self._task = task
        answer = await self._ask("lifespan.startup")
        if answer is None:
            self._task = None
            error = task.exception()
            log.debug("the application is served without a lifespan: %r", error)
        elif answer["type"] == "lifespan.startup.failed":
            self._task = None
            await task
            raise QserveException(f"the application's startup failed: {answer.get('message') or 'it gave no reason'}")

    async def stop(self) -> None:
        """Run the application's shutdown; does nothing when it has not started.

        Raises:
          QserveException: The application says that it failed.
          Exception: What its shutdown raised.
        """
        task, self._task = self._task, None
        if task is None:
            return
        answer = await self._ask("lifespan.shutdown")
        await task
        if answer is not None and answer["type"] == "lifespan.shutdown.failed":
            raise QserveException(f"the application's shutdown failed: {answer.get('message') or 'it gave no reason'}")

    async def _ask(self, what: str) -> Message | None:
        self._inbox.put_nowait({"type": what})
        answer = await self._outbox.get()
        return answer if answer["type"].startswith(what) else None

    async def _run(self, scope: Any) -> None:
        try:
            await self._app(scope, self._inbox.get, self._outbox.put)
        finally:
            self._outbox.put_nowait({"type": "lifespan.ended"})
