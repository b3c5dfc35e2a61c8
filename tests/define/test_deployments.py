"""``@deployment``: what it accepts, and the Deployment it makes."""

from __future__ import annotations

from typing import Any

import cloudpickle
import pytest
from pydantic import ValidationError

from qserve.define.deployments import Deployment, deployment
from qserve.define.options import DeploymentOptions
from qserve.deployment_graph import ClassNode, FunctionNode


class Model:
    def forward(self, x: int) -> int:
        return x * self.weight

    def __init__(self, weight: int = 1) -> None:
        self.weight = weight


def double(x: int) -> int:
    return 2 * x


async def slow_double(x: int) -> int:
    return 2 * x


@pytest.mark.parametrize("body", [Model, double, slow_double])
@pytest.mark.parametrize("decorate", [deployment, deployment()])
def test_the_decorator_works_bare_and_called(body: Any, decorate: Any) -> None:
    made = decorate(body)

    assert isinstance(made, Deployment)
    assert made.func_or_class is body
    assert made.name == body.__name__


def test_the_decorator_takes_options() -> None:
    made = deployment(name="counter", num_replicas=2)(Model)

    assert (made.name, made.num_replicas) == ("counter", 2)


def test_a_leading_string_is_ignored() -> None:
    assert deployment("counter", num_replicas=2)(Model).name == "Model"


def test_a_class_made_at_run_time_gets_its_own_name() -> None:
    def class_factory() -> type:
        class MyInlineClass:
            pass

        return MyInlineClass

    node = deployment(class_factory()).bind(3)

    assert node.get_label() == "MyInlineClass"
    assert node.get_args() == (3,)


def test_every_attribute_is_readable() -> None:
    given: dict[str, Any] = {
        "name": "told",
        "num_replicas": 2,
        "user_config": {"a": 1},
        "max_concurrent_queries": 3,
        "max_queued_requests": 4,
        "route_prefix": "/x",
        "ray_actor_options": {"num_cpus": 1},
        "init_args": (1,),
        "init_kwargs": {"b": 2},
        "version": "v1",
    }
    plain = deployment(Model)

    for made in (deployment(**given)(Model), plain.options(**given)):
        assert {name: getattr(made, name) for name in given} == given
        assert made.max_ongoing_requests == 3
        assert made.func_or_class is Model
    assert plain.options(ray_actor_options={}).ray_actor_options == {}
    read = (plain.name, plain.num_replicas, plain.user_config, plain.max_concurrent_queries)
    assert read == ("Model", 1, None, 100)


def test_options_return_a_new_deployment_and_keep_the_rest() -> None:
    first = deployment(num_replicas=2)(Model)

    second = first.options(name="m1", max_concurrent_queries=3)

    assert (second.name, second.num_replicas, second.max_concurrent_queries) == ("m1", 2, 3)
    assert (first.name, first.max_concurrent_queries) == ("Model", 100)


def test_options_chain_with_bind() -> None:
    node = deployment(Model).options(name="m1", max_concurrent_queries=3).bind(1)

    assert isinstance(node, ClassNode)
    assert node.get_options() == DeploymentOptions(name="m1", max_concurrent_queries=3)


def test_options_can_exchange_the_class() -> None:
    assert deployment(Model).options(func_or_class=double).name == "double"


def test_set_options_changes_in_place() -> None:
    made = deployment(Model)

    made.set_options(num_replicas=3, func_or_class=double)

    assert (made.num_replicas, made.func_or_class) == (3, double)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"name": 123}, TypeError),
        ({"num_replicas": 0}, ValueError),
        ({"num_replicas": -1}, ValidationError),
        ({"num_replicas": "hi"}, ValidationError),
        ({"max_concurrent_queries": 0}, ValueError),
        ({"max_concurrent_queries": "hi"}, ValidationError),
        ({"version": 1}, TypeError),
        ({"init_args": {1, 2, 3}}, TypeError),
        ({"init_kwargs": [1, 2, 3]}, TypeError),
        ({"ray_actor_options": "hi"}, TypeError),
        ({"num_replicas": 1, "autoscaling_config": {}}, ValueError),
        ({"route_prefix": "no-slash"}, ValueError),
        ({"unknown": 1}, TypeError),
    ],
)
def test_decorator_options_and_set_options_refuse_alike(given: dict[str, Any], kind: type[Exception]) -> None:
    made = deployment(Model)

    with pytest.raises(kind):
        deployment(**given)(Model)
    with pytest.raises(kind):
        made.options(**given)
    with pytest.raises(kind):
        made.set_options(**given)
    assert made.config == DeploymentOptions()


