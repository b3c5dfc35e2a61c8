"""``qserve pause``, ``resume``, ``scale`` and ``drain``: what they leave, what they say, and what they refuse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from qserve.__main__ import main
from qserve.deploy.installation import Installation
from qserve.fleet.store import FleetStore
from qserve.wire.application import ApplicationRecord, DeploymentRecord, Scaling
from qserve.wire.fleet import HostRecord, Scaled, Wish
from qserve.wire.status import RUNNING, ReplicaStatus

DEPLOYMENTS = {
    "Front": DeploymentRecord("Front"),
    "Model": DeploymentRecord("Model"),
    "Driver": DeploymentRecord("Driver", replicated=False),
    "Scaled": DeploymentRecord("Scaled", scaling=Scaling(0, 9)),
}
SHOP = ApplicationRecord("shop", "v1", "Front", deployments=DEPLOYMENTS)


@pytest.fixture
def installation(installation: Installation) -> Installation:
    installation.registry.stage(SHOP)
    installation.registry.promote(SHOP)
    return installation


def command(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def paused(installation: Installation) -> set[str]:
    store = FleetStore(installation.client, installation.keys, installation.seal)
    return {name for name, wish in store.wishes("shop").items() if wish.is_paused}


def test_one_deployment_or_all_of_an_application_are_paused_and_go_on(installation: Installation) -> None:
    before = installation.registry.last_change()

    assert command("pause", "shop", "Model").stdout == "shop/Model: paused\n"
    assert paused(installation) == {"Model"}
    assert installation.registry.last_change() != before  # workers read it at once
    said = command("pause", "shop").stdout.splitlines()
    assert said[0] == "shop/Front: paused"
    assert said[1].startswith("shop/Model: is paused already, by ")
    assert paused(installation) == {"Front", "Model", "Scaled"}
    assert command("resume", "shop", "Front").stdout == "shop/Front: goes on\n"
    said = command("resume", "shop").stdout.splitlines()
    assert said == ["shop/Front: is not paused", "shop/Model: goes on", "shop/Scaled: goes on"]
    assert paused(installation) == set()


def test_a_pause_keeps_the_number_that_was_asked_for(installation: Installation) -> None:
    store = FleetStore(installation.client, installation.keys, installation.seal)
    store.wish("shop", "Model", Wish(5, configured=1))

    command("pause", "shop", "Model")
    command("resume", "shop", "Model")

    wish = FleetStore(installation.client, installation.keys, installation.seal).wishes("shop")["Model"]
    assert (wish.count, wish.configured, wish.is_paused) == (5, 1, False)


def test_an_application_of_the_same_name_that_is_deployed_later_is_not_paused(installation: Installation) -> None:
    command("pause", "shop")

    installation.registry.delete("shop")

    assert paused(installation) == set()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["shopp"], "application 'shopp' is not deployed; deployed are: shop. Did you mean 'shop'?"),
        (
            ["shop", "model"],
            "deployment 'model' is not in application 'shop'; it has: Front, Model, Scaled. Did you mean 'Model'?",
        ),
        (["shop", "Driver"], "deployment 'Driver' is not in application 'shop'; it has: Front, Model, Scaled"),
        (["", ""], "application '' is not deployed; deployed are: shop"),
    ],
)
@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_what_is_not_there_is_refused_in_one_line_and_nothing_is_changed(
    installation: Installation, verb: str, arguments: Sequence[str], said: str
) -> None:
    change = installation.registry.last_change()

    result = command(verb, *arguments)

    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"Error: {said}\n")
    assert (paused(installation), installation.registry.last_change()) == (set(), change)


NO_DEPLOYMENT = "deployment 'Modle' is not in application 'shop'; it has:"
THE_LAST = "'a' is the last that offers places for all applications: start another worker first, or pass --force"


# -- scale -----------------------------------------------------------------------------------------


def wanted(installation: Installation, name: str = "Model") -> int | None:
    store = FleetStore(installation.client, installation.keys, installation.seal)
    return store.wishes("shop").get(name, Wish()).count


def offer(installation: Installation, worker: str, **what: Any) -> None:
    installation.fleet.offer(HostRecord(worker, worker.partition("-")[0], **what))


def test_a_count_is_kept_with_who_gave_it_and_a_second_one_replaces_it(installation: Installation) -> None:
    offer(installation, "a-1", places=2)
    before = installation.registry.last_change()

    assert command("scale", "shop", "Model", "5").stdout == "shop/Model: 1 -> 5\n"
    assert installation.registry.last_change() != before  # the worker that leads reads it at once
    assert command("pause", "shop", "Model").exit_code == 0
    assert command("scale", "shop", "Model", "5").stdout == "shop/Model: 5 are wanted already\n"
    assert command("scale", "shop", "Model", "0").stdout == "shop/Model: 5 -> 0\n"

    store = FleetStore(installation.client, installation.keys, installation.seal)
    wish = store.wishes("shop")["Model"]
    assert (wish.count, wish.configured, wish.is_paused, wish.scaled_from) == (0, 1, True, 5)
    assert wish.scaled_by.endswith("with `qserve scale`")


def test_a_deploy_of_another_number_ends_the_count(installation: Installation) -> None:
    command("scale", "shop", "Model", "5")
    installation.registry.promote(
        replace(SHOP, version="v2", deployments={"Model": DeploymentRecord("Model", num_replicas=3)})
    )

    assert command("scale", "shop", "Model", "4").stdout == "shop/Model: 3 -> 4\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["shop", "Model", "-1"], "the number of replicas must be a whole number from 0 to 10000; got -1"),
        (["shop", "Model", "10001"], "the number of replicas must be a whole number from 0 to 10000; got 10001"),
        (["shop", "Model", "2.5"], "the number of replicas must be a whole number from 0 to 10000; got 2.5"),
        (["shop", "Modle", "2"], f"{NO_DEPLOYMENT} Front, Model, Scaled. Did you mean 'Model'?"),
        (["shopp", "Model", "2"], "application 'shopp' is not deployed; deployed are: shop. Did you mean 'shop'?"),
        (
            ["shop", "Scaled", "2"],
            "deployment 'Scaled' scales by its load, between 0 and 9: change its autoscaling_config, or give it"
            " num_replicas",
        ),
        (
            ["shop", "Model", "2"],
            "deployment 'Model' has replicas that workers were started for (2 at a-1, 1 at b-1): start or stop such"
            " workers",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("has_places", [True, False])
def test_a_count_that_is_not_possible_is_refused_in_one_line_and_nothing_is_changed(
    installation: Installation, arguments: Sequence[str], said: str, has_places: bool
) -> None:
    offer(installation, "a-1", pins={"shop:v1:Model": 2})
    offer(installation, "b-1", pins={"shop:v1:Model": 1}, places=2 * has_places)
    change = installation.registry.last_change()

    result = command("scale", *arguments)

    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"Error: {said}\n")
    assert (wanted(installation), wanted(installation, "Scaled")) == (None, None)
    assert installation.registry.last_change() == change


def test_a_worker_with_places_takes_what_those_that_were_started_for_it_do_not_run(installation: Installation) -> None:
    offer(installation, "a-1", pins={"shop:v1:Model": 2})
    offer(installation, "b-1", places=2)

    assert command("scale", "shop", "Model", "3").exit_code == 0
    assert wanted(installation) == 3


def test_waiting_ends_with_exit_code_1_and_the_reason_when_there_is_no_place(installation: Installation) -> None:
    installation.fleet.note("shop", "Model", Scaled(2, shortage="1 of 2 replicas have no place"))

    result = command("scale", "shop", "Model", "2", "--wait", "--timeout-s", "0.001")

    assert (result.exit_code, result.stdout.splitlines()) == (
        1,
        ["shop/Model: 1 -> 2", "  Model                    0/2 run"],
    )
    assert "0 of 2 replicas run: 1 of 2 replicas have no place\nstart a `qserve worker`" in result.stderr


# -- drain -----------------------------------------------------------------------------------------


def drained(installation: Installation) -> set[str]:
    return {*FleetStore(installation.client, installation.keys, installation.seal).drains()}


def test_a_host_is_drained_until_it_is_undone(installation: Installation) -> None:
    offer(installation, "a-1", places=2)
    offer(installation, "b-1", places=2)

    assert command("drain", "a").stdout == "a: draining\na: empty\n"
    assert drained(installation) == {"a"}
    assert command("drain", "a").stdout == "a: is drained already\na: empty\n"
    assert command("drain", "a", "--undo").stdout == "a: takes replicas again\n"
    assert command("drain", "a", "--undo").stdout == "a: was not drained\n"
    assert drained(installation) == set()
    assert command("drain", "b-1").stdout == "b-1: draining\nb-1: empty\n"  # one worker


def test_what_does_not_leave_a_host_is_named_with_exit_code_1(installation: Installation) -> None:
    offer(installation, "a-1", places=2, pins={"shop:v1:Front": 1})
    offer(installation, "b-1", places=2)
    reports = installation.reports("shop")
    for number, (name, worker) in enumerate([("Front", "a-1"), ("Model", "a-1"), ("Model", "a-1"), ("Model", "b-1")]):
        reports.report(ReplicaStatus(f"r{number}", name, "v1", RUNNING, worker=worker))

    result = command("drain", "a", "--timeout-s", "0.001")

    assert (result.exit_code, result.stdout) == (1, "a: draining\n  still there: 2 of shop/Model\n")
    assert result.stderr.splitlines() == [
        "Error: after 0.001 s replicas still run on a: 2 of shop/Model; it stays drained",
        "Error: 1 of shop/Front run on a until the worker is stopped that was started for it",
    ]
    assert drained(installation) == {"a"}


@pytest.mark.parametrize(
    ("others", "arguments", "said"),
    [
        ([], ["c"], "host 'c' has no worker; there are: a"),
        ([], ["c", "--undo"], "host 'c' has no worker; there are: a"),
        ([], ["a"], THE_LAST),
        ([{"app": "shop", "places": 2}], ["a"], THE_LAST),
        ([{"pins": {"shop:v1:Model": 2}}], ["a"], THE_LAST),
    ],
)  # fmt: skip
def test_a_drain_that_is_not_possible_is_refused_in_one_line_and_nothing_is_changed(
    installation: Installation, others: Sequence[dict[str, Any]], arguments: Sequence[str], said: str
) -> None:
    offer(installation, "a-1", places=2)
    for number, what in enumerate(others):
        offer(installation, f"b-{number}", **what)

    result = command("drain", *arguments)

    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"Error: {said}\n")
    assert drained(installation) == set()


def test_the_last_host_is_drained_by_force(installation: Installation) -> None:
    offer(installation, "a-1", places=2)

    assert command("drain", "a", "--force").exit_code == 0
    assert drained(installation) == {"a"}
