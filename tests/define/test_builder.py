"""Application builders: how they get their arguments, and what is said when these do not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from typing import TypedDict as TypedDictOfPython

import pytest
from pydantic import BaseModel
from typing_extensions import TypedDict

import qserve
from qserve.define.builder import ArgumentError, built_target, parse_arguments
from qserve.define.target import TargetError


@qserve.deployment
class Model:
    def __init__(self, *given: Any) -> None: ...


class Typed(BaseModel):
    size: int = 3
    name: str = "small"


@dataclass
class Plain:
    size: int


class Keys(TypedDict):
    size: int


class OldKeys(TypedDictOfPython, total=False):
    size: int


def of_old_keys(args: OldKeys) -> Any:
    return Model.bind(args.get("size"))


def typed(args: Typed) -> Any:
    return Model.bind(args.size)


def of_dataclass(args: Plain) -> Any:
    return Model.bind(args.size)


def of_keys(args: Keys) -> Any:
    return Model.bind(args["size"])


def of_dict(args: dict[str, str]) -> Any:
    return Model.bind(args.get("size"))


def of_mapping(args: Mapping[str, Any]) -> Any:
    return Model.bind(args.get("size"))


def bare(args):  # type: ignore[no-untyped-def]
    return Model.bind(args.get("size"))


def unknown_annotation(args: "Missing") -> Any:  # type: ignore[name-defined]  # noqa: F821, UP037
    return Model.bind(args.get("size"))


def of_anything(args: Any) -> Any:
    return Model.bind(args.get("size"))


def two(first: int, second: int) -> Any: ...


def forgotten(request: Any) -> Any:
    return 3


@pytest.mark.parametrize("builder", [typed, of_dataclass, of_keys])
def test_an_annotated_builder_gets_its_arguments_as_that_type(builder: Callable[..., Any]) -> None:
    assert built_target(builder, {"size": "4"}, "m:b").get_args() == (4,)


@pytest.mark.parametrize("builder", [of_dict, of_mapping, bare, of_old_keys, unknown_annotation, of_anything])
def test_a_builder_that_takes_a_dict_gets_them_as_they_are(builder: Callable[..., Any]) -> None:
    assert built_target(builder, {"size": 4}, "m:b").get_args() == (4,)
    assert built_target(builder, {}, "m:b").get_args() == (None,)


@pytest.mark.parametrize("builder", [typed, of_dataclass])
def test_an_argument_that_a_type_does_not_have_is_named(
    builder: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    built_target(builder, {"size": 4, "siez": 5}, "m:b")

    assert "the arguments of m:b: these options have no effect: siez (" in caplog.text


def test_the_defaults_of_a_model_hold_without_arguments() -> None:
    assert built_target(typed, {}, "m:b").get_args() == (3,)


def test_what_is_not_a_builder_is_returned_as_it_is() -> None:
    node = Model.bind()

    for found in (node, qserve.build(node), two, Model, 3):
        assert built_target(found, {}, "m:b") is found


@pytest.mark.parametrize(
    ("found", "args", "message"),
    [
        (Model.bind(), {"size": 1}, "m:b is an application and takes no arguments; got: size"),
        (3, {"size": 1}, "m:b is not a builder and takes no arguments; got: size"),
        (two, {"size": 1}, "a builder takes one parameter: its arguments as a dict or as a pydantic model"),
        (typed, {"size": "x"}, "the arguments of m:b do not fit: size: input should be a valid integer"),
        (of_keys, {}, "the arguments of m:b do not fit: size: field required"),
        (of_dataclass, {"siez": 1}, "the arguments of m:b do not fit: size: field required"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(found: Any, args: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        built_target(found, args, "m:b")

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_function_that_makes_no_application_is_told_both_things_that_it_could_be() -> None:
    with pytest.raises(
        TargetError, match=r"must return an application, and it returned int; as a deployment, decorate"
    ):
        built_target(forgotten, {}, "m:b")


def test_words_of_a_command_are_arguments() -> None:
    assert parse_arguments(["size=4", "name=a=b", "empty="]) == {"size": "4", "name": "a=b", "empty": ""}


@pytest.mark.parametrize("words", [["size"], ["=4"], ["size=1", "size=2"]])
def test_malformed_arguments_of_a_command_are_refused(words: list[str]) -> None:
    with pytest.raises(ArgumentError):
        parse_arguments(words)
