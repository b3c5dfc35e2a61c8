"""A connection that is opened again when it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from qserve.base.turns import Turns
from qserve.broker.connection import READ_TIMEOUT_S
from qserve.broker.link import Link, OnReply, ReplyError
from qserve.calls.mailbox import ignore
from qserve.exceptions import BrokerUnavailable

SHORTEST_PAUSE_S = 0.05


class LastingLink:
    """A connection that is opened again when it is lost, or has been silent for too long.

    Parameters:
      turns: Logs the tries to open it again that fail.
      silent_for_s: How long the broker may take for a reply.
      prepare: Called with a new connection before it is used.
      on_open: Called when it can be used.
      on_lost: Called when it is lost.
      on_failure: Called with the error of each try that failed to open it again.

    Attributes:
      current: The connection; None while there is none.
    """

    def __init__(
        self,
        url: str,
        turns: Turns,
        silent_for_s: float,
        *,
        prepare: Callable[[Link], Awaitable[None]],
        on_open: Callable[[], None],
        on_lost: Callable[[], None],
        on_failure: Callable[[Exception], None] = ignore,
    ) -> None:
        self.current: Link | None = None
        self._is_needed = True
        self._url = url
        self._turns = turns
        self._silent_for_s = silent_for_s
        self._prepare = prepare
        self._on_open = on_open
        self._when_lost = on_lost
        self._on_failure = on_failure

    async def open(self) -> None:
        """Connect to the broker; raise BrokerUnavailable if that fails."""
        link = await Link.open(self._url)
        try:
            await asyncio.wait_for(self._prepare(link), READ_TIMEOUT_S)
            link.when_lost(self._on_lost)
        except (BrokerUnavailable, ReplyError, OSError) as error:
            link.close()
            raise BrokerUnavailable(f"the broker cannot be used: {str(error) or type(error).__name__}") from error
        except BaseException:
            link.close()
            raise
        self.current = link
        self._check_silence(link)
        self._on_open()

    async def keep_trying(self) -> None:
        while self.current is None and self._is_needed:
            with self._turns:
                try:
                    await self.open()
                except Exception as error:
                    self._on_failure(error)
                    raise
            await asyncio.sleep(self._turns.pause_s)

    def renew(self) -> None:
        """Give up the connection, and open another."""
        if self.current is not None:
            self.current.abort()

    def let_end(self) -> None:
        """Do not open it again once it is lost."""
        self._is_needed = False

    def close(self) -> None:
        self.let_end()
        if self.current is not None:
            self.current.close()

    def _check_silence(self, link: Link) -> None:
        if link is self.current:
            link.abandon_if_silent(self._silent_for_s)
            if link.is_waiting:  # not before it can be silent for so long: an idle replica would wake up for nothing
                due_s = max(SHORTEST_PAUSE_S, self._silent_for_s - link.silent_s())
                asyncio.get_running_loop().call_later(due_s, self._check_silence, link)
            else:
                link.call_at_next_wait(partial(self._check_silence, link))

    def _on_lost(self, waiting: list[OnReply]) -> None:
        self.current = None
        # not at once: a connection that is lost as soon as it is made would be made again and again
        asyncio.get_running_loop().call_later(SHORTEST_PAUSE_S, self._open_again)
        self._when_lost()

    def _open_again(self) -> None:
        self._opening = asyncio.get_running_loop().create_task(self.keep_trying())
