"""``qserve pause`` and ``resume``: what they leave for workers, what they say, and what they refuse."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from click.testing import CliRunner, Result

from qserve.__main__ import main
from qserve.deploy.installation import Installation
from qserve.fleet.store import FleetStore
from qserve.wire.application import ApplicationRecord, DeploymentRecord
from qserve.wire.fleet import Wish

DEPLOYMENTS = {
    "Front": DeploymentRecord("Front"),
    "Model": DeploymentRecord("Model"),
    "Driver": DeploymentRecord("Driver", replicated=False),
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
    assert paused(installation) == {"Front", "Model"}
    assert command("resume", "shop", "Front").stdout == "shop/Front: goes on\n"
    assert command("resume", "shop").stdout == "shop/Front: is not paused\nshop/Model: goes on\n"
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
            "deployment 'model' is not in application 'shop'; it has: Front, Model. Did you mean 'Model'?",
        ),
        (["shop", "Driver"], "deployment 'Driver' is not in application 'shop'; it has: Front, Model"),
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
