"""Which plane this process uses: a replica's loop, a local run, or a client of the configured broker."""

from __future__ import annotations

from collections.abc import Callable

from qserve.base.context import replica_here
from qserve.calls.plane import Plane
from qserve.exceptions import BrokerUnavailable

_plane: Plane | None = None
_in_replica = False
_connect: Callable[[], Plane] | None = None


def install(plane: Plane | None, replica: bool = False) -> None:
    """Make ``plane`` the one that this process's handles and refs use."""
    global _plane, _in_replica
    _plane, _in_replica = plane, replica


def in_replica() -> bool:
    """Whether the running code belongs to a replica, where nothing may block the loop."""
    return _in_replica or replica_here.get() is not None


def connect_with(connect: Callable[[], Plane]) -> None:
    """Name how a plane is made when a handle is used before anything installed one."""
    global _connect
    _connect = connect


def plane() -> Plane:
    """The plane of this process.

    Raises:
      BrokerUnavailable: Nothing was started here and no broker is named in the environment.
    """
    if _plane is None:
        if _connect is None:
            raise BrokerUnavailable("call qserve.run(...) first, or set QSERVE_BROKER_URL to the broker's address")
        install(_connect())
        assert _plane is not None
    return _plane


def installed() -> Plane | None:
    """The plane of this process when there is one."""
    return _plane
