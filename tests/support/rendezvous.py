"""Meeting places for code that runs anywhere: files in a folder that all sides can see."""

from __future__ import annotations

from pathlib import Path

from processes import wait_until


def arrive(folder: str, name: str) -> None:
    """Let others know that ``name`` has come so far."""
    (Path(folder) / name).touch()


def await_arrival(folder: str, name: str) -> None:
    """Wait until ``name`` has come so far."""
    wait_until((Path(folder) / name).exists, description=f"{name} arrives")


def has_arrived(folder: str, name: str) -> bool:
    """Whether ``name`` has come so far."""
    return (Path(folder) / name).exists()


def meet(folder: str, me: str, other: str) -> str:
    """Go on only when both are here at the same time."""
    arrive(folder, me)
    await_arrival(folder, other)
    return me
