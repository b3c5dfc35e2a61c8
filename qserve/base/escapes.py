"""Text of others made fit to be shown: what a terminal, an editor or a parser of lines would obey becomes readable."""

from __future__ import annotations

# control characters, and those that turn text round or end a line for some readers
_OBEYED = (
    range(32),
    range(127, 160),
    range(0x61C, 0x61D),
    range(0x200E, 0x2010),
    range(0x2028, 0x202F),
    range(0x2066, 0x206A),
)


def _escapes(kept: str = "") -> dict[int, str]:
    return {code: repr(chr(code))[1:-1] for codes in _OBEYED for code in codes if chr(code) not in kept}


_ALL, _ALL_BUT_LINES = _escapes(), _escapes(kept="\n\t")


def one_line(text: str) -> str:
    """The text on one line."""
    return text.translate(_ALL)


def printable(text: str) -> str:
    """The text with its line breaks and tabs."""
    return text.translate(_ALL_BUT_LINES)
