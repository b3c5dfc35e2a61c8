"""Addresses to listen on: resolved, and refused with what to write instead."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Any, TypeVar

from qserve.exceptions import DeployError

T = TypeVar("T")
_BELOW = 1024


def listen(host: str, port: int, bind: Callable[[socket.AddressFamily, Any], T]) -> T:
    """Return what ``bind`` returns for the family and the address that a host and a port stand for.

    Raises:
      DeployError: The host is not known, or ``bind`` has raised an OSError; the message names the option to change.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return bind(family, address)
    except socket.gaierror as error:
        why, remedy = error.strerror, "name an address of this machine with --host"
    except OSError as error:
        # by its number only, because Python adds the address to its text
        why, remedy = os.strerror(error.errno or 0), "choose another port with --port (port=... in Python)"
        if isinstance(error, PermissionError) and port < _BELOW:
            why += f", because ports below {_BELOW} are for root"
        elif not isinstance(error, PermissionError) and error.errno != errno.EADDRINUSE:
            remedy = "name an address of this machine with --host"
    raise DeployError(f"cannot listen on {at(host, port)}: {why}; {remedy}")


def at(host: str, port: int) -> str:
    """Return host and port as they are written in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
