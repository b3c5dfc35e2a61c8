"""One replica: decides which calls begin and when, and puts the parts together that read, run and commit them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from qserve.base import failpoints
from qserve.base.keys import Keys
from qserve.base.log import get_logger
from qserve.broker.connection import Client
from qserve.broker.library import Command
from qserve.engine.invoke import Invoker, Servable
from qserve.engine.step import Conclusion, Stepper
from qserve.wire.outcome import CallField, State
from qserve_workers.replica.commit import Committer
from qserve_workers.replica.models import ModelAdvertiser
from qserve_workers.replica.plane import LoopPlane
from qserve_workers.replica.reader import Backlog, StreamReader
from qserve_workers.replica.spec import Exit, ReplicaSpec
from qserve_workers.replica.work import Delivery, Work

log = get_logger(__name__)
_COMMIT_FOR_S = 2.0
"""How long a replica that ends waits for the broker's replies to its last commits."""


class Replica:
    """Runs the calls of one deployment in this process.

    A ``StreamReader`` reads them, an ``Invoker`` runs them and a ``Committer`` ends them. This class decides which of
    them begin: as many as the deployment allows, but a call whose replica died runs alone.

    Parameters:
      spec: Which replica it is.
      servable: The user's object.
    """

    def __init__(self, spec: ReplicaSpec, servable: Servable, stepper: Stepper, plane: LoopPlane, keys: Keys) -> None:
        name, options, stream = spec.name, spec.options, spec.record.stream(keys, spec.deployment)
        self.name = name
        self.deployment = spec.deployment
        self.max_ongoing = options.max_ongoing
        self.loop = plane.loop
        self._plane = plane
        self._grace_s = options.grace_s
        self._exit_code = 0
        self._stopping, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._ongoing = 0
        self._suspects: deque[Work] = deque()
        self._runs_alone = self._reads_suspects = False
        self._backlog = Backlog(keys, stream)
        self._committer = Committer(
            name, options, stream, plane, keys, on_end=self._on_end, on_settled=self._backlog.settle
        )
        self._invoker: Invoker[Work] = Invoker(
            servable, stepper, self._committer, self.loop, "user-code", self._backlog.waiting
        )
        self._reader = StreamReader(
            name,
            stream,
            spec.settings.named_broker,
            plane,
            self._backlog,
            room=self._room,
            accept=self._accept,
            refuse=self._committer.dead_letter_unread,
            on_refused=self._on_refused,
            on_out_of_files=self._on_out_of_files,
        )
        self._advertiser = ModelAdvertiser(name, stream, keys, plane, self._reader.read_also)

    # -- from the first call to the last -----------------------------------------------------------

    async def run(self, on_ready: Callable[[], object]) -> int:
        """Run calls until ``stop``, then finish those that have begun.

        Parameters:
          on_ready: Called once calls are taken.

        Returns:
          The process's exit code.
        """
        await self._reader.open()
        on_ready()
        await self._stopping.wait()
        self._advertiser.stop()
        await self._reader.close()
        if failpoints.ARMED:
            failpoints.hit("drain.mid")
        try:
            await asyncio.wait_for(self._idle.wait(), self._grace_s)
        except TimeoutError:
            log.warning("%d calls still run after %.1f s; they are handed over", self._ongoing, self._grace_s)
        await self._plane.settled(_COMMIT_FOR_S)
        self._reader.disconnect()
        return self._exit_code

    def stop(self, exit_code: int = 0) -> None:
        """Take no more calls, and end when those that have begun are finished; on the loop's thread."""
        self._exit_code = self._exit_code or exit_code
        self._stopping.set()

    def _on_out_of_files(self) -> None:
        self.stop(Exit.OUT_OF_FILES)

    def _on_refused(self) -> None:
        self._advertiser.renew()

    # -- which calls begin -------------------------------------------------------------------------

    def _room(self) -> int:
        """How many calls may be read now."""
        if self._suspects or self._runs_alone or self._invoker.is_thread_busy:
            return 0
        # a queue that holds one call whose replica died often holds more, and each of them has to run alone
        return min(self.max_ongoing - self._ongoing, 1 if self._reads_suspects else self._invoker.batch)

    def _accept(self, delivery: Delivery) -> None:
        """Run a delivery, or end its request when it cannot or must not run any more."""
        try:
            work = Work.of(delivery, self._plane.seal)
        except Exception as error:
            self._committer.dead_letter_unread(delivery, error)
            return
        self._reads_suspects = CallField.DEATHS in delivery.fields
        if self._runs_alone or (self._reads_suspects and self._suspects):
            self._committer.give_back(delivery)
            return
        self._ongoing += 1
        self._idle.clear()
        if work.header.expired():
            self._committer.commit(work, Conclusion(State.EXPIRED))
        elif self._reads_suspects:
            # its replica died: it runs alone, so that it cannot take its neighbours with it again
            self._suspects.append(work)
            self._run_suspect()
        else:
            self._invoker.begin(work)

    def _run_suspect(self) -> None:
        if self._suspects and not self._runs_alone and self._ongoing == len(self._suspects):
            self._runs_alone = True
            self._invoker.begin(self._suspects.popleft())

    def _on_end(self, work: Work) -> None:
        self._ongoing -= 1
        self._runs_alone = False
        if not self._ongoing:
            self._idle.set()
        self._run_suspect()
        self._reader.ask()

    # -- for other threads -------------------------------------------------------------------------

    def running(self) -> list[Work]:
        """Return the calls that have begun and not ended."""
        return self._invoker.running()

    def streams(self) -> list[str]:
        """Return the streams that this replica reads."""
        return list(self._reader.streams)

    def commit_command(self, work: Work, conclusion: Conclusion) -> Command:
        """Return what commits a call, for a thread that has a connection of its own."""
        return self._committer.commit_command(work, conclusion)

    def give_back(self, client: Client) -> int:
        """Put the calls that could not begin in time back on the queue, and return how many they are.

        Raises:
          BrokerError: They stay here.
        """
        count, begun = self._backlog.give_back(client)
        if begun:
            self.loop.call_soon_threadsafe(self._forget, begun)
        return count

    def _forget(self, works: list[Work]) -> None:
        for work in works:
            self._backlog.settle(work.delivery.tag)
            self._on_end(work)
