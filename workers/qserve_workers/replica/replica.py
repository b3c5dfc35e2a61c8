"""One replica: decides which calls begin and when, and puts the parts together that read, run and commit them."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from qserve.base import afterwards, failpoints
from qserve.base.entry import own_context
from qserve.base.log import get_logger, of_request
from qserve.broker import functions
from qserve.broker.connection import Client
from qserve.calls.mailbox import STOPPED
from qserve.engine.invoke import Invoker
from qserve.engine.servable import Servable
from qserve.engine.step import Conclusion, Stepper
from qserve.metrics import recorder
from qserve.wire.outcome import CallField, State
from qserve.wire.replies import shown, states
from qserve.wire.websocket import SERVICE_RESTART, Farewell
from qserve_workers.replica.commit import Committer
from qserve_workers.replica.emitter import stream_backlog
from qserve_workers.replica.metrics import CallMetrics, count_fallbacks
from qserve_workers.replica.plane import LoopPlane
from qserve_workers.replica.reader import Backlog, Delivery, StreamReader, Work
from qserve_workers.replica.spec import Exit, Leaving, ReplicaSpec

log = get_logger(__name__)
SECOND_TRY_S = 0.1
"""How long after the message that a request was cancelled its calls are looked for again."""
_LEAVE_S = 5.0
"""How long before the end of a replica its WebSockets are closed."""
_COMMIT_FOR_S = 2.0
"""How long a replica that ends waits for the broker's replies to its last commits."""


