"""Metrics as Prometheus reads them: its text format, or OpenMetrics with exemplars."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client import exposition
from prometheus_client.core import CounterMetricFamily, Exemplar, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.utils import floatToGoString

from qserve.metrics.names import Names
from qserve.metrics.table import TABLE
from qserve.wire.totals import Description, Distribution, Family, Kind, Labels, Snapshot

_FAMILIES: Mapping[Kind, Any] = {
    Kind.COUNTER: CounterMetricFamily,
    Kind.GAUGE: GaugeMetricFamily,
    Kind.HISTOGRAM: HistogramMetricFamily,
}
_PLAIN = "text/plain; version=0.0.4; charset=utf-8"
Part = tuple[Snapshot, Mapping[str, str]]
"""Metrics, and labels that all of them get."""


def render(parts: Sequence[Part], prefix: str, accept: str = "") -> tuple[bytes, str]:
    """Return metrics as the body of a response, and its content type.

    Parameters:
      accept: The header of the request: OpenMetrics for those that ask for it.
    """
    form = openmetrics if "application/openmetrics-text" in accept else exposition
    content_type: str = openmetrics.CONTENT_TYPE_LATEST if form is openmetrics else _PLAIN
    return form.generate_latest(_Collected(parts, prefix)), content_type


class _Collected:
    """What prometheus_client takes for a registry."""

    def __init__(self, parts: Sequence[Part], prefix: str) -> None:
        self._parts = parts
        self._prefix = prefix

    def collect(self) -> Iterator[Any]:
        names, found = Names(), dict[str, tuple[Description, list[tuple[Family, Mapping[str, str]]]]]()
        for snapshot, labels in self._parts:
            for name, family in derived(snapshot).items():
                if family.values and names.take(family.about) is None:
                    found.setdefault(name, (family.about, []))[1].append((family, labels))
        for name, (about, families) in sorted(found.items()):
            extra = dict.fromkeys(label for _, labels in families for label in labels)
            text = TABLE[name].help if name in TABLE else about.help
            added = [
                f"qserve_{label}" if label in about.labels else label for label in extra
            ]  # a user may have the tag
            new = _FAMILIES[about.kind](self._prefix + name, text or name, labels=[*about.labels, *added])
            for family, labels in families:
                more = tuple(labels.get(label, "") for label in extra)
                for values, value in family.values.items():
                    _add(new, about, (*values, *more), value)
            yield new


def _add(family: Any, about: Description, labels: Labels, value: float | Distribution) -> None:
    if isinstance(value, Distribution):
        bounds = [*map(floatToGoString, about.bounds), "+Inf"]
        exemplars = {
            index: Exemplar(names, one.value, one.at)
            for index, one in value.exemplars.items()
            if (names := _names_of(one.request_id, one.trace_id))
        }
        buckets = [
            [bound, count, exemplars.get(index)]
            for index, (bound, count) in enumerate(zip(bounds, accumulate(value.counts), strict=True))
        ]
        family.add_metric(labels, buckets, value.sum)
    else:
        family.add_metric(labels, value)


_ID, _TRACE_ID = re.compile(r"[A-Za-z0-9_.:-]{1,100}"), re.compile(r"[0-9a-f]{32}")
"""The IDs that are shown."""
_LONGEST_NAMES = 128
"""How many characters OpenMetrics allows for the names and values of an exemplar together."""


def _names_of(request_id: str, trace_id: str) -> dict[str, str]:
    """Return the labels of an exemplar: both IDs, or the trace's alone if they are too long together."""
    names = {"request_id": request_id} if _ID.fullmatch(request_id) else {}
    if _TRACE_ID.fullmatch(trace_id):
        names["trace_id"] = trace_id
        if len("".join([*names, *names.values()])) > _LONGEST_NAMES:
            del names["request_id"]
    return names


def derived(snapshot: Snapshot) -> Snapshot:
    """Return a snapshot with the metrics that follow from others, and so are not counted."""
    found = dict(snapshot)
    latency = snapshot.get("serve_http_request_latency_ms")
    if latency is not None:
        counts: dict[Labels, float | Distribution] = {}
        errors: dict[Labels, float | Distribution] = {}
        for labels, one in latency.values.items():
            if isinstance(one, Distribution):
                counts[labels] = sum(one.counts)
                if labels[-1].isdigit() and labels[-1] >= "400":
                    errors[labels] = counts[labels]
        for name, values in (("serve_num_http_requests", counts), ("serve_num_http_error_requests", errors)):
            found[name] = Family(TABLE[name], values)
    depth = snapshot.get("queue_depth")
    if depth is not None:
        found["serve_deployment_queued_queries"] = Family(TABLE["serve_deployment_queued_queries"], depth.values)
    ends = snapshot.get("requests_final")
    if ends is not None:
        late: dict[Labels, float | Distribution] = {
            (app,): count for (app, state), count in ends.values.items() if state == EXPIRED
        }
        found["deadline_exceeded"] = Family(TABLE["deadline_exceeded"], late)
    return found


EXPIRED = "expired"


def quantile(distribution: Distribution, bounds: Sequence[float], share: float) -> float | None:
    """Return the value below which ``share`` of the observations are, as Prometheus estimates it; None without any."""
    total = sum(distribution.counts)
    rank, below = share * total, 0
    for index, count in enumerate(distribution.counts):
        if count and below + count >= rank:
            if index == len(bounds):
                return bounds[-1]
            low = bounds[index - 1] if index else 0.0
            return low + (bounds[index] - low) * (rank - below) / count
        below += count
    return None
