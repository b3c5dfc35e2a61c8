"""Numbers in texts from outside: headers, environment variables, options and URLs.

``int`` and ``float`` take what only Python writes, such as ``1_0``, `` 5 ``, ``+5`` and digits of other alphabets. A
proxy in front, or a colleague, reads these in another way or not at all, so they are refused.
"""

from __future__ import annotations

import math
import re

_WHOLE = re.compile(r"[0-9]{1,18}")
_SIZE = re.compile(r"([0-9]{1,15})(b|ki?b|k|mi?b|m|gi?b|g|)", re.IGNORECASE)
_BYTES = {"": 1, "b": 1, "k": 1000, "kb": 1 << 10, "m": 10**6, "mb": 1 << 20, "g": 10**9, "gb": 1 << 30}
"""The units of sizes in the configuration of Redis and Valkey."""
_NUMBER = re.compile(r"[0-9]{1,18}(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?")


def whole_number(text: str) -> int:
    """Return the number in a text of decimal digits; ValueError for any other text."""
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def number(text: str) -> float:
    """Return the number in a text: not negative, written as in JSON; ValueError for any other text."""
    value = float(text) if _NUMBER.fullmatch(text) else math.inf
    if value == math.inf:
        raise ValueError(f"{text!r} is not a number")
    return value


def size(text: str) -> int:
    """Return the bytes of a size as brokers write them, such as ``512mb``; ValueError for any other text."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a size")
    return int(found[1]) * _BYTES[found[2].lower().replace("ib", "b")]
