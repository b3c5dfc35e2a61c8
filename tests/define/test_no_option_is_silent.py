"""What a program may set has an effect, or is named in a warning, or is refused: nothing is taken without a word."""

from __future__ import annotations

import ast
import inspect
import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import qserve as serve
from qserve.base import unused
from qserve.calls.ref import current
from qserve.config import AutoscalingConfig, HTTPOptions
from qserve.define.application import set_defaults
from qserve.define.compile import compile_application
from qserve.define.options import BackpressureConfig, DeploymentOptions, LoggingConfig
from qserve.deploy.registration import record_of
from qserve.local.run import shutdown_local
from qserve.wire.codec import Codec

ROOT = Path(__file__).parents[2]
GIVEN: dict[str, Any] = {
    "graceful_shutdown_wait_loop_s": 1,
    "placement_group_bundle_label_selector": [{"a": "b"}],
    "placement_group_bundles": [{"CPU": 1}],
    "placement_group_strategy": "PACK",
}


@serve.deployment
class Model:
    def __init__(self, *others: Any) -> None: ...


def serve_here(node: Any) -> None:
    """Do what ``run`` and ``deploy`` do first."""
    record_of(compile_application(node), Codec())


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def tree_of(path: Path) -> ast.Module:
    """Parse a module, again where a traceback was formatted in another thread meanwhile (CPython issue 106905)."""
    while True:
        try:
            return ast.parse(path.read_text())
        except SystemError:
            pass


@cache
def read_attributes() -> frozenset[str]:
    """The names of all attributes that code outside of the options' own modules reads."""
    own = {ROOT / "qserve" / "define" / name for name in ("options.py", "deployments.py", "http_options.py")}

    def attributes() -> Iterator[str]:
        for folder in ("qserve", "workers", "gateway"):
            for path in (ROOT / folder).rglob("*.py"):
                if path not in own and "drawing" not in path.parts:
                    yield from (node.attr for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute))

    return frozenset(attributes())


@pytest.mark.parametrize("option", DeploymentOptions.model_fields)
def test_an_option_of_a_deployment_is_read_by_something_or_warned_about(
    option: str, caplog: pytest.LogCaptureFixture
) -> None:
    if option not in unused.DEPLOYMENT:
        assert option in read_attributes()
        return

    serve_here(Model.options(**{option: GIVEN[option]}).bind())

    [warning] = warnings_of(caplog)
    assert warning.startswith("deployment 'Model': these options have no effect: ")
    assert f"{option} ({unused.DEPLOYMENT[option]})" in warning


@pytest.mark.parametrize("model", [AutoscalingConfig, BackpressureConfig])
def test_the_parts_of_an_option_are_used_or_warned_about(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    silent = set(model.model_fields) - read_attributes()

    assert silent == ({"metrics_interval_s"} if model is AutoscalingConfig else set())
    serve_here(Model.options(autoscaling_config=dict.fromkeys(("max_replicas", *silent), 3)).bind())
    assert ["autoscaling_config.metrics_interval_s (the load is" in one for one in warnings_of(caplog)] == [
        True for _ in silent
    ]


def test_several_options_without_effect_are_named_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    obeyed = {"num_cpus": 1, "num_gpus": 1, "memory": 1 << 30, "resources": {"disk": 1}, "accelerator_type": "T4"}
    given = {**obeyed, "label_selector": {"a": "b"}, "object_store_memory": 9, "fallback_strategy": [{}]}
    options = {"placement_group_strategy": "PACK", "max_replicas_per_node": 1, "ray_actor_options": given}
    serve_here(Model.options(**options).bind())

    [warning] = warnings_of(caplog)
    assert "these options have no effect: fallback_strategy (" in warning
    assert "object_store_memory (" in warning and "placement_group_strategy (" in warning
    assert not [name for name in (*obeyed, "label_selector", "max_replicas_per_node") if f" {name} (" in warning]


def test_what_a_runtime_env_says_in_vain_is_named_and_its_variables_are_not(caplog: pytest.LogCaptureFixture) -> None:
    given = {"env_vars": {"MODE": "fast", "PYTHONPATH": "lib", "QSERVE_LOG_LEVEL": "debug"}, "pip": ["x"], "uv": None}
    serve_here(Model.options(ray_actor_options={"runtime_env": given}).bind())

    [warning] = warnings_of(caplog)
    assert warning.startswith("runtime_env of deployment 'Model': these options have no effect: pip (")
    assert "env_vars.PYTHONPATH (" in warning and "env_vars.QSERVE_LOG_LEVEL (" in warning
    assert "MODE" not in warning and "uv" not in warning


def test_defaults_are_not_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    serve_here(Model.options(logging_config=None, autoscaling_config=None).bind())

    assert warnings_of(caplog) == []


@pytest.mark.parametrize("key", sorted(unused.ACTOR_OPTIONS))
def test_a_key_of_the_actor_options_is_known(key: str) -> None:
    given = {"accelerator_type": "T4", "label_selector": {"a": "b"}, "resources": {"a": 1}, "runtime_env": {}}

    assert Model.options(ray_actor_options={key: given.get(key, 1)}).ray_actor_options == {key: given.get(key, 1)}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"num_cpus": "many"}, "num_cpus"),
        ({"num_cpus": -1}, "num_cpus"),
        ({"num_gpus": 1.5}, r"num_gpus \(1.5\) must be a whole number, or a part of one GPU"),
        ({"num_gpus": 0.001}, r"num_gpus \(0.001\) must be 0, or at least 0.01"),
        ({"memory": float("nan")}, "memory"),
        ({"resources": {"tpu": -1}}, "resources"),
        ({"label_selector": {"zone": 1}}, "label_selector"),
        ({"runtime_env": {"env_vars": {"MODE": 1}}}, "env_vars of runtime_env must be a dict of text by text"),
        ({"runtime_env": {"env_vars": ["MODE"]}}, "env_vars of runtime_env must be a dict of text by text"),
        ({"runtime_env": {"env_vars": {"A=B": "c"}}}, "'A=B' cannot be set"),
        ({"runtime_env": {"env_vars": {"": "c"}}}, "'' cannot be set"),
        ({"runtime_env": {"env_vars": {"A": "\0"}}}, "'A' cannot be set"),
        ({"runtime_env": {"env_var": {}}}, "'env_var' is not a key of runtime_env. Did you mean 'env_vars'"),
    ],
)
def test_what_a_replica_cannot_take_is_refused_when_it_is_declared(given: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Model.options(ray_actor_options=given)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"log_level": "LOUD"}, "'LOUD' is not a level, such as INFO"),
        ({"encoding": "XML"}, "encoding"),
        ({"additional_log_standard_attrs": ["nam"]}, "'nam' is not an attribute of logging.LogRecord. .*'name'"),
        ({"level": "INFO"}, "level"),
    ],
)
def test_logs_that_cannot_be_are_refused_when_they_are_declared(given: dict[str, Any], why: str) -> None:
    for refuse in (Model.options, lambda **options: serve.run(Model.bind(), local=True, **options)):
        with pytest.raises(ValueError, match=why):
            refuse(logging_config=given)


