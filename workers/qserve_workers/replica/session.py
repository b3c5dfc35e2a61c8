"""The replica's end of a WebSocket: parts come by the mailbox, and leave as the items of a streamed result."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, MutableMapping
from typing import Any

from qserve.broker import functions
from qserve.calls.items import WINDOW
from qserve.calls.mailbox import ignore
from qserve.engine.streaming import ReaderGone
from qserve.exceptions import BrokerError, PayloadError
from qserve.http.websocket import ClientLeft
from qserve.wire.envelope import Header
from qserve.wire.replies import warn_once
from qserve.wire.sealing import told_context
from qserve.wire.websocket import (
    ABNORMAL,
    PULSE_S,
    SERVICE_RESTART,
    SILENCE_S,
    Farewell,
    Kind,
    Part,
    farewell,
    part_in,
    parts_of,
)
from qserve_workers.replica.emitter import Emitter
from qserve_workers.replica.plane import LoopPlane


class SessionWire(Emitter):
    """Carries one session; see ``qserve.http.websocket.Wire``.

    Its gateway stops reading from the client while ``WINDOW`` parts wait here, so that it holds no more than these and
    the message that they belong to.

    Parameters:
      sessions: Where it is found by its request as long as it is open.
      accept_s: How long the application may take to accept.
    """

    most_ahead = WINDOW

    def __init__(
        self, plane: LoopPlane, header: Header, sessions: MutableMapping[str, SessionWire], accept_s: float
    ) -> None:
        super().__init__(plane, header)
        self.left: Farewell | None = None
        self.when_left: Callable[[], object] = bool
        self._sessions = sessions
        self._parts: deque[Part] = deque()
        self._message: list[bytes] = []
        self._arrived = asyncio.Event()
        self._saying = asyncio.Lock()
        self._told = self._heard = 0
        self._is_lost_at = plane.loop.time() + accept_s
        self._timer = plane.loop.call_later(PULSE_S, self._check_gateway)
        sessions[header.request_id] = self

    # -- what the client sends ---------------------------------------------------------------------

    def take_in(self, sealed: bytes) -> None:
        """Take a part that the gateway has told.

        One that does not open was told behind another that is lost, with the connection that had brought it.
        """
        try:
            part = part_in(self._plane.seal.open(told_context(self._request_id, self._told), sealed), self._told)
            how = farewell(part.data) if part.kind is Kind.CLOSE else None
        except PayloadError as error:
            warn_once(f"a WebSocket is closed, because a part of what its client has sent is lost: {error}")
            self.end(Farewell(SERVICE_RESTART, "a message was lost"))
            return
        self._told += 1
        self._is_lost_at = self._plane.loop.time() + SILENCE_S
        if how is not None:
            self.leave(how)
        elif part.kind is Kind.PULSE:
            self._note_heard()
        else:
            self._parts.append(part)
            self._arrived.set()

    async def hear(self) -> Part | Farewell:
        """See ``Wire``; what has come before the end is heard before it."""
        while True:
            while self._parts:
                part = self._parts.popleft()
                self._note_heard()
                self._message.append(part.data)
                if part.is_last:
                    whole, self._message = b"".join(self._message), []
                    return Part(part.kind, whole)
            if self.left is not None:
                return self.left
            self._arrived.clear()
            await self._arrived.wait()

    def _note_heard(self) -> None:
        """Crash before this is sent: the session ends with this replica. Crash after: the same."""
        self._heard += 1
        if self._heard % (WINDOW // 2) == 0:
            self._plane.post(functions.heard(self._request, self._heard), ignore)

    # -- what the application sends ----------------------------------------------------------------

    async def say(self, part: Part) -> None:
        """See ``Wire``; messages of several tasks leave one after another.

        Crash before a part is sent: the gateway closes the session. Crash after: the client has a part of the message,
        which is not whole, and the gateway closes the session.
        """
        async with self._saying:
            try:
                for piece in parts_of(part.kind, part.data):
                    await self.send(piece.encode(self._sent))
                    self.flush()
                    if part.kind is Kind.ACCEPT:
                        self._is_lost_at = self._plane.loop.time() + SILENCE_S
            except ReaderGone as error:
                self.leave(Farewell(ABNORMAL))
                raise ClientLeft("the client has left") from error
            except BrokerError as error:
                self.end(Farewell(SERVICE_RESTART, "a message was lost"))
                raise ClientLeft("the broker refuses a message") from error

    async def _settle(self, sent: asyncio.Future[Any] | None) -> None:
        if self.left is not None:
            raise ReaderGone("the client has left")
        await super()._settle(sent)

    # -- the end -----------------------------------------------------------------------------------

    def end(self, how: Farewell) -> None:
        """Close the session from here, and tell the application."""
        if self.left is None:
            self._gather(how.part().encode(self._sent))
            self.flush()
            self.leave(how)

    def leave(self, how: Farewell) -> None:
        """See ``Wire``."""
        if self.left is None:
            self.left = how
            self._arrived.set()
            self.when_left()

    def close(self) -> None:
        """See ``SessionSink``."""
        self._timer.cancel()
        self._sessions.pop(self._request_id, None)

    def _check_gateway(self) -> None:
        self._timer = self._plane.loop.call_later(PULSE_S, self._check_gateway)
        if self._plane.loop.time() > self._is_lost_at:
            self.leave(Farewell(ABNORMAL, "the gateway is gone"))
