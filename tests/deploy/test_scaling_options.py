"""What a deployment says of autoscaling is registered with every default filled in, by Ray Serve's rules."""

from __future__ import annotations

from typing import Any

import pytest

import qserve as serve
from qserve.define.compile import compile_application
from qserve.deploy.registration import record_of
from qserve.wire.application import ApplicationRecord, Scaling
from qserve.wire.codec import Codec


@serve.deployment
class Model:
    """A deployment without options."""


def by_hour(context: Any, first: int) -> tuple[int, dict[str, Any]]:
    return first, {}


AUTO = Scaling(max_replicas=100)


@pytest.mark.parametrize(
    ("options", "scaling"),
    [
        ({}, None),
        ({"num_replicas": 3}, None),
        ({"num_replicas": "auto"}, AUTO),
        ({"autoscaling_config": {}}, Scaling(1, 1, None, 2.0, 30.0, 30.0, 600.0, None, 1.0, 1.0, "mean")),
        ({"num_replicas": "auto", "autoscaling_config": {"max_replicas": 7}}, Scaling(max_replicas=7)),
        (
            {"autoscaling_config": {"min_replicas": 0, "initial_replicas": 2, "max_replicas": 5}},
            Scaling(min_replicas=0, initial_replicas=2, max_replicas=5),
        ),
        ({"autoscaling_config": {"smoothing_factor": 0.5}}, Scaling(upscaling_factor=0.5, downscaling_factor=0.5)),
        (
            {"autoscaling_config": {"smoothing_factor": 0.5, "upscale_smoothing_factor": 0.7}},
            Scaling(upscaling_factor=0.7, downscaling_factor=0.5),
        ),
        (
            {"autoscaling_config": {"upscaling_factor": 3, "upscale_smoothing_factor": 0.7, "downscaling_factor": 2}},
            Scaling(upscaling_factor=3.0, downscaling_factor=2.0),
        ),
        (
            {"autoscaling_config": {"target_num_ongoing_requests_per_replica": 9, "downscale_to_zero_delay_s": 5}},
            Scaling(target_ongoing_requests=9.0, downscale_to_zero_delay_s=5.0),
        ),
        (
            {"autoscaling_config": {"policy": {"policy_function": by_hour, "policy_kwargs": {"first": 2}}}},
            Scaling(policy=f"{__name__}:by_hour", policy_kwargs='{"first": 2}'),
        ),
    ],
)
def test_the_registered_scaling_has_every_default(options: dict[str, Any], scaling: Scaling | None) -> None:
    record = record_of(compile_application(Model.options(**options).bind()), Codec())

    assert record.deployments["Model"].scaling == scaling
    assert ApplicationRecord.decode(record.encode()).deployments["Model"].scaling == scaling
