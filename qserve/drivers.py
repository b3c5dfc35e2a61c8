"""Public import path of the DAGDriver."""

from __future__ import annotations

from qserve.define.drivers import DAGDriver

__all__ = ["DAGDriver"]
