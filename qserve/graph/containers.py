"""Find and replace objects inside lists, tuples, dicts and sets."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

Found = TypeVar("Found")

CONTAINERS = (list, tuple, dict, set, frozenset)
DEPTH_LIMIT = 256
"""How many containers may be inside one another."""


def find(values: Iterable[Any], kind: type[Found]) -> list[Found]:
    """Return every instance of a class in the values and in the containers among them, each once, in order.

    Dict keys, attributes of other objects and the instances themselves are not searched.
    """
    found: dict[int, Found] = {}
    walked: set[int] = set()
    pending = list(values)[::-1]
    while pending:
        value = pending.pop()
        if isinstance(value, kind):
            found.setdefault(id(value), value)
        elif isinstance(value, CONTAINERS) and id(value) not in walked:
            walked.add(id(value))
            pending.extend(_members(value)[::-1])
    return list(found.values())


def is_deep(values: Iterable[Any], limit: int = DEPTH_LIMIT) -> bool:
    """Return whether more containers than ``limit`` are inside one another; one that contains itself counts once."""
    walked: set[int] = set()
    open_ones = [iter(list(values))]
    while open_ones:
        for member in open_ones[-1]:
            if isinstance(member, CONTAINERS) and id(member) not in walked:
                walked.add(id(member))
                open_ones.append(iter(_members(member)))
                break
        else:
            open_ones.pop()
        if len(open_ones) > limit + 1:
            return True
    return False


def replace(value: Any, kind: type[Found], change: Callable[[Found], Any], *, is_copy: bool = False) -> Any:
    """Return the value with every instance of a class replaced by ``change(instance)``.

    Containers without any are returned as they are, unless it ``is_copy``: then every list, dict and set is a new one,
    and one that is there twice, or in itself, is so in the copy.
    """
    opened: set[int] = set()
    copies: dict[int, Any] = {}
    done: dict[int, Any] = {}  # or a list that is there twice at each of thirty levels would be walked 2**30 times

    def replaced(value: Any) -> Any:
        if isinstance(value, kind):
            return change(value)
        if is_copy and type(value) in (list, dict):
            if id(value) not in copies:
                copy_of = copies[id(value)] = type(value)()
                members = [replaced(member) for member in _members(value)]
                copy_of.extend(members) if type(value) is list else copy_of.update(zip(value, members, strict=True))
            return copies[id(value)]
        # a container that contains itself is not entered a second time
        if not isinstance(value, CONTAINERS) or id(value) in opened:
            return value
        if id(value) in done:
            return done[id(value)]
        opened.add(id(value))
        before = _members(value)
        after = [replaced(member) for member in before]
        opened.discard(id(value))
        may_keep = not is_copy or isinstance(value, tuple | frozenset)
        is_kept = may_keep and all(old is new for old, new in zip(before, after, strict=True))
        done[id(value)] = value if is_kept else _rebuilt(value, after)
        return done[id(value)]

    return replaced(value)


def has_shared(values: Iterable[Any]) -> bool:
    """Return whether a list, dict or set is in the values twice, as one object, or in itself."""
    walked: set[int] = set()
    pending = list(values)
    while pending:
        value = pending.pop()
        if isinstance(value, CONTAINERS):
            if id(value) in walked and isinstance(value, list | dict | set):
                return True
            if id(value) not in walked:
                walked.add(id(value))
                pending.extend(_members(value))
    return False


def _members(container: Any) -> list[Any]:
    return list(container.values()) if isinstance(container, dict) else list(container)


def _rebuilt(container: Any, members: Iterable[Any]) -> Any:
    kind: Any = type(container)
    if isinstance(container, dict):
        members = zip(list(container), members, strict=True)
    if hasattr(kind, "_make"):
        return kind._make(members)
    if kind in CONTAINERS or isinstance(container, tuple | frozenset):
        return kind(members)
    # the constructor of another subclass may take other arguments
    changed = copy.copy(container)
    changed.clear()
    (changed.extend if isinstance(container, list) else changed.update)(members)
    return changed
