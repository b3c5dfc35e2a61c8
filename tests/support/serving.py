"""How tests serve an application and call it, whatever it runs on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qserve
from qserve.handle import RayServeSyncHandle

ServeRun = Callable[..., RayServeSyncHandle]
"""Serves a node under ``name="default"``, and answers its handle."""


def ask(call: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a handle, and wait for the result."""
    return qserve.get(call.remote(*args, **kwargs), timeout=60)
