"""Refs among the arguments of a call: their places are filled by the broker, and nobody waits in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qserve.base.keys import Keys
from qserve.calls.ref import DeploymentResponse, Ref, RefTask, ref_of
from qserve.exceptions import TaskError
from qserve.graph.plan import Slot
from qserve.wire import codec
from qserve.wire.moves import Awaited
from qserve.wire.outcome import State

REFS = (Ref, RefTask, DeploymentResponse)
"""What a handle call gives, in any of its forms."""


def take_awaited(
    given: Sequence[tuple[int, Any]], stream: str, step: str, needs: int, keys: Keys, waits: list[Awaited]
) -> tuple[tuple[int, Any], ...]:
    """Move the refs among a step's values to ``waits``; answers the values that are known."""
    known = []
    for slot, value in given:
        ref = ref_of(value)
        if ref is None or not ref.request_id:
            known.append((slot, value if ref is None else ref.result()))
        else:
            waits.append(Awaited(keys.request(ref.request_id), stream, step, needs, slot))
    return tuple(known)


def take_refs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any], list[Ref]]:
    """Put a slot in the place of each ref among the arguments, the values of which are filled in by the broker."""
    if not any(isinstance(value, REFS) for value in (*args, *kwargs.values())):
        return args, dict(kwargs), []
    refs: list[Ref] = []

    def place(value: Any) -> Any:
        ref = ref_of(value)
        if ref is None:
            return value
        if not ref.request_id:  # it has its value already
            return ref.result()
        if ref not in refs:
            refs.append(ref)
        return Slot(refs.index(ref) + 1)

    return (
        [place(value) for value in args],
        {name: place(value) for name, value in kwargs.items()},
        refs,
    )


def _pack_ref(ref: Ref) -> list[Any]:
    if not ref.request_id:
        if ref.done.is_set() and ref.outcome().state != State.DONE:
            raise TaskError("a failed call cannot be an argument")
        return ["", ref.result()]
    ref.share()
    return [ref.request_id, None]


def _unpack_ref(packed: list[Any]) -> Ref:
    request_id, value = packed
    return Ref(request_id, None) if request_id else Ref.resolved(value)


codec.register(codec.Code.REF, Ref, _pack_ref, _unpack_ref)
codec.register(codec.Code.REF_TASK, RefTask, lambda task: _pack_ref(task.ref), _unpack_ref)
codec.register(
    codec.Code.RESPONSE,
    DeploymentResponse,
    lambda response: _pack_ref(response.ref),
    lambda packed: DeploymentResponse(_unpack_ref(packed)),
)
