"""Replicas that follow the load, with real processes: up, to zero and back, by policies, and when these fail."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from http_client import Client
from processes import wait_until
from rendezvous import arrive, await_arrival

import qserve
from qserve.deploy.status import DeploymentStatusOverview
from qserve.engine.policy import AutoscalingContext

pytestmark = pytest.mark.slow
APP = "pool"
SMALL: Any = {"max_ongoing_requests": 1, "ray_actor_options": {"num_cpus": 0.1}}
QUICK: Any = {
    "min_replicas": 0,
    "max_replicas": 4,
    "target_ongoing_requests": 1,
    "upscale_delay_s": 0,
    "downscale_delay_s": 1,
    "look_back_period_s": 1,
}


@qserve.deployment(**SMALL, autoscaling_config=QUICK)
class Model:
    """Answers with its process, when the test says so."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, request: Any = None) -> int:
        await_arrival(self.folder, "answer")
        return os.getpid()


@pytest.fixture
def run_pool(client: Client) -> Iterator[Any]:
    """Serve an application that ends with the test."""

    def run(node: Any, **options: Any) -> Any:
        return qserve.run(node, name=APP, route_prefix=f"/{APP}", **options)

    yield run
    if APP in qserve.status().applications:
        qserve.delete(APP)


def deployment(name: str = "Model") -> DeploymentStatusOverview:
    return qserve.status().applications[APP].deployments[name]


def runs(count: int, name: str = "Model") -> bool:
    found = deployment(name)
    return (found.target_num_replicas, found.replica_states.get("RUNNING", 0)) == (count, count)


def test_replicas_follow_the_load_to_their_limit_to_zero_and_back(
    run_pool: Any, client: Client, tmp_path: Path
) -> None:
    handle = run_pool(Model.bind(str(tmp_path)))

    wait_until(lambda: runs(0), description="the first replica has gone")
    found = deployment()
    assert (found.status, found.status_trigger, found.replica_states) == ("HEALTHY", "AUTOSCALING", {})
    assert client.is_healthy()
    assert found.last_scaled is not None
    assert found.last_scaled.reason == "0 calls ongoing at 1 replica, target 1 each"

    calls = [handle.remote()]
    wait_until(lambda: deployment().running_calls == 1, description="the call that has waited runs")
    assert "for a deployment without replicas" in last_reason()
    calls += [handle.remote() for _ in range(9)]
    wait_until(lambda: runs(4) and deployment().running_calls >= 4, description="all replicas run calls")
    arrive(str(tmp_path), "answer")
    assert len({call.result(60) for call in map(_response, calls)}) == 4
    assert last_reason().endswith("replica, target 1 each") or "replicas, target 1 each" in last_reason()

    wait_until(lambda: runs(0), description="all replicas have gone")
    answer = client.get(f"/{APP}")
    assert answer.status == 200 and int(answer.text) > 0


def _response(call: Any) -> Any:
    return getattr(call, "ref", call)


def last_reason() -> str:
    found = deployment().last_scaled
    return "" if found is None else found.reason


def once_two(context: AutoscalingContext, then: str) -> tuple[int, dict[str, Any]]:
    """A policy that asks for two replicas, and then never answers again in any useful way."""
    if not context.policy_state:
        return 2, {"asked": True}
    if then == "hangs":
        time.sleep(3600)
    if then == "ends":
        os._exit(3)
    raise ValueError("no rule for this hour")


def as_reported(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """A policy that asks for as many replicas as one of them says."""
    return max(context.aggregated_metrics.get("wanted", {}).values(), default=1), {}


def test_a_policy_is_told_what_replicas_report(run_pool: Any, tmp_path: Path) -> None:
    @qserve.deployment(**SMALL, autoscaling_config={**QUICK, "policy": as_reported})
    class Reporting:
        def record_autoscaling_stats(self) -> dict[str, float]:
            return {"wanted": 3}

    run_pool(Reporting.bind())

    wait_until(lambda: runs(3, "Reporting"), description="as many run as they say")
    found = deployment("Reporting").last_scaled
    assert found is not None and found.reason == "its policy asks for 3"


def test_a_policy_that_fails_leaves_the_number_as_it_is_and_the_status_says_why(run_pool: Any) -> None:
    @qserve.deployment
    class Front:
        def __init__(self, *others: Any) -> None: ...

    fail = {"raises": "ValueError: no rule for this hour", "ends": "its process has ended",
            "hangs": "it has not answered for 5 s"}  # fmt: skip
    scaled = [
        qserve.deployment(
            name=how,
            **SMALL,
            autoscaling_config={**QUICK, "policy": {"policy_function": once_two, "policy_kwargs": {"then": how}}},
        )(Model.func_or_class)
        for how in fail
    ]
    run_pool(Front.bind(*(one.bind("") for one in scaled)))

    for how, why in fail.items():
        wait_until(lambda how=how, why=why: why in said_of(how), description=f"the failure of what {how} is shown")
        assert said_of(how).startswith("it stays as it is: its policy test_pools:once_two failed: ")
        assert runs(2, how)


def said_of(name: str) -> str:
    found = deployment(name).last_scaled
    return "" if found is None else found.reason


def test_what_something_else_scales_has_no_autoscaling_config(run_pool: Any) -> None:
    with pytest.raises(ValueError, match="'Model' has an autoscaling_config, and external_scaler_enabled leaves"):
        run_pool(Model.bind(""), external_scaler_enabled=True)
