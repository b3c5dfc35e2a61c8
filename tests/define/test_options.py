"""Options: defaults, aliases, what is refused and in which words."""

from __future__ import annotations

import pickle
import re
from functools import partial
from typing import Any

import pytest
from pydantic import ValidationError

from qserve.define.options import AutoscalingConfig, AutoscalingPolicy, DeploymentOptions, Options


def test_defaults_are_those_of_ray_serve() -> None:
    options = DeploymentOptions()

    assert options.name is None
    assert options.num_replicas == 1
    assert options.max_concurrent_queries == options.max_ongoing_requests == 100
    assert options.max_queued_requests == -1
    assert options.graceful_shutdown_timeout_s == 20
    assert options.graceful_shutdown_wait_loop_s == 2
    assert options.health_check_period_s == 10
    assert options.health_check_timeout_s == 30
    assert options.request_timeout_s is None
    assert options.max_constructor_retry_count == 20
    assert (options.init_args, options.init_kwargs) == ((), {})


@pytest.mark.parametrize(
    "given",
    [
        {"name": "x"},
        {"num_replicas": 3},
        {"route_prefix": "/x"},
        {"route_prefix": None},
        {"user_config": {"a": [1]}},
        {"max_concurrent_queries": 3},
        {"ray_actor_options": {"num_cpus": 0.15}},
        {"ray_actor_options": {}},
        {"ray_actor_options": None},
        {"autoscaling_config": {"min_replicas": 1, "max_replicas": 3}},
        {"graceful_shutdown_timeout_s": 0},
        {"graceful_shutdown_wait_loop_s": 1},
        {"health_check_period_s": 1},
        {"health_check_timeout_s": 1},
        {"version": "1"},
        {"init_args": (1,)},
        {"init_args": [1]},
        {"init_kwargs": {"a": 1}},
        {"max_queued_requests": 5},
        {"request_timeout_s": 0.5},
        {"cancel_on_disconnect": False},
        {"logging_config": {"log_level": "DEBUG"}},
        {"backpressure_config": {"status_code": 429, "retry_after_s": 7}},
        {"placement_group_bundles": [{"CPU": 1}], "placement_group_strategy": "PACK"},
        {"max_replicas_per_node": 4},
    ],
)
def test_every_documented_option_is_accepted(given: dict[str, Any]) -> None:
    options = DeploymentOptions(**given)

    for option in given:
        assert option in options.model_fields_set


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ({"name": 123}, TypeError, "name must be a string, got int 123"),
        ({"name": ""}, ValueError, "name must not be empty"),
        ({"num_replicas": 0}, ValueError, "num_replicas is expected to larger than 0"),
        ({"version": 1}, TypeError, "version must be a string, got int 1"),
        ({"init_args": {1}}, TypeError, "init_args must be a tuple, got set {1}"),
        ({"init_args": "hi"}, TypeError, "init_args must be a tuple, got str 'hi'"),
        ({"init_kwargs": [1]}, TypeError, "init_kwargs must be a dict, got list [1]"),
        ({"ray_actor_options": [1]}, TypeError, "ray_actor_options must be a dict, got list [1]"),
        ({"ray_actor_options": "hi"}, TypeError, "ray_actor_options must be a dict, got str 'hi'"),
        ({"route_prefix": 5}, TypeError, "route_prefix must be a string, got int 5"),
        ({"route_prefix": "x"}, ValueError, "route_prefix must start with '/'. Got 'x'."),
        (
            {"route_prefix": "/x/"},
            ValueError,
            "route_prefix must not end with '/' unless it's the root. Got '/x/'.",
        ),
        (
            {"route_prefix": "/{x}"},
            ValueError,
            "route_prefix may not contain wildcards. Got '/{x}'.",
        ),
        (
            {"route_prefix": "/-/x"},
            ValueError,
            "route_prefix must not be below /-/, where the gateway has its own pages. Got '/-/x'.",
        ),
        (
            {"route_prefix": "/%78"},
            ValueError,
            "route_prefix is a path without a query, and without escapes such as %20. Got '/%78'.",
        ),
        (
            {"route_prefix": "/x?y"},
            ValueError,
            "route_prefix is a path without a query, and without escapes such as %20. Got '/x?y'.",
        ),
        (
            {"max_concurrent_queries": -1},
            ValueError,
            "max_concurrent_queries (max_ongoing_requests) is expected to be larger than 0, got -1",
        ),
        (
            {"max_queued_requests": 0},
            ValueError,
            "max_queued_requests must be -1 (no limit) or at least 1, got 0",
        ),
        (
            {"request_timeout_s": 0},
            ValueError,
            "request_timeout_s must be larger than 0, or None for the application's default, got 0.0",
        ),
        (
            {"num_replicas": 2, "autoscaling_config": {"max_replicas": 3}},
            ValueError,
            "num_replicas and autoscaling_config cannot be given together; leave num_replicas "
            "out, or write num_replicas='auto'",
        ),
        (
            {"max_ongoing_requests": 2, "max_concurrent_queries": 3},
            ValueError,
            "max_ongoing_requests and max_concurrent_queries are one option under two names; give only one of them",
        ),
        (
            {"user_config": {1, 2}},
            ValueError,
            "user_config is not JSON-serializable: Object of type set is not JSON serializable",
        ),
    ],
)
def test_a_wrong_value_is_refused_in_these_words(given: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as caught:
        DeploymentOptions(**given)

    assert str(caught.value) == words
    assert not isinstance(caught.value, ValidationError)


@pytest.mark.parametrize(
    "given",
    [
        {"num_replicas": -1},
        {"num_replicas": "hi"},
        {"max_concurrent_queries": "hi"},
        {"max_concurrent_queries": [1]},
        {"max_ongoing_requests": "hi"},
        {"graceful_shutdown_timeout_s": -1},
        {"health_check_period_s": 0},
        {"backpressure_config": {"status_code": 500}},
        {"backpressure_config": {"unknown": 1}},
        {"autoscaling_config": {"unknown": 1}},
        {"autoscaling_config": {"min_replicas": 3, "max_replicas": 2}},
        {"autoscaling_config": {"initial_replicas": 5, "max_replicas": 2}},
        {"max_replicas_per_node": 0},
    ],
)
def test_a_malformed_number_is_a_validation_error(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DeploymentOptions(**given)


def test_an_unknown_option_names_the_nearest_known_one() -> None:
    words = "'num_replica' is not an option of deployment 'Model'. Did you mean 'num_replicas'?"
    with pytest.raises(TypeError, match=re.escape(words)):
        DeploymentOptions(name="Model", num_replica=2)


def test_an_option_of_ray_serve_that_is_not_there_says_why() -> None:
    words = "'request_router_config' is not an option of deployment 'Model': all replicas of a deployment take calls"
    with pytest.raises(TypeError, match=re.escape(words)):
        DeploymentOptions(name="Model", request_router_config={})


def test_an_unknown_option_like_nothing_known_gets_no_advice() -> None:
    with pytest.raises(TypeError, match=r"^'zzz' is not an option of a deployment\.$"):
        DeploymentOptions(zzz=2)


def test_max_ongoing_requests_is_another_name_of_max_concurrent_queries() -> None:
    options = DeploymentOptions(max_ongoing_requests=7)

    assert options.max_concurrent_queries == options.max_ongoing_requests == 7
    assert options.merged(max_ongoing_requests=8).max_concurrent_queries == 8
    assert options.merged(max_concurrent_queries=9).max_ongoing_requests == 9
    assert options.merged(max_ongoing_requests=None).max_concurrent_queries == 100


def test_auto_scales_between_1_and_100_replicas() -> None:
    scaling = DeploymentOptions(num_replicas="auto").autoscaling_config

    assert scaling is not None
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 100)
    assert scaling.target_ongoing_requests == 2


@pytest.mark.parametrize("given", [{"max_replicas": 9}, AutoscalingConfig(max_replicas=9)])
def test_auto_keeps_what_the_config_says(given: Any) -> None:
    options = DeploymentOptions(num_replicas="auto", autoscaling_config=given)

    assert options.autoscaling_config == AutoscalingConfig(max_replicas=9)


def test_the_older_name_of_the_scaling_target_is_accepted() -> None:
    scaling = AutoscalingConfig(target_num_ongoing_requests_per_replica=5)

    assert scaling.target_ongoing_requests == 5


def by_hour(context: Any) -> tuple[int, dict[str, Any]]:
    return 1, {}


BY_HOUR = AutoscalingPolicy(policy_function=f"{__name__}:by_hour")


@pytest.mark.parametrize(
    ("given", "policy"),
    [
        (by_hour, BY_HOUR),
        (f"{__name__}:by_hour", BY_HOUR),
        (f"{__name__}.by_hour", BY_HOUR),
        ({"policy_function": by_hour}, BY_HOUR),
        (AutoscalingPolicy(policy_function=by_hour), BY_HOUR),
        (
            {"policy_function": "a.b:C", "policy_kwargs": {"x": [1]}},
            AutoscalingPolicy(policy_function="a.b:C", policy_kwargs={"x": [1]}),
        ),
        ("ray.serve.autoscaling_policy:default_autoscaling_policy", AutoscalingPolicy()),
        ({}, AutoscalingPolicy()),
        (None, None),
    ],
)
def test_a_scaling_policy_is_kept_by_its_path(given: Any, policy: Any) -> None:
    assert AutoscalingConfig(policy=given).policy == policy


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (
            lambda context: (1, {}),
            'policy_function must be "module:function", or a function or class that a module def',
        ),
        (partial(by_hour, None), "policy_function must be"),
        ("by_hour", "policy_function must be .* not 'by_hour'"),
        ("rules:", "policy_function must be .* not 'rules:'"),
        (3, "policy"),
        ({"policy_function": by_hour, "policy_kwargs": {"x": {1}}}, "policy_kwargs is not JSON-serializable"),
        ({"policy_functions": "a:b"}, "policy_functions"),
    ],
)
def test_a_scaling_policy_that_no_other_process_could_import_is_refused(given: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        AutoscalingConfig(policy=given)


@pytest.mark.parametrize("given", [by_hour, f"{__name__}:by_hour", f"{__name__}.by_hour"])
def test_a_preload_is_kept_by_its_path(given: Any) -> None:
    assert DeploymentOptions(preload=given).preload == f"{__name__}:by_hour"


@pytest.mark.parametrize("given", [lambda: None, partial(by_hour, None), "by_hour", "rules:", 3])
def test_a_preload_that_no_other_process_could_import_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match='preload must be "module:function", or a function that a module defines, not'):
        DeploymentOptions(preload=given)


