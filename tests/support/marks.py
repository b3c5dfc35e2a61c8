"""A context variable that user code sets wherever it is entered; a module of its own, since those cannot be pickled."""

from __future__ import annotations

from contextvars import ContextVar

mark = ContextVar("mark", default="")
imported = ContextVar("imported", default="nothing")
imported.set("at import")
seen: list[tuple[str, str]] = []
"""Where user code was entered, and the mark that it found."""


def note(entry: str) -> None:
    seen.append((entry, mark.get()))
    mark.set(entry)
