"""The run-time rules: what a request starts, what follows a step, and how arguments are filled."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

from qserve.graph.advance import Answer, Arguments, Fill, advance, begin
from qserve.graph.plan import InputKey, Plan, Slot, Source, Step

WHOLE = InputKey()


def reading(*keys: InputKey) -> Plan:
    """A plan of one step that reads these parts of the input."""
    slots = tuple(Slot(index) for index in range(len(keys)))
    feeds: dict[Source, tuple[tuple[int, int], ...]] = {key: ((0, index),) for index, key in enumerate(keys)}
    return Plan((Step("f", args=slots, needs=len(keys)),), feeds, 0)


def started(step: int, values: tuple[tuple[int, Any], ...]) -> Fill:
    """The move that starts a step at once: these are all the values that it needs."""
    return Fill(step, values, len(values))


JOIN = Plan(
    steps=(
        Step("a", args=(Slot(0),), needs=1),
        Step("b"),
        Step("c", args=(Slot(0), Slot(1), Slot(2)), needs=3),
    ),
    feeds={WHOLE: ((0, 0), (2, 2)), 0: ((2, 0),), 1: ((2, 1),)},
    output=2,
)


def test_begin_starts_what_needs_nothing_or_only_the_input() -> None:
    assert begin(JOIN, (7,), {}) == [started(0, ((0, 7),)), started(1, ()), Fill(2, ((2, 7),), 3)]


def test_advance_sends_a_step_that_needs_one_value() -> None:
    plan = Plan((Step("a"), Step("b", args=(Slot(0),), needs=1)), {0: ((1, 0),)}, 1)

    assert advance(plan, 0, "x") == [started(1, ((0, "x"),))]


def test_advance_fills_a_step_that_needs_more() -> None:
    assert advance(JOIN, 0, "x") == [Fill(2, ((0, "x"),), 3)]
    assert advance(JOIN, 1, "y") == [Fill(2, ((1, "y"),), 3)]


def test_advance_feeds_every_consumer() -> None:
    steps = (Step("a"), Step("b", needs=1), Step("c", needs=1), Step("d", needs=2))
    plan = Plan(steps, {0: ((1, 0), (2, 0)), 1: ((3, 0),), 2: ((3, 1),)}, 3)

    assert advance(plan, 0, 5) == [started(1, ((0, 5),)), started(2, ((0, 5),))]


def test_the_last_step_answers() -> None:
    assert advance(JOIN, 2, "z") == [Answer("z")]


def test_a_graph_of_nothing_but_the_input_answers_at_once() -> None:
    assert begin(Plan((), {}, WHOLE), (5,), {}) == [Answer(5)]
    assert begin(Plan((), {}, InputKey("item", "x")), (), {"x": 6}) == [Answer(6)]


def test_parts_of_the_input_start_a_step_together() -> None:
    plan = reading(InputKey("item", 0), InputKey("item", 1))

    assert begin(plan, (1, 2), {}) == [started(0, ((0, 1), (1, 2)))]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (WHOLE, [10, 20]),
        (InputKey("item", 0), 10),
        (InputKey("item", 1), 20),
        (InputKey("item", -1), 20),
    ],
)
def test_a_single_list_is_the_input_itself(key: InputKey, value: Any) -> None:
    assert begin(reading(key), ([10, 20],), {}) == [started(0, ((0, value),))]


class Measure(BaseModel):
    x: int


def test_a_single_object_is_read_by_item_and_attribute() -> None:
    items: list[tuple[Any, Any]] = [((1, 2), 1), ({"m1": 4}, "m1"), ({1: 2}, 1), ("ab", 0)]
    for value, key in items:
        assert begin(reading(InputKey("item", key)), (value,), {}) == [started(0, ((0, value[key]),))]

    for point in (SimpleNamespace(x=3), Measure(x=3)):
        assert begin(reading(WHOLE, InputKey("attribute", "x")), (point,), {}) == [started(0, ((0, point), (1, 3)))]


def test_several_values_are_read_by_position_and_keyword() -> None:
    plan = reading(
        InputKey("item", 1),
        InputKey("attribute", "m3"),
        InputKey("item", "m4"),
        InputKey("item", 0),
    )

    (move,) = begin(plan, (1, 2), {"m3": 3, "m4": {"a": 4}})

    assert move == started(0, ((0, 2), (1, 3), (2, {"a": 4}), (3, 1)))


def test_one_keyword_alone_is_no_single_value() -> None:
    for key in (InputKey("attribute", "x"), InputKey("item", "x")):
        assert begin(reading(key), (), {"x": 1}) == [started(0, ((0, 1),))]
    with pytest.raises(IndexError):
        begin(reading(InputKey("item", 0)), (), {"x": 1})
    with pytest.raises(KeyError):
        begin(reading(InputKey("item", "x")), (1, 2), {})


@pytest.mark.parametrize(
    ("key", "args", "kwargs", "kind", "words"),
    [
        (
            InputKey("item", 2),
            (1, 2),
            {},
            IndexError,
            "the graph reads inp[2], but the request has 2 positional values and no keywords",
        ),
        (
            InputKey("item", 0),
            (),
            {"x": 1, "y": 2},
            IndexError,
            "the graph reads inp[0], but the request has no positional values and the keywords 'x', 'y'",
        ),
        (
            InputKey("attribute", "z"),
            (1,),
            {"x": 1},
            KeyError,
            "\"the graph reads inp.z, but the request has 1 positional value and the keywords 'x'\"",
        ),
        (
            WHOLE,
            (),
            {},
            TypeError,
            "the graph uses its input as a whole, but the request has nothing. Give one value, "
            "or let the graph read inp[0] and inp.key.",
        ),
        (
            WHOLE,
            (1,),
            {"x": 1},
            TypeError,
            "the graph uses its input as a whole, but the request has both positional values "
            "and keywords. Give one value, or let the graph read inp[0] and inp.key.",
        ),
    ],
)
def test_a_missing_part_is_named(
    key: InputKey, args: tuple[Any, ...], kwargs: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind) as caught:
        begin(reading(key), args, kwargs)

    assert str(caught.value) == words


def test_a_single_input_fails_as_python_does() -> None:
    with pytest.raises(IndexError):
        begin(reading(InputKey("item", 5)), ([1],), {})
    with pytest.raises(KeyError):
        begin(reading(InputKey("item", "x")), ({},), {})
    with pytest.raises(AttributeError):
        begin(reading(InputKey("attribute", "x")), (1,), {})
    with pytest.raises(TypeError):
        begin(reading(InputKey("item", 0)), (1,), {})


def test_several_values_as_a_whole_are_a_tuple_or_a_dict() -> None:
    assert begin(reading(WHOLE), (1, 2), {}) == [started(0, ((0, (1, 2)),))]
    assert begin(reading(WHOLE), (), {"a": 1}) == [started(0, ((0, {"a": 1}),))]


def test_the_input_is_read_once_for_all_its_users() -> None:
    reads = []

    class Noted:
        def __getitem__(self, key: int) -> int:
            reads.append(key)
            return key

    steps = (Step("a", needs=1), Step("b", needs=1))
    begin(Plan(steps, {InputKey("item", 0): ((0, 0), (1, 0))}, 1), (Noted(),), {})

    assert reads == [0]


# filling


def boxed(value: Any) -> tuple[str, Any]:
    return ("ref", value)


def test_fill_puts_values_into_positions_and_keywords() -> None:
    filled = Arguments((Slot(0), 5, Slot(1)), {"k": Slot(0), "c": 6}).fill({0: "a", 1: "b"}, boxed)

    assert filled == (("a", 5, "b"), {"k": "a", "c": 6})


def test_slots_are_filled_by_their_index() -> None:
    assert Arguments((Slot(1), Slot(0)), {}).fill({0: "a", 1: "b"}, boxed) == (("b", "a"), {})


def test_nested_results_become_refs_and_nested_inputs_stay_values() -> None:
    template = [Slot(0, nested=True), {"x": (Slot(1), Slot(0, nested=True))}]

    filled = Arguments((template, Slot(0)), {}).fill({0: "a", 1: "b"}, boxed)

    assert filled == (([boxed("a"), {"x": ("b", boxed("a"))}], "a"), {})


def test_a_tuple_is_shared_when_it_has_no_slots() -> None:
    constant = (1, "x")
    (shared, made), kwargs = Arguments((constant, (Slot(0),)), {"k": [1]}).fill({0: "a"}, boxed)

    assert shared is constant
    assert (made, kwargs) == (("a",), {"k": [1]})


def test_one_template_serves_many_requests() -> None:
    arguments = Arguments((Slot(0), [Slot(0, nested=True)]), {"k": [1, 2], "deep": {"a": [3]}})

    first_args, first_kwargs = arguments.fill({0: 1}, boxed)
    first_args[1].append("changed")
    first_kwargs["k"].append("changed")
    first_kwargs["deep"]["a"].append("changed")
    second = arguments.fill({0: 2}, boxed)

    assert second == ((2, [boxed(2)]), {"k": [1, 2], "deep": {"a": [3]}})


def test_constants_that_are_no_containers_are_shared() -> None:
    constant = object()

    (args, _) = Arguments((constant,), {}).fill({}, boxed)

    assert args[0] is constant


def test_an_object_that_was_bound_twice_is_one_object_in_each_call() -> None:
    shared: list[Any] = [1]
    endless: list[Any] = []
    endless.append(endless)
    arguments = Arguments([shared, {"deep": (shared, Slot(0, True))}, endless], {"again": shared, "given": Slot(0)})

    calls = [arguments.fill({0: "value"}, lambda value: f"ref of {value}") for _ in range(2)]

    for (first, second, cycle), named in calls:
        assert first == [1]
        assert first is second["deep"][0] is named["again"]
        assert second["deep"][1] == "ref of value"
        assert named["given"] == "value"
        assert cycle[0] is cycle
        assert cycle is not endless
    assert calls[0][0][0] is not calls[1][0][0]
