"""Numbers in texts from outside: headers, environment variables, options and URLs.

``int`` and ``float`` take what only Python writes, such as ``1_0``, `` 5 ``, ``+5`` and digits of other alphabets. A
proxy in front, or a colleague, reads these in another way or not at all, so they are refused.
"""

from __future__ import annotations

import math
import re

_WHOLE = re.compile(r"[0-9]{1,18}")
_NUMBER = re.compile(r"[0-9]{1,18}(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?")


def whole_number(text: str) -> int:
    """Return the number that a text of decimal digits stands for; ValueError for any other text."""
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def number(text: str) -> float:
    """Return the number that a text stands for: not negative, written as in JSON; ValueError for any other text."""
    value = float(text) if _NUMBER.fullmatch(text) else math.inf
    if value == math.inf:
        raise ValueError(f"{text!r} is not a number")
    return value
