"""Connections: which of them a replica has, and whose the broker has lost.

The kernel of a host closes the connections of a process that is killed, so the broker knows at once what a lease shows
after many seconds. A broker gives the ids of connections in order and never twice, until it is started again; then, and
after a failover, its run has another id, and nothing that was said before proves anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass

from qserve.exceptions import PayloadError
from qserve.wire import replies
from qserve.wire.replies import warn_once
from qserve.wire.sealing import Seal

LOOK_S = 0.75
"""The seconds from one look at the broker's connections to the next."""
ABSENT_S = 1.5
"""How long a replica may take to connect again and to say so: it tries at once, and then once a second at least."""
_LATE_S = 1.0
"""A look that comes so much too late proves nothing: this process, or the broker, has stood still."""


@dataclass(frozen=True)
class Connections:
    """What a replica says of its connections with each heartbeat.

    Parameters:
      count: The number of the heartbeat.
      run: The id of the broker's run.
      ids: The broker's ids of the connections; none when the broker does not tell them.
    """

    count: int
    run: str = "-"
    ids: frozenset[int] = frozenset()

    def sealed(self, seal: Seal, replica: str) -> bytes:
        """Return it as it is stored."""
        return seal.seal(
            _place(replica), b" ".join([b"%d" % self.count, self.run.encode(), *(b"%d" % one for one in self.ids)])
        )

    @classmethod
    def read(cls, seal: Seal, replica: str, data: bytes | None) -> Connections | None:
        """Read what a replica has stored; return None for nothing, or what is not ours, which is named once."""
        try:
            return None if data is None else cls(*replies.connections(seal.open(_place(replica), data)))
        except PayloadError as error:
            warn_once(f"what replica {replica} says of its connections is ignored: {error}")
            return None


def _place(replica: str) -> bytes:
    return b"connections|" + replica.encode()


class Absences:
    """Decides whose connections the broker has lost for good.

    A replica that has lost all of them connects again and says so, and then its words are others. One that is frozen,
    or whose network is cut, keeps them.

    Parameters:
      clock: Seconds, monotonic; replaced in tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._run = ""
        self._looked_at = 0.0
        self._counts: dict[str, int] = {}
        self._absent: dict[str, tuple[Connections, float]] = {}

    @property
    def suspects(self) -> Set[str]:
        """Those who had no connection in the last look."""
        return self._absent.keys()

    def keep(self, names: Set[str]) -> None:
        """Forget all others."""
        self._counts = {name: count for name, count in self._counts.items() if name in names}

    def update(self, said: Mapping[str, Connections | None], run: str, is_open: Set[int]) -> dict[str, Connections]:
        """Take a look, and return who is gone, with their last words.

        Parameters:
          said: What the replicas say.
          run: The broker's run, read together with the connections that are open.
        """
        now = self._clock()
        if run != self._run or now - self._looked_at > LOOK_S + _LATE_S:
            self._absent.clear()
        self._run, self._looked_at, before, self._absent = run, now, self._absent, {}
        for name, words in said.items():
            if words is None or words.count < self._counts.get(name, 0):  # old words, which somebody has put back
                continue
            self._counts[name] = words.count
            if words.ids and words.run == run and not words.ids & is_open:
                first, since = before.get(name, (words, now))
                self._absent[name] = (words, since if first == words else now)
        return {name: words for name, (words, since) in self._absent.items() if now - since >= ABSENT_S}