@pytest.mark.parametrize("prefix", ["/", "/hello", "/hello/world", None])
def test_a_route_prefix_is_a_path_or_nothing(prefix: str | None) -> None:
    assert deployment(route_prefix=prefix)(Model).route_prefix == prefix


def test_an_unknown_option_names_the_deployment() -> None:
    words = "'num_replica' is not an option of deployment 'Model'. Did you mean 'num_replicas'?"

    with pytest.raises(TypeError) as caught:
        deployment(num_replica=2)(Model)

    assert str(caught.value) == words


def test_a_refused_value_notes_the_deployment() -> None:
    with pytest.raises(ValueError, match="num_replicas") as caught:
        deployment(num_replicas=0)(Model)

    assert caught.value.__notes__ == ["in the options of deployment 'Model'"]


def test_calling_a_deployment_is_refused() -> None:
    made: Any = deployment(Model)

    for args in ((), (1, 2)):
        with pytest.raises(RuntimeError) as caught:
            made(*args)
        assert str(caught.value) == (
            "Deployments cannot be constructed directly. Use `deployment.deploy() instead.` "
            "Or write Model.bind(...) and give the node to serve.run."
        )


def test_a_deployment_has_no_remote() -> None:
    made: Any = deployment(Model)

    with pytest.raises(AttributeError, match="'Deployment' object has no attribute 'remote'"):
        made.remote(1)


@pytest.mark.parametrize("thing", [1, ["a"], object()])
def test_only_classes_and_functions_become_deployments(thing: Any) -> None:
    words = "@serve.deployment must be called on a class or function."
    with pytest.raises(TypeError, match=words):
        deployment(thing)
    with pytest.raises(TypeError, match=words):
        deployment()(thing)
    with pytest.raises(TypeError, match=words):
        deployment(Model).set_options(func_or_class=thing)


def test_a_deployment_is_not_decorated_twice() -> None:
    with pytest.raises(TypeError) as caught:
        deployment(deployment(Model))

    assert str(caught.value) == (
        "@serve.deployment must be called on a class or function. 'Model' is a deployment already; "
        "write Model.options(...) to change its options."
    )


def test_bind_makes_class_and_function_nodes() -> None:
    assert isinstance(deployment(Model).bind(), ClassNode)
    assert isinstance(deployment(double).bind(), FunctionNode)
    assert isinstance(deployment(slow_double).bind(), FunctionNode)


def test_bind_without_arguments_takes_those_of_the_options() -> None:
    made = deployment(init_args=(1,), init_kwargs={"a": 2})(Model)

    assert (made.bind().get_args(), made.bind().get_kwargs()) == ((1,), {"a": 2})
    assert (made.bind(5).get_args(), made.bind(5).get_kwargs()) == ((5,), {})


def test_deployments_travel_with_closures() -> None:
    factor = 3

    @deployment(num_replicas=2)
    def triple(x: int) -> int:
        return factor * x

    copied = cloudpickle.loads(cloudpickle.dumps(triple))

    assert (copied.name, copied.num_replicas) == ("triple", 2)
    assert copied.func_or_class(2) == 6


def test_the_repr_shows_the_name() -> None:
    assert repr(deployment(name="m")(Model)) == "Deployment(name='m')"


def test_a_malformed_number_is_named_with_its_deployment_in_the_first_line() -> None:
    with pytest.raises(ValidationError) as caught:
        deployment(Model).options(num_replicas="two", max_retries=-1)  # type: ignore[arg-type]

    first, *others = str(caught.value).splitlines()
    assert first == "2 validation errors for num_replicas='two', max_retries=-1 of deployment 'Model'"
    assert "  Input should be a valid integer" in "\n".join(others)
    assert not hasattr(caught.value, "__notes__")


def test_a_method_of_a_class_that_is_not_bound_says_what_to_bind() -> None:
    made = deployment(Model)

    with pytest.raises(AttributeError, match=r"node = Model\.bind\(\.\.\.\); node\.forward\.bind\(\.\.\.\)"):
        made.forward.bind(1)  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="^'Deployment' object has no attribute 'nothing'$"):
        made.nothing  # type: ignore[attr-defined]  # noqa: B018
