"""Keep the loops of a process alive: an error of one turn is logged, and the next turn comes after a pause."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from qserve.base.once import may_say
from qserve.exceptions import BrokerError, BrokerUnavailable

SAY_AGAIN_S = 5.0
"""After how long a repeated error is logged again; twice as long each time, up to ``SAY_AGAIN_LONGEST_S``."""
SAY_AGAIN_LONGEST_S = 600.0
_ITEMS_KEPT = 10_000
_AWAY = "the broker is away"


@dataclass
class _Known:
    """An error that was logged: when it is logged again, when it came last, and how often since it was logged."""

    say_at: float
    wait_s: float
    came_at: float
    count: int = 0


class Turns:
    """Runs the turns of a loop that must live: no ``Exception`` leaves the ``with`` block of a turn.

        turns = Turns("sending heartbeats", log)
        while True:
            with turns:
                beat()
            time.sleep(max(interval_s, turns.pause_s))

    The first error is logged with its traceback. The same error is then counted, and logged in one line after 5 s,
    10 s, 20 s and so on. The first turn that succeeds logs that the loop works again. Errors of the broker have no
    traceback, because their text says it all. ``SystemExit``, ``KeyboardInterrupt`` and cancellations end the loop as
    usual. Of the processes of a role, one logs what all of them meet, and its end (see ``qserve.base.once``).

    Parameters:
      what: What the loop does, as the subject of a sentence: "reading the queue".
      first_s, longest_s: The pause after the first error, in seconds, and the longest pause: it doubles with each
        further error.
      eager_for_s: How long a broker may be away before that is logged; until then the pause does not grow.
      is_quiet: Whether a broker that is away is only logged at debug level, because another loop of this process
        reports it.
      monotonic: Seconds since any moment; replaced in tests.

    Attributes:
      pause_s: How long to wait before the next turn; 0 after a turn without an error.
      due_at: When that pause is over, by the monotonic clock.
      failures: How many turns in a row have failed.
    """

    def __init__(
        self,
        what: str,
        log: logging.Logger,
        *,
        first_s: float = 0.1,
        longest_s: float = 10.0,
        eager_for_s: float = 0.0,
        is_quiet: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pause_s: float = 0.0
        self.due_at: float = 0.0
        self.failures: int = 0
        self.eager_for_s = eager_for_s
        self._what = what
        self._log = log
        self._first_s, self._longest_s = first_s, longest_s
        self._is_quiet = is_quiet
        self._monotonic = monotonic
        self._failing_since = 0.0
        self._is_reported = False
        self._subject = ""
        self._known: dict[object, _Known] = {}
        self._items: OrderedDict[str, Turns] = OrderedDict()

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None:
            if self.failures:
                self.recover()
            return False
        if not isinstance(error, Exception):
            return False
        self.note(error)
        return True

    def attempt(self, item: str, action: Callable[..., object], *args: Any) -> bool:
        """Do a part of a turn that must not hold up the other parts, and return whether it was done.

        A part that failed is left out until its own pause is over.

        Parameters:
          item: What the part is about, for the log: "queue q1".

        Raises:
          BrokerUnavailable: The broker is away, so the other parts would fail as well.
        """
        part = self._items.get(item)
        if part is not None and self._monotonic() < part.due_at:
            return False
        try:
            action(*args)
        except BrokerUnavailable:
            raise
        except Exception as error:
            if part is None:
                options: dict[str, Any] = {"first_s": self._first_s, "longest_s": self._longest_s}
                part = Turns(f"{self._what} ({item})", self._log, **options, monotonic=self._monotonic)
                self._items[item] = part
                if len(self._items) > _ITEMS_KEPT:
                    self._items.popitem(last=False)
            part.note(error)
            return False
        if part is not None and part.failures:
            part.recover()
        return True

    def note(self, error: Exception) -> None:
        """Count the error of a turn; for code that has no time for a ``with`` block, and catches the error itself."""
        now = self._monotonic()
        if not self.failures:
            self._failing_since = now
        self.failures += 1
        is_away = isinstance(error, BrokerUnavailable)
        is_eager = is_away and now - self._failing_since < self.eager_for_s
        doublings = 0 if is_eager else min(self.failures - 1, 20)
        self.pause_s = min(self._longest_s, self._first_s * 2.0**doublings)
        self.due_at = now + self.pause_s
        if is_eager or (is_away and self._is_quiet):
            self._log.debug("%s failed: %s", self._what, error)
        else:
            self._report(error, is_away, now)

    def _report(self, error: Exception, is_away: bool, now: float) -> None:
        # its text may differ each time
        key = BrokerUnavailable if is_away else (type(error), _last_line(error.__traceback__))
        known = self._known.get(key)
        begins = known is not None and self.failures == 1 and now - known.came_at > SAY_AGAIN_S
        if known is None or (begins and now - known.came_at > known.wait_s):
            self._known[key] = _Known(now + SAY_AGAIN_S, SAY_AGAIN_S, now)
            if not self._may_say(is_away, key, SAY_AGAIN_S):
                return
            level = logging.WARNING if is_away else logging.ERROR
            trace = None if isinstance(error, BrokerError) else error
            self._log.log(level, "%s failed: %s; trying again", self._what, _text(error), exc_info=trace)
        else:
            known.came_at, known.count = now, known.count + 1
            if now < known.say_at and not begins:
                return
            known.wait_s = min(2 * known.wait_s, SAY_AGAIN_LONGEST_S)
            count, known.say_at, known.count = known.count, now + known.wait_s, 0
            if self._may_say(is_away, key, known.wait_s):
                self._log.warning("%s failed again (%d times): %s", self._what, count, _text(error))

    def _may_say(self, is_away: bool, key: object, for_s: float) -> bool:
        """Return whether this is the one that logs an error, and its end."""
        self._subject = _AWAY if is_away else f"{self._what} {key}"
        # somewhat longer, so that the one that has begun goes on
        self._is_reported = may_say(self._subject, 1.5 * for_s, id(self))
        return self._is_reported

    def recover(self) -> None:
        """Say that the turns work again; for code that notes its errors without a ``with`` block."""
        if self._is_reported:
            for_s, count = self._monotonic() - self._failing_since, self.failures
            errors = "1 error" if count == 1 else f"{count} errors"
            if self._subject == _AWAY:
                self._log.warning("the broker answers again after %.1f s, and %s after %s", for_s, self._what, errors)
            else:
                self._log.warning("%s works again after %s in %.1f s", self._what, errors, for_s)
            may_say(self._subject, SAY_AGAIN_S, id(self))  # others may notice a little later
        self.failures, self.pause_s, self.due_at, self._is_reported = 0, 0.0, 0.0, False


def _text(error: Exception) -> str:
    try:
        return str(error) or type(error).__name__
    except Exception:  # the code of a class of user code
        return type(error).__name__


def _last_line(trace: TracebackType | None) -> tuple[str, int] | None:
    if trace is None:
        return None
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_filename, trace.tb_lineno
