"""How far a request is, as its code reports it."""

from __future__ import annotations

from typing import NamedTuple

MESSAGE_LIMIT = 500


class Progress(NamedTuple):
    """How far a request is.

    Parameters:
      fraction: The part that is done, from 0 to 1; None if its code does not say.
      message: What is being done, for people.

    Example:
      found = handle.remote("Dora").progress()  # a Progress, or None
      print(found.fraction if found is not None else "nothing was reported")  # nothing was reported
    """

    fraction: float | None
    message: str = ""
