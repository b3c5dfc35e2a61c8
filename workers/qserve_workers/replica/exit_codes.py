"""The exit codes by which a replica tells its supervisor why it ended itself."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Why a replica ended itself; 0 and all other codes mean what they mean for any process."""

    UNHEALTHY = 3
    """``check_health`` failed several times in a row."""
    TIME_LIMIT = 4
    """A call ran longer than its deployment's ``max_execution_s`` and could not be stopped."""
    STALLED = 5
    """User code held the loop, or ran on after its caller's deadline."""
    ORPHANED = 6
    """The supervisor is gone."""
    OUT_OF_FILES = 7
    """The process may open no more files, so it cannot connect to the broker again."""