class Replica:
    """Runs the calls of one deployment in this process.

    A ``StreamReader`` reads them, an ``Invoker`` runs them and a ``Committer`` ends them. This class decides which of
    them begin: as many as the deployment allows, but a call whose replica died runs alone.
    """

    def __init__(self, spec: ReplicaSpec, servable: Servable, stepper: Stepper, plane: LoopPlane) -> None:
        self.spec = spec
        self.loop = plane.loop
        self._plane = plane
        self._exit_code: asyncio.Future[int] = plane.loop.create_future()
        self._all_ended: asyncio.Event | None = None  # exists once no more calls are read
        self._ongoing = 0
        self._suspects: deque[Work] = deque()
        self._runs_alone = self._reads_suspects = False
        self.servable = servable
        self._has_coroutines = servable.has_coroutines
        self.backlog = Backlog(spec.keys, spec.stream)
        limit = spec.options.max_requests
        self._left = 0 if limit is None else random.randint(limit, limit + limit // 4)
        here = recorder.here
        if here is not None:
            here.before_each(partial(count_fallbacks, here, plane.store))
        metrics = None if here is None else CallMetrics(here, lambda: self._ongoing, stream_backlog)
        self.committer = Committer(
            spec,
            plane,
            on_end=self._count_end if self._left else self._on_end,
            on_settled=self.backlog.settle,
            metrics=metrics,
        )
        self.invoker = Invoker(
            servable, stepper, self.committer, self.loop, own_context(), "user-code", self.backlog.waiting
        )
        self.reader = StreamReader(
            spec,
            plane,
            self.backlog,
            room=self._room,
            accept=self._accept,
            on_out_of_files=lambda: self.stop(Exit.OUT_OF_FILES),
        )
        self._on_next_call: Callable[[], object] | None = None
        self.pause(spec.is_paused)
        plane.listen(self._end_calls, self.end_unwanted, self._observe, self._hear)

    # -- from the first call to the last -----------------------------------------------------------

    async def run(self, on_ready: Callable[[], object]) -> int:
        """Run calls until ``stop``, then finish those that have begun, and return the process's exit code."""
        opening = self.loop.create_task(self.reader.open())
        await asyncio.wait((opening, self._exit_code), return_when=asyncio.FIRST_COMPLETED)
        if not opening.done():  # the broker is still away
            opening.cancel()
            await self.reader.close()
            return self._exit_code.result()
        opening.result()
        on_ready()
        exit_code = await self._exit_code
        await self.reader.close()
        if failpoints.ARMED:
            failpoints.hit("drain.mid")
        grace_s = self.spec.options.grace_s
        self.loop.call_later(max(grace_s / 2, grace_s - _LEAVE_S), self._end_sessions)
        try:
            await asyncio.wait_for(self._finished(), grace_s)
        except TimeoutError:
            log.warning(
                "shutdown timed out after %g s: %d running calls go to other replicas, %d background tasks are lost",
                grace_s, self._ongoing, afterwards.unfinished(),
            )  # fmt: skip
        await self._plane.settled(_COMMIT_FOR_S)
        self.reader.disconnect()
        return exit_code

    async def _finished(self) -> None:
        if self._ongoing:
            self._all_ended = asyncio.Event()
            await self._all_ended.wait()
        await afterwards.finished()

    def stop(self, exit_code: int = 0) -> None:
        """Take no more calls, and end when those that have begun are finished; on the loop's thread."""
        if not self._exit_code.done():
            self._exit_code.set_result(exit_code)

    def pause(self, is_paused: bool) -> None:
        """Take no new calls, or take them again; on the loop's thread."""
        self.reader.hold(is_paused)

    # -- which calls begin -------------------------------------------------------------------------

    def _room(self) -> int:
        is_busy = self.invoker.is_thread_busy
        # a call that needs the thread as well had better wait where any replica can take it
        if self._suspects or self._runs_alone or (is_busy and not self._has_coroutines):
            return 0
        # a queue that holds one call whose replica died often holds more, and each of them has to run alone
        one_by_one = is_busy or self._reads_suspects
        return min(self.spec.options.max_ongoing - self._ongoing, 1 if one_by_one else self.invoker.batch)

    def _accept(self, delivery: Delivery, is_observed: bool) -> None:
        try:
            work = Work.of(delivery, self._plane.seal)
            if is_observed:
                work.observe()
            self._admit(delivery, work)
        except Exception as error:
            # one bad entry must not take those behind it along
            self.committer.dead_letter_unread(delivery, error)

    def _admit(self, delivery: Delivery, work: Work) -> None:
        """Run a call, or end its request when it cannot or must not run any more."""
        self._reads_suspects = CallField.DEATHS in delivery.fields
        if self._runs_alone or (self._reads_suspects and self._suspects):
            self.committer.give_back(work)
            return
        self._ongoing += 1
        notice, self._on_next_call = self._on_next_call, None
        if notice is not None:
            notice()
        if work.header.expired():
            self.committer.commit(work, Conclusion(State.EXPIRED))
        elif self._reads_suspects:
            # its replica died: it runs alone, so that it cannot take its neighbours with it again
            self._suspects.append(work)
            self._run_suspect()
        else:
            self.invoker.begin(work)

    def _run_suspect(self) -> None:
        if self._suspects and not self._runs_alone and self._ongoing == len(self._suspects):
            self._runs_alone, work = True, self._suspects.popleft()
            if work.ended:
                self.committer.commit(work, Conclusion(work.ended))
            else:
                self.invoker.begin(work)

    def _end_calls(self, request_id: str, state: str, is_last: bool = False) -> None:
        """Notify the calls of a request that it was cancelled or has expired.

        Crash before this: the broker has taken the calls off their queues, so they run nowhere again. Crash after: the
        same. For a message that is lost with its connection see ``end_unwanted``.
        """
        for work in self._suspects:
            if work.header.request_id == request_id:
                work.end(state)
        if not self.invoker.end(request_id, state) and not is_last:
            # the call may have been read over the other connection, and be about to begin
            self.loop.call_later(SECOND_TRY_S, self._end_calls, request_id, state, True)

    def _observe(self, request_id: str) -> None:
        """Have the calls of a request say when they begin and end.

        Crash before this: the calls run elsewhere, where they say it. A message that is lost leaves out these.
        """
        for work in self._suspects:
            if work.header.request_id == request_id:
                work.observe()
        self.invoker.observe(request_id)

    def _hear(self, request_id: str, sealed: bytes) -> None:
        """Pass on what the client of a WebSocket has sent; one that has just ended hears no more."""
        wire = self.committer.sessions.get(request_id)
        if wire is not None:
            wire.take_in(sealed)

    def _end_sessions(self) -> None:
        for wire in [*self.committer.sessions.values()]:
            wire.end(Farewell(SERVICE_RESTART, "this replica ends"))

    def end_unwanted(self) -> None:
        """End the running calls whose results would change nothing: their request has ended, or others run them.

        This takes one round trip. It is done after messages may have been lost, and after this process stood still for
        so long that its calls may have been handed over; on the loop's thread.
        """
        works = [*{*self._suspects, *self.backlog.waiting.copy(), *self.invoker.running()}]
        if works:
            requests = [self._plane.keys.request(work.header.request_id) for work in works]
            places = [f"{work.tag.stream} {shown(work.tag.entry_id)}" for work in works]
            asked = functions.unwanted(requests, [work.step for work in works], places)
            self._plane.post(asked, partial(self._end_some, works))

    def _end_some(self, works: list[Work], reply: Any) -> None:
        for work, state in zip(works, states(reply), strict=False):
            if state:
                of = of_request(work.header.trace_id)
                log.info("%s ends: its request has ended, or another replica runs it", work.name, extra=of)
                work.end(state if state in STOPPED else State.CANCELLED)

    def _on_end(self, work: Work) -> None:
        self._ongoing -= 1
        self._runs_alone = False
        if not self._ongoing and self._all_ended is not None:
            self._all_ended.set()
        self._run_suspect()
        self.reader.ask()

    def _count_end(self, work: Work) -> None:
        self._on_end(work)
        self._left -= 1
        if not self._left:  # it takes calls until a successor does
            self.spec.note.leave(Leaving.REQUESTS)

    def renew_connections(self) -> None:
        """Open all connections again, since the broker is silent; on the loop's thread."""
        self._plane.renew()
        self.reader.renew()

    # -- for other threads -------------------------------------------------------------------------

    def call_at_next_call(self, notice: Callable[[], object] | None) -> None:
        """Call ``notice`` once, on the loop's thread, when the next call comes; None for nothing any more."""
        self._on_next_call = notice

    @property
    def has_calls(self) -> bool:
        """Whether calls run here, or wait to begin."""
        return self._ongoing > 0

    def give_back(self, client: Client) -> int:
        """Put the calls that could not begin in time back on the queue, and return how many they are.

        Raises:
          BrokerError: They stay here.
        """
        count, begun = self.backlog.give_back(client)
        if begun:
            self.loop.call_soon_threadsafe(self._forget, begun)
        return count

    def _forget(self, works: list[Work]) -> None:
        for work in works:
            self.backlog.settle(work.tag)
            self._on_end(work)
