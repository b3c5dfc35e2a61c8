"""When a batch is ready: the rule alone, without a clock or waiting."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Measure = Callable[[list[T]], int]


@dataclass
class Limits:
    """When a batch runs; the setters take effect from the next call on.

    Parameters:
      max_batch_size: The most items of one batch, or the largest ``batch_size_fn`` of one.
      batch_wait_timeout_s: How long the first item waits for others; 0 runs what is there.
      max_concurrent_batches: How many batches of one queue run at the same time.
      batch_size_fn: The size of a list of items, which may not shrink when an item joins; None counts them.
        Of a function with several parameters it sees tuples.
    """

    max_batch_size: int = 10
    batch_wait_timeout_s: float = 0.0
    max_concurrent_batches: int = 1
    batch_size_fn: Measure[Any] | None = None

    def __post_init__(self) -> None:
        self.set_max_batch_size(self.max_batch_size)
        self.set_batch_wait_timeout_s(self.batch_wait_timeout_s)
        self.max_concurrent_batches = _whole_number("max_concurrent_batches", self.max_concurrent_batches)
        if self.batch_size_fn is not None and not callable(self.batch_size_fn):
            raise TypeError(f"batch_size_fn must be a function of a list of items, not {self.batch_size_fn!r}")

    def set_max_batch_size(self, max_batch_size: int) -> None:
        """Change the largest size; TypeError or ValueError unless it is an integer >= 1."""
        self.max_batch_size = _whole_number("max_batch_size", max_batch_size)

    def set_batch_wait_timeout_s(self, batch_wait_timeout_s: float) -> None:
        """Change the wait; TypeError or ValueError unless it is a number >= 0."""
        is_number = isinstance(batch_wait_timeout_s, Real) and not isinstance(batch_wait_timeout_s, bool)
        if not is_number or not batch_wait_timeout_s >= 0:
            error = ValueError if is_number else TypeError
            raise error(f"batch_wait_timeout_s must be a number of seconds >= 0, not {batch_wait_timeout_s!r}")
        self.batch_wait_timeout_s = float(batch_wait_timeout_s)


def _whole_number(option: str, value: Any) -> int:
    is_whole = isinstance(value, Integral) or (isinstance(value, float) and value.is_integer())
    if not is_whole or isinstance(value, bool) or value < 1:
        error = ValueError if is_whole and not isinstance(value, bool) else TypeError
        raise error(f"{option} must be an integer >= 1, not {value!r}")
    return int(value)


class Gathering(Generic[T]):
    """Items that wait, in the order they came; those of different keys never share a batch.

    Parameters:
      measure: The size of some items.
      is_open: Whether an item still wants to run; the others are neither counted nor handed out.
    """

    def __init__(self, limits: Limits, measure: Measure[T] = len, is_open: Callable[[T], bool] = lambda item: True):
        self._limits, self._measure, self._is_open = limits, measure, is_open
        self._groups: dict[Hashable, dict[T, float]] = {}

    def add(self, item: T, key: Hashable, now_s: float) -> None:
        """Let a hashable item wait with the others of its key."""
        self._groups.setdefault(key, {})[item] = now_s

    def discard(self, item: T, key: Hashable) -> bool:
        """Take an item out; False when it does not wait."""
        group = self._groups.get(key, {})
        if group.pop(item, None) is None:
            return False
        if not group:
            del self._groups[key]
        return True

    def ready(self, now_s: float) -> list[T]:
        """Take out a batch that is full or has waited long enough, the oldest first; empty when there is none."""
        for key, group in sorted(self._groups.items(), key=lambda entry: _since(entry[1])):
            is_due = now_s >= _since(group) + self._limits.batch_wait_timeout_s
            if not is_due and self._measure is len and len(group) < self._limits.max_batch_size:
                continue
            batch, is_full = self._cut(group)
            if batch and (is_full or is_due):
                for item in batch:
                    self.discard(item, key)
                return batch
        return []

    def _cut(self, group: Iterable[T]) -> tuple[list[T], bool]:
        batch: list[T] = []
        for item in filter(self._is_open, group):
            size = len(batch) + 1 if self._measure is len else self._measure([*batch, item])
            if batch and size > self._limits.max_batch_size:
                return batch, True
            batch.append(item)
            if size >= self._limits.max_batch_size:
                return batch, True
        return batch, False

    def due_s(self) -> float | None:
        """When the item that came first has waited long enough; None when nothing waits."""
        first = min(map(_since, self._groups.values()), default=None)
        return None if first is None else first + self._limits.batch_wait_timeout_s


def _since(group: dict[T, float]) -> float:
    return next(iter(group.values()))
