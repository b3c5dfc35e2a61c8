"""Read what the steps of a contender have written to their ledger."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

STEPS = ("first", "middle", "last")


@dataclass(frozen=True)
class Line:
    """The start of a step.

    Parameters:
      at: Its time, on the clock that all processes of this machine share (``time.monotonic``).
    """

    id: str
    step: str
    pid: int
    version: str
    at: float


class Ledger:
    """A ledger that is still being written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open()
        self._lines: list[Line] = []
        self._rest = ""

    def lines(self) -> list[Line]:
        """Return all lines so far."""
        *whole, self._rest = (self._rest + self._file.read()).split("\n")
        for text in whole:
            id, step, pid, version, at = text.split()
            self._lines.append(Line(id, step, int(pid), version, float(at)))
        return self._lines

    def middle(self) -> list[Line]:
        """Return the lines of the middle step."""
        return [line for line in self.lines() if line.step == "middle"]

    def ran_twice(self, ids: set[str]) -> int:
        """Return how many steps of these requests were started more than once."""
        begun = Counter((line.id, line.step) for line in self.lines() if line.id in ids)
        return sum(1 for count in begun.values() if count > 1)

    def finished(self) -> set[str]:
        """Return the requests of which every step was started."""
        begun: dict[str, set[str]] = {}
        for line in self.lines():
            begun.setdefault(line.id, set()).add(line.step)
        return {id for id, steps in begun.items() if steps == set(STEPS)}
