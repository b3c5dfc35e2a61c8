"""What the steps of all contenders do: write to the ledger that they have started, wait, and compute.

The line is written before the wait, so a step that is killed in the middle and run again has two lines.
"""

from __future__ import annotations

import os
import time
from typing import Any

from version import VERSION  # type: ignore[import-not-found]  # written by the program, again for each update

STEP_S = 0.02
AMOUNTS = {"first": 2, "middle": -1, "last": 3}

_LEDGER = os.open(os.environ["KILLS_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def begin(step: str, item: dict[str, Any]) -> None:
    """Write the line, in one write so that lines of several processes do not mix. A spinning item never returns."""
    line = f"{item['id']} {step} {os.getpid()} {VERSION} {time.monotonic():.6f}\n"
    os.write(_LEDGER, line.encode())
    while step == "middle" and item.get("spin"):
        pass


def finish(step: str, item: dict[str, Any]) -> dict[str, Any]:
    """Return the result of a step, which is the input of the next."""
    return {**item, "number": item["number"] + AMOUNTS[step]}
