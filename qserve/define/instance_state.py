"""What decorators keep for one instance: on the instance itself, so that it ends with it."""

from __future__ import annotations

from typing import Any


class State(dict[Any, Any]):
    """What decorated methods keep in an instance; its pickles and deep copies start without."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return State, ()


def state_of(owner: Any, place: str) -> State:
    """The ``State`` of an object, made when there is none yet; TypeError when it has no ``__dict__`` for it."""
    try:
        state: State = vars(owner).setdefault(place, State())
    except TypeError:
        raise TypeError(f"{type(owner).__name__} needs a `__dict__`: add '__dict__' to its __slots__") from None
    return state