@pytest.mark.parametrize("option", ["max_requests", "max_memory_mb"])
def test_a_replica_that_would_be_replaced_at_once_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=option):
        DeploymentOptions(**{option: 0})


@pytest.mark.parametrize("option", ["upscaling_factor", "target_ongoing_requests", "look_back_period_s"])
def test_an_infinite_number_for_scaling_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=option):
        DeploymentOptions(autoscaling_config={option: float("inf")})


def test_merged_keeps_the_rest_and_leaves_the_original_alone() -> None:
    options = DeploymentOptions(name="a", num_replicas=2, user_config={"x": 1})

    changed = options.merged(num_replicas=3)

    assert (changed.name, changed.num_replicas, changed.user_config) == ("a", 3, {"x": 1})
    assert options.num_replicas == 2


def test_merged_validates_like_the_constructor() -> None:
    options = DeploymentOptions(name="Model")

    with pytest.raises(ValueError, match="larger than 0"):
        options.merged(num_replicas=0)
    with pytest.raises(TypeError, match="'nmae' is not an option of deployment 'Model'"):
        options.merged(nmae="x")


def test_the_newest_of_fixed_and_automatic_scaling_wins() -> None:
    fixed = DeploymentOptions(num_replicas=2)

    scaled = fixed.merged(autoscaling_config={"max_replicas": 3})
    fixed_again = scaled.merged(num_replicas=4)

    assert (scaled.num_replicas, scaled.autoscaling_config is None) == (1, False)
    assert (fixed_again.num_replicas, fixed_again.autoscaling_config) == (4, None)


def test_none_gives_an_option_its_default_again() -> None:
    options = DeploymentOptions(num_replicas=3, max_concurrent_queries=5, user_config=1)

    changed = options.merged(num_replicas=None, max_concurrent_queries=None, user_config=None)

    assert (changed.num_replicas, changed.max_concurrent_queries) == (1, 100)
    assert changed.user_config is None


def test_an_unset_route_prefix_differs_from_none() -> None:
    assert "route_prefix" not in DeploymentOptions().model_fields_set
    assert "route_prefix" in DeploymentOptions(route_prefix=None).model_fields_set
    assert "route_prefix" in DeploymentOptions().merged(route_prefix=None).model_fields_set


def test_options_are_frozen() -> None:
    with pytest.raises(ValidationError):
        DeploymentOptions().num_replicas = 2


def test_options_survive_pickling_with_what_was_set() -> None:
    options = DeploymentOptions(name="a", num_replicas="auto")

    copied = pickle.loads(pickle.dumps(options))

    assert copied == options
    assert copied.model_fields_set == options.model_fields_set


def test_type_checkers_know_the_same_options() -> None:
    assert {*Options.__annotations__} == {*DeploymentOptions.model_fields, "max_ongoing_requests"}
