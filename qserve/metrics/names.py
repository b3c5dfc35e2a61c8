"""Which metric a name belongs to: no two of a process may write the same lines."""

from __future__ import annotations

from collections.abc import Iterable

from qserve.metrics.table import TABLE
from qserve.wire.totals import Description, Kind

_SUFFIXES = {
    Kind.COUNTER: ("", "_total", "_created"),
    Kind.GAUGE: ("",),
    Kind.HISTOGRAM: ("", "_bucket", "_count", "_sum", "_created"),
}


class Names:
    """The names that are taken, with those of the lines of counters and histograms."""

    def __init__(self, known: Iterable[Description] = TABLE.values()) -> None:
        self._taken: dict[str, Description] = {}
        for about in known:
            self.take(about)

    def take(self, about: Description) -> Description | None:
        """Take the names of a metric, unless it has them already; return the metric that has one of them instead."""
        names = [about.name + suffix for suffix in _SUFFIXES[about.kind]]
        for name in names:
            other = self._taken.get(name)
            if other is not None and other._replace(help="") != about._replace(help=""):
                return other
        self._taken.update(dict.fromkeys(names, about))
        return None
