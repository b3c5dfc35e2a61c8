"""Defining deployments as programs for Ray Serve do: the decorator, its options, and what is refused."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

import qserve as serve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.local.run import shutdown_local


@pytest.fixture(autouse=True)
def end_what_ran() -> Iterator[None]:
    """All that a test serves in this process ends with it."""
    yield
    shutdown_local()


def served(node: Any) -> Any:
    return serve.run(node, local=True)


def ask(call: Any, *args: Any, **kwargs: Any) -> Any:
    return serve.get(call.remote(*args, **kwargs), timeout=10)


class Counter:
    """Not decorated here: each test decorates it in its own way."""

    def __init__(self, start: int = 0) -> None:
        self.count = start

    def __call__(self, by: int = 1) -> int:
        self.count += by
        return self.count


def double(value: int) -> int:
    return value * 2


async def double_async(value: int) -> int:
    return value * 2


FORMS = {
    "bare": serve.deployment,
    "called": serve.deployment(),
    "with a name": serve.deployment(name="other"),
    "with a label": serve.deployment("label", num_replicas=1),
    "with many options": serve.deployment(
        name="many",
        num_replicas=1,
        max_concurrent_queries=10,
        route_prefix="/many",
        ray_actor_options={"num_cpus": 0.15},
        health_check_period_s=1,
        health_check_timeout_s=2,
        graceful_shutdown_timeout_s=0,
        graceful_shutdown_wait_loop_s=1,
        version="v1",
    ),
    "scaling by itself": serve.deployment(autoscaling_config={"min_replicas": 1, "max_replicas": 2}),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("body", [double, double_async], ids=["def", "async def"])
def test_a_function_decorated_in_any_form_is_served(form: Any, body: Any) -> None:
    assert ask(served(form(body).bind()), 21) == 42


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_class_decorated_in_any_form_is_served(form: Any) -> None:
    handle = served(form(Counter).bind(5))

    assert [ask(handle), ask(handle, by=2)] == [6, 8]


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"name": 123}, TypeError, "name must be a string"),
    ({"num_replicas": 0}, ValueError, "num_replicas is expected to larger than 0"),
    ({"num_replicas": -1}, ValidationError, "num_replicas"),
    ({"num_replicas": "hi"}, ValidationError, "num_replicas"),
    ({"max_concurrent_queries": 0}, ValueError, "max_concurrent_queries"),
    ({"max_concurrent_queries": -1}, ValueError, "max_concurrent_queries"),
    ({"max_concurrent_queries": "hi"}, ValidationError, "max_concurrent_queries"),
    ({"max_concurrent_queries": [1]}, ValidationError, "max_concurrent_queries"),
    ({"version": 1}, TypeError, "version"),
    ({"init_args": {1, 2, 3}}, TypeError, "init_args"),
    ({"init_args": "hi"}, TypeError, "init_args"),
    ({"init_kwargs": [1, 2, 3]}, TypeError, "init_kwargs"),
    ({"ray_actor_options": [1, 2, 3]}, TypeError, "ray_actor_options"),
    ({"ray_actor_options": "hi"}, TypeError, "ray_actor_options"),
    ({"num_replicas": 2, "autoscaling_config": {"max_replicas": 3}}, ValueError, "autoscaling_config"),
    ({"route_prefix": "hello"}, ValueError, "route_prefix must start with '/'."),
    ({"route_prefix": "/hello/"}, ValueError, "route_prefix must not end with '/' unless it's the root."),
    ({"route_prefix": "/{hello}"}, ValueError, "route_prefix may not contain wildcards."),
    ({"no_such_option": 1}, TypeError, "no_such_option"),
]


@pytest.mark.parametrize(("given", "kind", "words"), WRONG, ids=[str(given) for given, _, _ in WRONG])
def test_the_decorator_options_and_set_options_refuse_the_same_values(
    given: dict[str, Any], kind: type[Exception], words: str
) -> None:
    made = serve.deployment(Counter)

    for give in (lambda **options: serve.deployment(**options)(Counter), made.options, made.set_options):
        with pytest.raises(kind, match=words):
            give(**given)
    assert (made.name, made.num_replicas, made.version) == ("Counter", 1, None)


@pytest.mark.parametrize("prefix", ["/", "/hello", "/hello/world", None])
def test_a_route_prefix_is_a_path_or_nothing(prefix: str | None) -> None:
    assert serve.deployment(route_prefix=prefix)(Counter).route_prefix == prefix


def test_class_attributes_inherited_and_static_methods_are_there() -> None:
    class Base:
        scale = 10

        def predict(self, value: int) -> int:
            return self.compute(value)

        def compute(self, value: int) -> int:
            raise NotImplementedError

    @serve.deployment
    class Child(Base):
        def compute(self, value: int) -> int:
            return value * self.scale

        @staticmethod
        def plus_one(value: int) -> int:
            return value + 1

        @classmethod
        def scaled(cls, value: int) -> int:
            return cls.scale * value

    child = Child.bind()
    with InputNode() as inp:
        routes = {"/": child.predict.bind(inp), "/s": child.plus_one.bind(inp), "/c": child.scaled.bind(inp)}
    handle = served(DAGDriver.bind(routes))

    assert [ask(handle.predict_with_route, route, 2) for route in routes] == [20, 3, 20]


def test_a_dataclass_may_be_a_deployment() -> None:
    @serve.deployment
    @dataclasses.dataclass
    class Sum:
        left: int
        right: int = 2

        def __call__(self) -> int:
            return self.left + self.right

    assert ask(served(Sum.bind(1))) == 3


def test_a_wrapped_function_keeps_its_name_and_its_code() -> None:
    def loud(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any) -> str:
            return f"{function(*args)}!"

        return wrapper

    @serve.deployment
    @loud
    def greet(name: str) -> str:
        return f"hello {name}"

    assert greet.name == "greet"
    assert ask(served(greet.bind()), "you") == "hello you!"


def test_a_name_that_is_defined_again_means_the_newer_code() -> None:
    @serve.deployment
    class Chatbot:
        def __call__(self) -> str:
            return "first"

    first = Chatbot.bind()

    @serve.deployment  # type: ignore[no-redef]
    class Chatbot:
        def __call__(self) -> str:
            return "second"

    assert ask(served(first)) == "first"
    assert ask(served(Chatbot.bind())) == "second"


def test_a_built_application_is_a_target_of_run() -> None:
    application = serve.build(serve.deployment(Counter).options(name="Built").bind(3))

    assert list(application) == ["Built"]
    assert ask(served(application)) == 4
