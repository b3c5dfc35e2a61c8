"""Metrics: what processes count, how it is added up and written for Prometheus, and the counters of user code.

It may import qserve.exceptions, qserve.base and qserve.wire.
Open first: user.py for user code, then table.py, which lists the metrics that qserve has itself.
"""

from __future__ import annotations

from qserve.metrics.user import Counter, Gauge, Histogram

__all__ = ["Counter", "Gauge", "Histogram"]
