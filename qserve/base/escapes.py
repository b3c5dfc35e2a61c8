"""Escape control characters in untrusted text, so that a terminal, an editor or a line parser does not obey them."""

from __future__ import annotations

# control characters, and those that reverse the direction of text or that some readers take for the end of a line
_CONTROLS = (
    range(32),
    range(127, 160),
    range(0x61C, 0x61D),
    range(0x200E, 0x2010),
    range(0x2028, 0x202F),
    range(0x2066, 0x206A),
)


def _escapes(kept: str = "") -> dict[int, str]:
    return {code: repr(chr(code))[1:-1] for codes in _CONTROLS for code in codes if chr(code) not in kept}


_ALL, _ALL_BUT_LINES = _escapes(), _escapes(kept="\n\t")


def one_line(text: str) -> str:
    """Return the text on one line, with every control character escaped."""
    return text.translate(_ALL)


def printable(text: str) -> str:
    """Return the text with its line breaks and tabs, and every other control character escaped."""
    return text.translate(_ALL_BUT_LINES)
