"""The options of a deployment, read back from its record."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

import qserve
from qserve.appfile.options import options_of, options_to_write
from qserve.define.compile import compile_application
from qserve.deploy.registration import record_of
from qserve.wire.application import DeploymentRecord, Resources, Scaling
from qserve.wire.codec import Codec

OTHERS: dict[str, Any] = {
    "user_config": '{"a": 1}',
    "retry_on": ["ConnectionError"],
    "scaling": Scaling(max_replicas=3),
    "resources": Resources(cpus=1.0),
    "env": {"A": "b"},
    "logging": {"log_level": "DEBUG"},
}


@qserve.deployment
class Model:
    def reconfigure(self, config: Any) -> None: ...


@pytest.mark.parametrize(
    "field", [one.name for one in fields(DeploymentRecord) if one.name not in ("name", "replicated", "tasks")]
)
def test_each_field_of_a_record_is_an_option_that_can_be_told(field: str) -> None:
    record = DeploymentRecord("Model")
    other = replace(record, **{field: OTHERS.get(field, 9)})

    assert options_of(other) != options_of(record)
    assert field == "version" or options_to_write(other) != options_to_write(record)  # only code has versions


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_replicas": 3, "max_ongoing_requests": 5, "user_config": {"a": [1]}, "max_retries": 2},
        {"autoscaling_config": {"min_replicas": 0, "max_replicas": 9, "upscaling_factor": 0.5}},
        {"num_replicas": "auto"},
        {"autoscaling_config": {"policy": {"policy_function": "rules:by_hour", "policy_kwargs": {"at": [8]}}}},
        {"ray_actor_options": {"num_cpus": 2, "resources": {"x": 1}, "runtime_env": {"env_vars": {"A": "b"}}}},
        {
            "backpressure_config": {"status_code": 429},
            "logging_config": {"encoding": "JSON"},
            "max_replicas_per_node": 2,
        },
    ],
)
def test_options_that_are_read_back_make_the_same_record(options: dict[str, Any]) -> None:
    def record(**given: Any) -> DeploymentRecord:
        return record_of(compile_application(Model.options(**given).bind()), Codec()).deployments["Model"]

    assert record(**options_to_write(record(**options))) == record(**options)
