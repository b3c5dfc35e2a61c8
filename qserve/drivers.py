"""The public door to the DAGDriver, which is defined in ``qserve.define.drivers``."""

from __future__ import annotations

from qserve.define.drivers import DAGDriver

__all__ = ["DAGDriver"]
