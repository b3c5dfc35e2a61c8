"""What tests of both modes share."""

from __future__ import annotations

from collections.abc import Callable

from qserve.handle import RayServeSyncHandle

ServeRun = Callable[..., RayServeSyncHandle]
"""Serves a node under ``name="default"``, and answers its handle."""
