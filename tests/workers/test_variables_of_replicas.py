"""What a replica is told of its host before user code is imported."""

from __future__ import annotations

import os
from typing import Any

import pytest
from qserve_workers.process import resources
from qserve_workers.process.resources import DEVICES, THREADS, variables_of
from qserve_workers.replica.spec import ReplicaSpec

from qserve.base.settings import Settings
from qserve.wire.application import ApplicationRecord, DeploymentRecord, Resources


def told(inherited: dict[str, str], devices: tuple[str, ...] = (), **options: Any) -> dict[str, str]:
    record = ApplicationRecord("shop", "v1", "Model", deployments={"Model": DeploymentRecord("Model", **options)})
    return variables_of(ReplicaSpec("Model-a-1", record, "Model", Settings(), devices=devices), inherited)


@pytest.mark.parametrize(("cpus", "threads"), [(4.0, "4"), (2.5, "2"), (0.5, "1"), (0.0, "1")])
def test_the_cpus_of_a_replica_are_the_threads_of_its_libraries(cpus: float, threads: str) -> None:
    assert told({}, resources=Resources(cpus=cpus)) == dict.fromkeys(THREADS, threads)


def test_what_is_not_said_stays_as_it_is_in_the_worker() -> None:
    assert told({"OMP_NUM_THREADS": "3", DEVICES: "0,1"}) == {}


def test_variables_of_the_deployment_win_over_its_cpus() -> None:
    found = told({}, resources=Resources(cpus=4.0), env={"OMP_NUM_THREADS": "7", "MODE": "fast"})

    assert (found["OMP_NUM_THREADS"], found["MKL_NUM_THREADS"], found["MODE"]) == ("7", "4", "fast")


def test_a_variable_may_go_on_from_that_of_the_worker() -> None:
    found = told({"DATA": "/data"}, env={"DATA": "${DATA}/shop:${NONE}", "PRICE": "5$ or $DATA"})

    assert found == {"DATA": "/data/shop:", "PRICE": "5$ or $DATA"}


def test_a_replica_sees_the_gpus_that_were_assigned_to_it() -> None:
    assert told({DEVICES: "0,1,2"}, devices=("0", "2")) == {DEVICES: "0,2"}


def test_a_replica_that_is_forked_from_a_process_with_its_variables_goes_on_from_those_of_the_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resources._inherited.cache_clear()
    monkeypatch.setenv("DATA", "/data")
    record = ApplicationRecord(
        "shop", "v1", "Model", deployments={"Model": DeploymentRecord("Model", env={"DATA": "${DATA}/shop"})}
    )

    for _ in range(2):  # in the process that runs its preload, and in the replica
        resources.apply(ReplicaSpec("Model-a-1", record, "Model", Settings()))

    assert os.environ["DATA"] == "/data/shop"
    resources._inherited.cache_clear()
