"""The failures of a deployment's replicas on this host: starts that fail, and replicas that keep dying."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from qserve.wire.status import DIED
from qserve_workers.replica.spec import MEANINGS, Exit

LONGEST_BACKOFF_S = 30.0
OVER_LIMIT = "memory_limit"
"""Begins the cause when a replica has used more than the ``memory`` of its deployment; one is reported."""
CANNOT_START = "cannot_start"
"""Begins the cause when the system has no process, or no memory for one."""
DEATHS, DEATHS_WITHIN_S = 3, 60.0
"""So many deaths of replicas that took calls, within so many seconds, are a crash loop. As many as end one call."""


@dataclass
class Trouble:
    """Counts failures, and says when the next start may be tried: 0.1, 0.2, 0.4 ... 30 s after the last that failed.

    Replicas that are started together, and fail together, make the wait longer once.

    A replica that dies while it takes calls is replaced at once, however often.

    Parameters:
      failures: Starts in a row that failed.
      rounds: How often the next start was put off because of them.
      next_try: When another may be tried, by the monotonic clock.
      failed_at: When the last one failed: a replica that was started before that proves nothing.
      cause: Why the last one failed, or how the last replica died.
      reported: What was reported last; "" for nothing.
    """

    failures: int = 0
    rounds: int = 0
    next_try: float = 0.0
    failed_at: float = 0.0
    cause: str = ""
    reported: str = ""
    _deaths: deque[float] = field(default_factory=lambda: deque(maxlen=100))

    def note_failed_start(self, cause: str, now: float, started_at: float) -> None:
        self.failures += 1
        self.rounds += not self.rounds or started_at > self.failed_at
        self.cause, self.reported, self.failed_at = cause, "", now
        self.next_try = now + min(LONGEST_BACKOFF_S, 0.1 * 2 ** min(self.rounds - 1, 9))

    def note_death(self, cause: str, now: float) -> None:
        self.note_running()
        self.cause = cause
        self._deaths.append(now)

    def note_running(self) -> None:
        """A replica of the deployment takes calls."""
        self.failures, self.rounds, self.next_try = 0, 0, 0.0

    @property
    def is_over(self) -> bool:
        """Whether there is no failure any more, and no report of one."""
        return not (self.failures or self.reported or self._deaths)

    @property
    def counted(self) -> int:
        """How many failures count against a deploy: a host may soon have room for a process, and the broker be back."""
        is_passing = self.cause.startswith(CANNOT_START) or self.cause.endswith(MEANINGS[Exit.NO_BROKER])
        return min(self.failures, 1) if is_passing else self.failures

    def words(self, now: float) -> str:
        """Say what goes wrong; "" when nothing does."""
        while self._deaths and self._deaths[0] < now - DEATHS_WITHIN_S:
            self._deaths.popleft()
        if self.failures:
            return self.cause
        if self._deaths and self.cause.startswith(OVER_LIMIT):
            return self.cause
        if len(self._deaths) >= DEATHS:
            return f"{DIED} {len(self._deaths)} times within {DEATHS_WITHIN_S:.0f} s, the last time: {self.cause}"
        return ""
