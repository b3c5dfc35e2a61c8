"""What processes have counted, as values and as bytes: a replica tells its supervisor, and that tells the gateways."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import msgpack

from qserve.exceptions import PayloadError
from qserve.wire.codec import unpack
from qserve.wire.replies import shown

LONGEST_LABEL = 200
"""The most characters of the value of a label."""
LONGEST_HELP = 1000
_MESSAGE_BYTES = 48 * 1024
"""How long a message is at most: it has to fit into the buffer of a socket."""
_VALUE_BYTES = 1000
"""More than a value takes, without its labels: of a histogram, with its exemplars."""
_DEPTH = 16


class Kind(StrEnum):
    """What a metric is; the values are Prometheus's words."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


_KINDS = frozenset(Kind)


class Description(NamedTuple):
    """A metric without its values.

    Parameters:
      name: Without prefix, and without the suffix ``_total`` of counters.
      labels: Their names.
      bounds: The upper bounds of a histogram's buckets, in ascending order, without infinity.
    """

    name: str
    kind: Kind
    help: str = ""
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


class Exemplar(NamedTuple):
    """One observation that a bucket counts: the request that it belongs to, its value, and when, in Unix seconds.

    ``trace_id`` has the 32 digits of W3C Trace Context; "" for a request without a trace.
    """

    request_id: str
    value: float
    at: float
    trace_id: str = ""


class Distribution(NamedTuple):
    """The values of a histogram: how many are in each bucket, the last of which has no bound, and their sum."""

    counts: tuple[int, ...]
    sum: float
    exemplars: Mapping[int, Exemplar] = {}

    def plus(self, other: Distribution) -> Distribution:
        """Return both together."""
        counts = tuple(map(sum, zip(self.counts, other.counts, strict=True)))
        return Distribution(counts, self.sum + other.sum, {**self.exemplars, **other.exemplars})


Labels = tuple[str, ...]
"""The values of labels, in the order of a description."""


@dataclass(slots=True)
class Family:
    """A metric with its values."""

    about: Description
    values: dict[Labels, float | Distribution] = field(default_factory=dict)


Snapshot = dict[str, Family]
"""Metrics by their name."""


def encode(sender: str, snapshot: Snapshot) -> bytes:
    """Return what a process has counted as one message."""
    families = [
        [*family.about, [[labels, *_packed(value)] for labels, value in family.values.items()]]
        for family in snapshot.values()
    ]
    message: bytes = msgpack.packb([sender, families], unicode_errors="replace")
    return message


def _packed(value: float | Distribution) -> list[Any]:
    if not isinstance(value, Distribution):
        return [float(value)]
    return [
        value.sum,
        [[index, count] for index, count in enumerate(value.counts) if count],
        [[index, *exemplar] for index, exemplar in value.exemplars.items()],
    ]


def pieces(snapshot: Snapshot) -> Iterator[Snapshot]:
    """Yield the parts of a snapshot that fit into a message each; a gauge, which replaces the last one, stays whole."""
    piece: Snapshot = {}
    used = 0
    for name, family in snapshot.items():
        about, size = family.about, _bytes_of((*family.about.labels, family.about.help))
        parts = [[*family.values.items()]] if about.kind is Kind.GAUGE else [[item] for item in family.values.items()]
        for part in parts:
            length = size * (name not in piece) + sum(_VALUE_BYTES + _bytes_of(labels) for labels, _ in part)
            if piece and used + length > _MESSAGE_BYTES:
                yield piece
                piece, used = {}, 0
                length += size
            piece.setdefault(name, Family(about)).values.update(part)
            used += length
    if piece:
        yield piece


def _bytes_of(texts: Iterable[str]) -> int:
    return sum(4 * len(text) + 5 for text in texts)


def decode(message: bytes) -> tuple[str, Snapshot]:
    """Read what ``encode`` wrote.

    Raises:
      PayloadError: It is something else.
    """
    try:
        sender, families, *_ = unpack(message, "a message with metrics", _DEPTH)
        known = (family for family in families if family[1] in _KINDS)  # a later version may have another kind
        return _text(sender), {family.about.name: family for family in map(_family, known)}
    except PayloadError:
        raise
    except Exception as error:
        raise PayloadError(f"{shown(message[:40])} is not a message with metrics: {error}") from error


class Published(NamedTuple):
    """What a worker's replicas have counted, as it is kept in the broker for gateways.

    Parameters:
      until_ms: When it is stale, by the broker's clock: the worker is gone by then.
      has_page: Whether the worker has a page of its own, so that a gateway's page need not show it as well.
    """

    until_ms: float
    has_page: bool
    snapshot: Snapshot

    def encode(self) -> bytes:
        """Return it as msgpack."""
        return msgpack.packb([self.until_ms, self.has_page, encode("", self.snapshot)])  # type: ignore[no-any-return]

    @classmethod
    def decode(cls, data: bytes) -> Published:
        """Read what ``encode`` wrote; raise PayloadError for anything else."""
        found = unpack(data, "the metrics of a worker")
        if type(found) is not list or list(map(type, found[:3])) != [float, bool, bytes]:
            raise PayloadError(f"{len(data)} bytes are not the metrics of a worker")
        return cls(found[0], found[1], decode(found[2])[1])


def _family(packed: list[Any]) -> Family:
    name, kind, help_text, labels, bounds, values, *_ = packed
    names, limits = tuple(map(_text, labels)), tuple(map(_number, bounds))
    about = Description(_text(name), Kind(kind), _text(help_text), names, limits)
    found: dict[Labels, float | Distribution] = {}
    for key, amount, *rest in values:
        texts = tuple(map(_text, key))
        if len(texts) != len(names):
            raise ValueError(f"{name} has {len(names)} labels, not {len(texts)}")
        found[texts] = _number(amount)
        if about.kind is Kind.HISTOGRAM:
            counts, exemplars, *_ = rest
            buckets = [0] * (len(limits) + 1)
            for index, count in counts:
                if type(index) is not int or type(count) is not int or not (0 <= index < len(buckets) and count >= 0):
                    raise ValueError(f"{name} has no bucket {index!r} with {count!r}")
                buckets[index] = count
            read = {
                index: Exemplar(_text(request_id), _number(value), _number(at), *map(_text, trace_id[:1]))
                for index, request_id, value, at, *trace_id in exemplars
                if type(index) is int and 0 <= index < len(buckets)
            }
            found[texts] = Distribution(tuple(buckets), _number(amount), read)
    return Family(about, found)


def _text(value: object) -> str:
    if type(value) is not str or len(value) > 2 * LONGEST_HELP:
        raise ValueError(f"{value!r:.40} is not a short text")
    return value


def _number(value: object) -> float:
    if type(value) is float or type(value) is int:
        return value
    raise ValueError(f"{value!r:.40} is not a number")
