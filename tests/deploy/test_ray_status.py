"""Statuses and triggers are Ray Serve's: what follows from records, reports, decisions and queues."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from qserve.__main__ import main
from qserve.broker.load import QueueLoad
from qserve.deploy.installation import Installation
from qserve.deploy.status import (
    ApplicationStatus,
    DeploymentStatus,
    DeploymentStatusTrigger,
    application_status,
    deployment_status,
)
from qserve.fleet.store import FleetStore
from qserve.schema import ServeStatus
from qserve.wire.application import ApplicationRecord, DeploymentRecord, Scaling
from qserve.wire.fleet import Drain, HostRecord, Rollout, Scaled, Wish
from qserve.wire.status import FAILED, RUNNING, STARTING, WAITING, ReplicaStatus

MODEL = DeploymentRecord("Model", num_replicas=2)
SCALED = DeploymentRecord("Model", num_replicas=1, scaling=Scaling(max_replicas=9))
SHOP = ApplicationRecord(
    "shop", "v1", "Model", route_prefix="/", deployments={"Model": MODEL}, deployed_at=1.5, place="active"
)


def replicas(*states: str, **more: Any) -> list[ReplicaStatus]:
    return [ReplicaStatus(f"r{number}", "Model", "v1", state, **more) for number, state in enumerate(states)]


def failed(failures: int = 0, message: str = "its constructor failed: no file") -> list[ReplicaStatus]:
    return replicas(FAILED, failures=failures, message=message)


def died() -> list[ReplicaStatus]:
    return replicas(RUNNING, RUNNING) + failed(0, "died 7 times within 60 s, the last time: exit code 3")


def decided(count: int, trigger: str = "", **more: Any) -> dict[str, Any]:
    return {"scaled": Scaled(count, trigger=trigger, **more)}


def by_hand(count: int, configured: int = 2, before: int = 2) -> dict[str, Any]:
    return {"wish": Wish(count, configured, scaled_by="ada on a with `qserve scale`", scaled_from=before)}


@pytest.mark.parametrize(
    ("wanted", "reported", "more", "status", "trigger", "states", "message"),
    [
        (MODEL, replicas(RUNNING, RUNNING), {}, "HEALTHY", "CONFIG_UPDATE_COMPLETED", {"RUNNING": 2}, ""),
        (MODEL, replicas(*[RUNNING] * 5), {}, "HEALTHY", "CONFIG_UPDATE_COMPLETED", {"RUNNING": 5}, ""),
        (MODEL, replicas(RUNNING, STARTING), {}, "UPDATING", "CONFIG_UPDATE_STARTED", {"STARTING": 1, "RUNNING": 1},
         "1 of 2 run"),
        (MODEL, [], {}, "UNHEALTHY", "HEALTH_CHECK_FAILED", {}, "no worker runs a replica of it"),
        (MODEL, [], {"is_first": True}, "UPDATING", "CONFIG_UPDATE_STARTED", {}, "no worker runs a replica of it"),
        (MODEL, replicas(WAITING, message="it has code x", host="a", pid=7), {}, "UPDATING", "CONFIG_UPDATE_STARTED",
         {},
         "0 of 2 run\nthe worker on a (process 7) waits: it has code x"),
        # what cannot be started, and what dies
        (MODEL, failed(1), {"is_first": True}, "UNHEALTHY", "REPLICA_STARTUP_FAILED", {},
         "0 of 2 run, tried 1 time: its constructor failed: no file"),
        (MODEL, failed(3), {"is_first": True}, "DEPLOY_FAILED", "REPLICA_STARTUP_FAILED", {}, "tried 3 times"),
        (MODEL, failed(3), {}, "UNHEALTHY", "REPLICA_STARTUP_FAILED", {}, "tried 3 times"),
        (MODEL, replicas(RUNNING) + failed(2), {"is_first": True}, "UNHEALTHY", "REPLICA_STARTUP_FAILED",
         {"RUNNING": 1}, "1 of 2 run, tried 2 times in all"),
        (MODEL, died(), {}, "UNHEALTHY", "HEALTH_CHECK_FAILED", {"RUNNING": 2}, "died 7 times"),
        # the number follows the load, or `qserve scale`
        (SCALED, replicas(RUNNING), decided(3, "AUTOSCALING"), "UPSCALING", "AUTOSCALING", {"RUNNING": 1},
         "1 of 3 run"),
        (SCALED, replicas(*[RUNNING] * 3), decided(1, "AUTOSCALING"), "DOWNSCALING", "AUTOSCALING", {"RUNNING": 3}, ""),
        (MODEL, replicas(RUNNING), decided(3, "UPSCALE_COMPLETED"), "UPSCALING", "CONFIG_UPDATE_STARTED",
         {"RUNNING": 1}, "1 of 3 run"),
        (SCALED, replicas(RUNNING), decided(1, "DOWNSCALE_COMPLETED"), "HEALTHY", "DOWNSCALE_COMPLETED",
         {"RUNNING": 1}, ""),
        (SCALED, [], decided(0, "DOWNSCALE_COMPLETED"), "HEALTHY", "DOWNSCALE_COMPLETED", {}, ""),
        (SCALED, replicas(RUNNING), decided(1, "a word of a newer version"), "HEALTHY", "CONFIG_UPDATE_COMPLETED",
         {"RUNNING": 1}, ""),
        (MODEL, [], decided(2, shortage="2 of 2 replicas have no place: each takes 1 GPU"), "UPDATING",
         "CONFIG_UPDATE_STARTED", {}, "2 of 2 replicas have no place: each takes 1 GPU"),
        (MODEL, replicas(RUNNING, RUNNING), by_hand(5, before=2), "UPSCALING", "CONFIG_UPDATE_STARTED",
         {"RUNNING": 2}, "2 of 5 run"),
        (MODEL, replicas(RUNNING), by_hand(1, before=2), "HEALTHY", "DOWNSCALE_COMPLETED", {"RUNNING": 1}, ""),
        (MODEL, [], by_hand(0, before=2), "HEALTHY", "DOWNSCALE_COMPLETED", {}, ""),
        (MODEL, replicas(RUNNING, RUNNING), by_hand(5, configured=3), "HEALTHY", "CONFIG_UPDATE_COMPLETED",
         {"RUNNING": 2}, ""),
        (MODEL, replicas(RUNNING, RUNNING), {"wish": Wish(is_paused=True, by="ada on a")}, "HEALTHY",
         "CONFIG_UPDATE_COMPLETED", {"RUNNING": 2}, "paused by ada on a: its replicas take no calls"),
    ],
)  # fmt: skip
def test_a_deployment_has_the_status_and_trigger_of_ray(
    wanted: DeploymentRecord,
    reported: list[ReplicaStatus],
    more: dict[str, Any],
    status: str,
    trigger: str,
    states: dict[str, int],
    message: str,
) -> None:
    found = deployment_status(wanted, reported, **more)

    assert (found.status, found.status_trigger, found.replica_states) == (status, trigger, states)
    assert message in found.message if message else not found.message
    assert found.failed_starts == sum(one.failures for one in reported)


def test_a_failed_start_says_when_the_next_is_tried() -> None:
    reported = replicas(FAILED, failures=8, message="it", next_try_ms=30_000)

    assert (
        deployment_status(MODEL, reported, now_ms=10_000).message
        == "0 of 2 run, tried 8 times in all, next in 20 s: it"
    )
    assert deployment_status(MODEL, reported, now_ms=40_000).message == "0 of 2 run, tried 8 times in all: it"


def test_tries_of_a_single_replica_are_its_own() -> None:
    reported = replicas(FAILED, failures=8, message="it")

    assert deployment_status(SCALED, reported).message == "0 of 1 run, tried 8 times: it"


def status_with(record: ApplicationRecord, *reported: ReplicaStatus, newer: tuple[ApplicationRecord, ...] = ()) -> Any:
    return application_status([record, *newer], reported, {"Model": QueueLoad(3, 2, 1.5)}, {}, {}, 0)


def test_an_application_that_serves_goes_on_when_a_deploy_fails_and_says_why() -> None:
    failed_deploy = Rollout("v2", "v1", "ada@a (process 7)", "failed", "deployment 'Model': no file")

    def message(last: Rollout | None, *newer: ApplicationRecord) -> tuple[str, str]:
        reported, load = replicas(RUNNING, RUNNING), {"Model": QueueLoad(0, 0, 0)}
        found = application_status([SHOP, *newer], reported, load, {}, {}, 0, last)
        return found.status, found.message

    why = "the last deploy, by ada@a (process 7), failed; version v1 serves: deployment 'Model': no file"
    assert message(failed_deploy) == ("RUNNING", why)
    assert message(replace(failed_deploy, state="done")) == ("RUNNING", "")
    assert message(failed_deploy, replace(SHOP, version="v3", place="next"))[1].startswith(
        "version v3 is being deployed"
    )


def test_a_deploy_that_has_died_is_not_under_way_for_ever() -> None:
    new = replace(SHOP, version="v2", place="next")
    last = Rollout("v2", "v1", "ada@a (process 7)", beat_ms=1000.0)

    def status(now_ms: float, *versions: ApplicationRecord) -> tuple[str, str]:
        load = {"Model": QueueLoad(0, 0, 0)}
        found = application_status(versions, replicas(RUNNING, RUNNING), load, {}, {}, now_ms, last)
        return found.status, found.message

    why = "the deploy of version v2, by ada@a (process 7), no longer responds and has no effect"
    assert status(10_000, SHOP, new)[0] == "DEPLOYING"
    assert status(12_000, SHOP, new) == ("RUNNING", f"{why}; version v1 serves")
    assert status(12_000, SHOP, replace(new, share=0.5, share_until_ms=13_000))[0] == "DEPLOYING"
    assert status(12_000, new) == ("DEPLOY_FAILED", f"{why}; deploy it again")


def test_a_deployment_that_only_the_new_version_has_says_in_the_status_what_is_missing_for_it() -> None:
    new = replace(SHOP, version="v2", place="next", deployments={**SHOP.deployments, "New": DeploymentRecord("New")})
    why = {"New": Scaled(1, 1, shortage="1 of 1 replicas have no place: each takes 1 GPU")}

    found = application_status([SHOP, new], replicas(RUNNING, RUNNING), {"Model": QueueLoad(0, 0, 0)}, why, {}, 0.0)

    assert found.message.endswith("\nNew: 1 of 1 replicas have no place: each takes 1 GPU")


def test_an_application_is_what_its_deployments_are() -> None:
    first, newer = replace(SHOP, place="next"), replace(SHOP, version="v2", place="next")

    assert status_with(SHOP, *replicas(RUNNING, RUNNING)).status == "RUNNING"
    assert status_with(SHOP, *replicas(RUNNING)).status == "DEPLOYING"
    assert status_with(SHOP, *failed(1)).status == "UNHEALTHY"
    assert status_with(first).status == "DEPLOYING"
    assert status_with(first, *failed(3)).status == "DEPLOY_FAILED"
    replaced = status_with(SHOP, *replicas(RUNNING, RUNNING), newer=(newer,))
    assert (replaced.status, replaced.message) == ("DEPLOYING", "version v2 is being deployed; version v1 serves")
    assert replaced.deployments["Model"].status == "HEALTHY"
    found = status_with(SHOP, *replicas(RUNNING, RUNNING)).deployments["Model"]
    assert (found.waiting_calls, found.running_calls, found.oldest_call_s) == (3, 2, 1.5)


def test_replicas_of_other_versions_and_deployments_do_not_count() -> None:
    others = [replace(one, version="v0") for one in replicas(RUNNING, RUNNING)]
    others += [replace(one, deployment="Other") for one in replicas(RUNNING, RUNNING)]

    assert status_with(SHOP, *others).deployments["Model"].replica_states == {}


def test_all_words_of_ray_are_there_and_are_text() -> None:
    assert {*ApplicationStatus} == {"NOT_STARTED", "DEPLOYING", "DEPLOY_FAILED", "RUNNING", "UNHEALTHY", "DELETING"}
    assert {*DeploymentStatus} == {
        "UPDATING", "HEALTHY", "UNHEALTHY", "DEPLOY_FAILED", "UPSCALING", "DOWNSCALING"
    }  # fmt: skip
    assert {*DeploymentStatusTrigger} == {
        "UNSPECIFIED", "CONFIG_UPDATE_STARTED", "CONFIG_UPDATE_COMPLETED", "UPSCALE_COMPLETED", "DOWNSCALE_COMPLETED",
        "AUTOSCALING", "REPLICA_STARTUP_FAILED", "HEALTH_CHECK_FAILED", "INTERNAL_ERROR", "DELETING",
    }  # fmt: skip
    assert f"{ApplicationStatus.RUNNING} {DeploymentStatus.HEALTHY}" == "RUNNING HEALTHY"
    assert [*ServeStatus({}, {}).__dict__][:3] == ["proxies", "applications", "target_capacity"]


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def deployed(installation: Installation) -> Installation:
    """An application with one replica of two, a gateway, and two workers of which one is drained."""
    client, keys = installation.client, installation.keys
    store = FleetStore(client, keys, installation.seal)
    installation.registry.stage(SHOP)
    change = installation.registry.promote(SHOP)
    for one in replicas(RUNNING, worker="a-1", until_ms=0):
        installation.reports("shop").report(one)
    installation.registry.publish(keys.gateway("gateway-7"), change)
    client.set(keys.gateway("stranger"), "not sealed", px=15_000)
    store.offer(HostRecord("a-1", "a", places=8, devices=("0",)))
    store.offer(HostRecord("b-1", "b"))
    store.drain(Drain("b"))
    store.note("shop", "Model", Scaled(3, reason="44 calls over 2 replicas", trigger="AUTOSCALING", at_ms=86_400_000.0))
    return installation


def command(*options: str) -> Result:
    return CliRunner().invoke(main, ["status", *options])


def test_json_has_the_keys_of_ray_and_more(deployed: Installation) -> None:
    found = json.loads(command("--json").stdout)

    assert [*found][:3] == ["proxies", "applications", "target_capacity"]
    assert (found["proxies"], found["target_capacity"]) == ({"gateway-7": "HEALTHY"}, None)
    shop = found["applications"]["shop"]
    assert [*shop][:4] == ["status", "message", "last_deployed_time_s", "deployments"]
    assert shop["last_deployed_time_s"] == 1.5
    model = shop["deployments"]["Model"]
    assert [*model][:4] == ["status", "status_trigger", "replica_states", "message"]
    assert (model["status"], model["replica_states"]) == ("UPSCALING", {"RUNNING": 1})
    assert (model["target_num_replicas"], model["last_scaled"]["reason"]) == (3, "44 calls over 2 replicas")
    assert found["hosts"]["a-1"] == {"host": "a", "places": 8, "used": 1, "devices": ["0"], "is_draining": False}
    assert found["hosts"]["b-1"]["is_draining"]


def test_yaml_is_the_same_and_a_name_shows_one_application(deployed: Installation) -> None:
    as_json, as_yaml = (command("-n", "shop", option).stdout for option in ("--json", "--yaml"))

    assert as_yaml.startswith("status: RUNNING\nmessage: 1 of 3 run\n")
    assert yaml.safe_load(as_yaml) == json.loads(as_json)
    assert yaml.safe_load(command("--yaml").stdout)["applications"]["shop"] == json.loads(as_json)


def test_the_table_says_what_is_wanted_why_it_was_scaled_and_who_offers_places(deployed: Installation) -> None:
    lines = command().stdout.splitlines()

    assert lines[1:] == [
        "shop  RUNNING  /",
        "  Model                    UPSCALING  1 RUNNING, 3 wanted",
        "    1 of 3 run",
        "    3 wanted since 1970-01-02 00:00:00 UTC: 44 calls over 2 replicas",
        "worker a-1: 1 of 8 places used, devices 0",
        "worker b-1: 0 replicas of its own, draining",
    ]
    assert command("-n", "shop").stdout.splitlines() == lines[1:5]


def test_an_application_that_is_not_there_is_refused_with_those_that_are(deployed: Installation) -> None:
    for options in (("-n", "shp"), ("-n", "shp", "--json")):
        result = command(*options)

        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == "Error: application 'shp' is not deployed; deployed are: shop. Did you mean 'shop'?\n"
    assert command("--json", "--yaml").exit_code == 2
