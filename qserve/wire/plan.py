"""Plans to bytes and back. A step's arguments stay encoded until the replica that runs it decodes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qserve.exceptions import PayloadError
from qserve.graph.plan import InputKey, Plan, Slot, Source, Step
from qserve.wire.codec import Codec, register


def _unpack_slot(packed: list[Any]) -> Slot:
    return Slot(*packed)


register(30, Slot, lambda slot: [slot.index, slot.nested], _unpack_slot)


@dataclass(frozen=True)
class Template:
    """A step's arguments, encoded; whoever runs the step decodes them once."""

    data: bytes


def dump_plan(plan: Plan, codec: Codec) -> list[Any]:
    """The plan as plain lists, each step's arguments encoded with ``codec``."""
    return [
        [
            [
                step.deployment,
                step.method,
                step.needs,
                codec.encode([list(step.args), dict(step.kwargs)]),
            ]
            for step in plan.steps
        ],
        [[_dump_source(source), [list(target) for target in targets]] for source, targets in plan.feeds.items()],
        _dump_source(plan.output),
    ]


def load_plan(parts: list[Any]) -> tuple[Plan, tuple[Template, ...]]:
    """What ``dump_plan`` wrote: the plan without arguments, and each step's arguments as a template.

    Raises:
      PayloadError: It is something else.
    """
    try:
        return _load_plan(parts)
    except Exception as error:
        raise PayloadError(f"this is no graph's plan: {type(error).__name__}") from error


def _load_plan(parts: list[Any]) -> tuple[Plan, tuple[Template, ...]]:
    steps, feeds, output = parts
    plan = Plan(
        steps=tuple(Step(deployment=name, method=method, needs=needs) for name, method, needs, _ in steps),
        feeds={_load_source(source): tuple((step, slot) for step, slot in targets) for source, targets in feeds},
        output=_load_source(output),
    )
    return plan, tuple(Template(data) for *_, data in steps)


def _dump_source(source: Source) -> Any:
    return source if isinstance(source, int) else [source.kind, source.key]


def _load_source(packed: Any) -> Source:
    return packed if isinstance(packed, int) else InputKey(packed[0], packed[1])