def test_the_logs_of_an_application_are_those_of_deployments_that_have_none() -> None:
    one, other = Model.options(name="One"), Model.options(name="Other", logging_config={"log_level": "ERROR"})
    built = compile_application(one.bind(other.bind()))
    set_defaults(built, LoggingConfig(encoding="JSON"), {"A": "shared"})

    records = record_of(built, Codec()).deployments

    assert records["One"].logging == {"encoding": "JSON"}
    assert records["Other"].logging == {"log_level": "ERROR"}
    assert {name: record.env for name, record in records.items()} == {"One": {"A": "shared"}, "Other": {"A": "shared"}}


def test_an_unknown_key_of_the_actor_options_is_refused_with_the_nearest() -> None:
    with pytest.raises(TypeError, match="'num_cpu' is not a key of ray_actor_options. Did you mean 'num_cpus'"):
        Model.options(ray_actor_options={"num_cpu": 1})


@pytest.mark.parametrize("key", [*HTTPOptions.model_fields, *unused.HTTP])
def test_a_key_of_http_options_has_an_effect_or_is_warned_about(key: str, caplog: pytest.LogCaptureFixture) -> None:
    HTTPOptions.of({key: "8001"})

    assert [f"{key} (" in warning for warning in warnings_of(caplog)] == ([True] if key in unused.HTTP else [])
    assert key in unused.HTTP or key in read_attributes()


def test_an_unknown_key_of_http_options_is_refused_with_the_nearest() -> None:
    with pytest.raises(TypeError, match="'prot' is not a key of http_options. Did you mean 'port'"):
        serve.start(http_options={"prot": 8001})
    with pytest.raises(TypeError, match="'nonsense' is not a key of http_options"):
        serve.start(http_options={"nonsense": 1})


@pytest.mark.parametrize("argument", [*inspect.signature(serve.run).parameters])
def test_an_argument_of_run_has_an_effect(argument: str) -> None:
    body = inspect.getsource(serve.run).partition('"""')[2].partition('"""')[2]

    assert argument == "_blocking" or argument in body


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"ray_actor_options": {"num_cpus": 0}}, "num_cpus"),
        ({"ray_actor_options": {"num_gpus": 0.5}}, "num_gpus"),
        ({"ray_actor_options": {"memory": 2**30}}, "memory"),
        ({"ray_actor_options": {"runtime_env": {"env_vars": {"A": "1"}}}}, "runtime_env.env_vars"),
        ({"logging_config": {"log_level": "ERROR"}}, "logging_config"),
    ],
)
def test_what_only_a_process_of_its_own_can_obey_is_warned_about_in_local_mode(
    option: dict[str, Any], named: str, caplog: pytest.LogCaptureFixture
) -> None:
    serve.run(Model.options(name="Set", **option).bind(Model.bind()), local=True)
    shutdown_local()
    assert warnings_of(caplog) == [f"deployment 'Set': these options have no effect: {named} ({unused.LOCAL})"]
    caplog.clear()
    serve_here(Model.options(**option).bind())
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("argument", unused.START)
def test_an_argument_of_start_without_effect_is_warned_about(
    argument: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qserve.api._ensure_cluster", lambda *address: None)
    monkeypatch.setattr("qserve.api._wait_for_gateways", lambda cluster, change: None)

    serve.start(**{argument: True})

    [warning] = warnings_of(caplog)
    assert f"{argument} ({unused.START[argument]})" in warning


def test_an_unknown_argument_of_start_is_refused_with_the_nearest() -> None:
    with pytest.raises(TypeError, match="'detatched' is not an argument of `start`. Did you mean 'detached'"):
        serve.start(detatched=True)


def test_init_starts_nothing_and_names_what_it_was_given(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(current, "installed", None)  # other tests of this process may serve applications
    monkeypatch.setattr("qserve.api._cluster", None)

    serve.init("auto", num_cpus=4, runtime_env={"pip": ["x"]})

    [warning] = warnings_of(caplog)
    assert all(name in warning for name in ("address (", "num_cpus (", "runtime_env ("))
    assert not serve.is_initialized()


def test_variables_of_ray_serve_are_named(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_ENABLE_NEW_HANDLE_API", "1")

    unused.warn_of_environment()

    [warning] = warnings_of(caplog)
    assert "RAY_SERVE_ENABLE_NEW_HANDLE_API" in warning
