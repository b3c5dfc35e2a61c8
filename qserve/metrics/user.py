"""The metrics of user code, with the signatures of Ray's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from qserve.base.context import request_context
from qserve.metrics import recorder
from qserve.metrics.names import Names
from qserve.metrics.table import TABLE
from qserve.wire.totals import LONGEST_HELP, Description, Kind

RESERVED = ("application", "deployment", "replica")
"""Tags that every metric of a replica gets."""
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,199}")
_TAG = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]{0,99}")
_MOST_TAGS = 20
_ROUTE = "route"
_MOST_BOUNDS = 100
_made: set[str] = set()
_names = Names()


class _Metric:
    """What the three kinds share.

    Parameters:
      name: Its name without prefix: ``[a-zA-Z_:][a-zA-Z0-9_:]*``.
      description: What it tells, in a line.
      tag_keys: The names of its tags.
    """

    _kind: ClassVar[Kind]

    def __init__(self, name: str, description: str = "", tag_keys: tuple[str, ...] | None = None) -> None:
        self._define(name, description, tag_keys, ())

    def _define(self, name: str, description: str, keys: tuple[str, ...] | None, bounds: tuple[float, ...]) -> None:
        kind = type(self).__name__
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            advice = "use up to 200 letters, digits and _, and no digit first"
            raise ValueError(f"{kind}: {name!r:.300} is not a name of a metric: {advice}")
        if keys is not None and not isinstance(keys, tuple):
            raise TypeError(f"{kind} {name!r}: tag_keys must be a tuple of names, not {keys!r}")
        self._keys = keys or ()
        if len(self._keys) > _MOST_TAGS or len({*self._keys}) < len(self._keys):
            raise ValueError(f"{kind} {name!r}: tag_keys must be up to {_MOST_TAGS} different names, not {keys!r:.300}")
        for key in self._keys:
            self._check_key(name, key)
        # prometheus_client would say `_total` twice
        self._name = name.removesuffix("_total") if self._kind is Kind.COUNTER else name
        self._description, self._defaults = str(description)[:LONGEST_HELP], dict[str, str]()
        of = RESERVED if self._kind is Kind.GAUGE else RESERVED[:2]  # what ends with a replica belongs to no other
        self._about = Description(self._name, self._kind, self._description, (*of, *self._keys), bounds)
        self._cached: tuple[Any, dict[Any, Any]] = (None, {})
        self._enter()

    def _check_key(self, name: str, key: str) -> None:
        kind = type(self).__name__
        if not isinstance(key, str):
            raise TypeError(f"{kind} {name!r}: the name of a tag must be a string, not {key!r}")
        if key in RESERVED:
            raise ValueError(f"{kind} {name!r}: the tag {key!r} is reserved, and set for each metric; leave it out")
        if not _TAG.fullmatch(key) or (key == "le" and self._kind is Kind.HISTOGRAM):
            raise ValueError(
                f"{kind} {name!r}: {key!r} is not a name of a tag: use letters, digits and _, such as 'size'"
            )

    def _enter(self) -> None:
        """Note that it exists; another one of the same name must be of its kind, with its tags and boundaries."""
        if self._name in TABLE:
            raise ValueError(f"{self._name!r} is a metric of qserve itself; choose another name")
        if len(_made) >= recorder.MOST_METRICS and self._name not in _made:
            raise ValueError(
                f"{self._name!r} would be one more than {recorder.MOST_METRICS} metrics; use tags instead of many names"
            )
        other = _names.take(self._about)
        if other is not None:
            what = f"the {other.kind} {other.name!r} with the labels {other.labels} and boundaries {other.bounds}"
            raise ValueError(f"{type(self).__name__} {self._name!r} would write the same lines as {what}; rename one")
        _made.add(self._name)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_cached": (None, {})}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._enter()

    @property
    def info(self) -> dict[str, Any]:
        """Name, description, tag keys and default tags."""
        return {
            "name": self._name,
            "description": self._description,
            "tag_keys": self._keys,
            "default_tags": dict(self._defaults),
        }

    def set_default_tags(self, default_tags: Mapping[str, str]) -> Self:
        """Set values for tags that are not given with a value.

        Parameters:
          default_tags: The values by the names of the tags.

        Returns:
          The metric itself.

        Raises:
          ValueError: One of the names is not among ``tag_keys``, or is reserved.
          TypeError: A value is not a string.
        """
        self._check_tags(default_tags)
        self._defaults = dict(default_tags)
        self._cached = None, {}
        return self

    def _check_tags(self, tags: Mapping[str, str]) -> None:
        kind = type(self).__name__
        for key, value in tags.items():
            if key in RESERVED:
                raise ValueError(f"{kind} {self._name!r}: the tag {key!r} is reserved, and set for each metric")
            if key not in self._keys:
                known = ", ".join(map(repr, self._keys)) or "none"
                raise ValueError(f"{kind} {self._name!r} has no tag {key!r}; tag_keys has: {known}")
            if not isinstance(value, str):
                raise TypeError(f"{kind} {self._name!r}: the tag {key!r} must be a string, not {value!r}")

    def _tags(self, tags: Mapping[str, str] | None) -> dict[str, str]:
        """Return the value of each tag.

        Raises:
          ValueError: A tag is unknown, or has no value.
          TypeError: A value is not a string.
        """
        if tags:
            self._check_tags(tags)
        values = self._defaults | dict(tags or {})
        if _ROUTE in self._keys and _ROUTE not in values:
            values[_ROUTE] = request_context.get().route
        missing = [key for key in self._keys if key not in values]
        if missing:
            raise ValueError(f"{type(self).__name__} {self._name!r}: the tags {missing} have no value")
        return values

    def _series(self, tags: Mapping[str, str] | None) -> Any:
        """Return what counts in this process for these tags; None where nothing is counted."""
        here = recorder.here
        owner, cached = self._cached
        if owner is not here:
            owner, cached = self._cached = here, {}
        # the values alone would be ambiguous, and without tags of its own the route may differ each time
        key = tuple(tags.items()) if tags else () if _ROUTE not in self._keys else None
        found = cached.get(key) if key is not None else None
        if found is not None:
            return found
        values = self._tags(tags)
        if here is None:
            return None
        with recorder.lock:
            find = here.buckets if self._kind is Kind.HISTOGRAM else here.number
            found = find(self._about, **values)
        if key is not None and len(cached) < recorder.MOST_SETS:
            cached[key] = found
        return found

    def _number(self, value: object, action: str) -> float:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            # numpy's numbers are neither
            if not hasattr(value, "__float__") or isinstance(value, (str, bytes, bool)):
                raise TypeError(f"{action} of {type(self).__name__} {self._name!r} takes a number, not {value!r}")
            return value.__float__()  # type: ignore[no-any-return]
        return value


class Counter(_Metric):
    """A number that only grows, such as how often something happened.

    All replicas of a host count together; what a replica has counted stays counted when it ends.

    Parameters:
      name: Its name. Prometheus sees it as ``qserve_images_seen_total``.
      description: What it tells, in a line.
      tag_keys: The names of its tags; ``application`` and ``deployment`` are added.

    Raises:
      ValueError: The name is not one, or has another meaning already; or a tag is reserved.
      TypeError: ``tag_keys`` is not a tuple of strings.

    Example:
      from qserve.metrics import Counter

      images = Counter("images_seen", description="Images that were classified.", tag_keys=("model",))
      images.set_default_tags({"model": "small"})
      images.inc()
      images.inc(3, tags={"model": "large"})
    """

    _kind = Kind.COUNTER

    def inc(self, value: float = 1.0, tags: Mapping[str, str] | None = None) -> None:
        """Add a number.

        Parameters:
          value: How much to add, greater than 0.
          tags: The values of the tags that have no default, by name.

        Raises:
          ValueError: It is not; or a tag is unknown, or has no value.
          TypeError: It is not a number, or the value of a tag is not a string.
        """
        amount = self._number(value, "inc")
        if not 0 < amount < float("inf"):
            raise ValueError(f"inc of Counter {self._name!r} takes a number greater than 0, not {value!r}")
        series = self._series(tags)
        if series is not None:
            with recorder.lock:
                series.add(amount)


class Gauge(_Metric):
    """A number that can fall, such as how many items wait; each replica has its own.

    Parameters:
      name: Its name. Prometheus sees it as ``qserve_rows_loaded``.
      description: What it tells, in a line.
      tag_keys: The names of its tags; ``application``, ``deployment`` and ``replica`` are added.

    Raises:
      ValueError: The name is not one, or has another meaning already; or a tag is reserved.
      TypeError: ``tag_keys`` is not a tuple of strings.

    Example:
      from qserve.metrics import Gauge

      rows = Gauge("rows_loaded", description="Rows in memory.", tag_keys=("table",))
      rows.set_default_tags({"table": "users"}).set(1000)
    """

    _kind = Kind.GAUGE

    def set(self, value: float, tags: Mapping[str, str] | None = None) -> None:
        """Set the number.

        Parameters:
          value: Any number.
          tags: The values of the tags that have no default, by name.

        Raises:
          ValueError: A tag is unknown, or has no value.
          TypeError: It is not a number, or the value of a tag is not a string.
        """
        amount, values, here = self._number(value, "set"), self._tags(tags), recorder.here
        if here is not None:
            with recorder.lock:
                here.set(self._about, amount, **values)


class Histogram(_Metric):
    """How values are distributed, such as durations or sizes.

    Parameters:
      name: Its name. Prometheus sees it as ``qserve_image_pixels_bucket``, ``..._sum`` and ``..._count``.
      description: What it tells, in a line.
      boundaries: The upper bounds of its buckets, greater than 0 and in ascending order.
      tag_keys: The names of its tags; ``application`` and ``deployment`` are added.

    Raises:
      ValueError: The name is not one, or has another meaning already; a tag is reserved; or the boundaries are missing
        or in another order.
      TypeError: ``tag_keys`` is not a tuple of strings.

    Example:
      from qserve.metrics import Histogram

      pixels = Histogram("image_pixels", boundaries=[1e4, 1e5, 1e6, 1e7], tag_keys=("model",))
      pixels.set_default_tags({"model": "small"})
      pixels.observe(640 * 480)
    """

    _kind = Kind.HISTOGRAM

    def __init__(
        self,
        name: str,
        description: str = "",
        boundaries: Sequence[float] | None = None,
        tag_keys: tuple[str, ...] | None = None,
    ) -> None:
        bounds = tuple(0.0 + one for one in boundaries or ())
        ordered = all(0 < one < float("inf") for one in bounds) and [*bounds] == sorted(set(bounds))
        if not bounds or not ordered or len(bounds) > _MOST_BOUNDS:
            raise ValueError(
                f"Histogram {name!r}: boundaries must be up to {_MOST_BOUNDS} numbers greater than 0, each larger than"
                f" the one before, such as [1, 10, 100], not {boundaries!r}"
            )
        self._define(name, description, tag_keys, bounds)

    def observe(self, value: float, tags: Mapping[str, str] | None = None) -> None:
        """Count a value.

        Parameters:
          value: A finite number.
          tags: The values of the tags that have no default, by name.

        Raises:
          ValueError: It is not finite; or a tag is unknown, or has no value.
          TypeError: It is not a number, or the value of a tag is not a string.
        """
        amount = self._number(value, "observe")
        if amount - amount != 0:
            raise ValueError(f"observe of Histogram {self._name!r} takes a finite number, not {value!r}")
        series = self._series(tags)
        if series is not None:
            with recorder.lock:
                series.observe(amount)
