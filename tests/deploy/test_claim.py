"""One deploy of an application at a time, and none that a dead deployer could hold up for long."""

from __future__ import annotations

from dataclasses import replace

import pytest
import redis

from qserve.base.settings import Settings
from qserve.deploy import claim as claims
from qserve.deploy.claim import Claim
from qserve.deploy.installation import Installation
from qserve.deploy.removal import remove
from qserve.exceptions import DeployError
from qserve.wire.application import ApplicationRecord, DeploymentRecord

RECORD = ApplicationRecord("app", "one", "One", deployments={"One": DeploymentRecord("One")})
TWO = replace(RECORD, version="two")


@pytest.fixture
def installation(settings: Settings, client: redis.Redis) -> Installation:
    return Installation(settings, client)


def other(installation: Installation) -> Installation:
    """The installation as another process sees it."""
    return Installation(installation.settings, installation.client)


def test_a_second_deploy_waits_for_the_first_and_says_whose_that_is(installation: Installation) -> None:
    said: list[str] = []
    with Claim(installation, "app", "one", 9.0):
        with pytest.raises(DeployError, match=r"'app' is being deployed by .*\(process \d+\); deploy it again when"):
            Claim(other(installation), "app", "two", 0.0, said.append).__enter__()
        with Claim(other(installation), "another app", "one", 0.0):
            pass

    assert [line.endswith("waiting for the end of that") for line in said] == [True]
    with Claim(other(installation), "app", "two", 0.0) as second:
        assert second.promote(TWO)


def test_how_a_deploy_went_is_noted(installation: Installation) -> None:
    def state() -> tuple[str, str]:
        _, rollout = other(installation).fleet.rollout("app")
        assert rollout is not None
        return rollout.version, rollout.state

    with Claim(installation, "app", "one", 0.0):
        assert state() == ("one", "under way")
    assert state() == ("one", "done")


@pytest.mark.row("F55")
def test_the_claim_of_a_deployer_that_stands_still_is_taken_over_and_it_can_change_nothing_more(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, late = installation.registry, other(installation)
    with Claim(late, "app", "one", 0.0) as first:
        late.registry.stage(RECORD)
        monkeypatch.setattr(claims, "STILL_S", 0.0)
        with Claim(installation, "app", "two", 60.0):
            registry.stage(TWO)
            late.registry.withdraw(RECORD)
            assert [record.version for record in registry.versions("app")] == ["two"]
            with pytest.raises(DeployError, match="another deploy of application 'app' has taken over"):
                first.promote(RECORD)

    _, rollout = installation.fleet.rollout("app")
    assert rollout is not None and rollout.version == "two"


def test_what_a_dead_deployer_has_staged_is_removed_by_the_next_deploy(installation: Installation) -> None:
    registry, client = installation.registry, installation.client
    for staged in (RECORD, TWO):
        registry.stage(staged, b"code")
    registry.promote(replace(RECORD, version="three"))

    assert [record.version for record in registry.versions("app")] == ["three"]
    for gone in (RECORD, TWO):
        keys = installation.keys.code("app", gone.version), gone.stream(installation.keys, "One")
        assert all(client.pttl(key) > 0 for key in keys)


def test_a_broker_that_has_lost_its_data_does_not_end_a_deploy(installation: Installation) -> None:
    with Claim(installation, "app", "one", 0.0) as claim:
        installation.client.delete(installation.keys.rollout("app"))
        claim.update()
        assert claim.promote(RECORD)

    installation.client.set(installation.keys.rollout("app"), b"something else", px=60_000)
    with Claim(other(installation), "app", "two", 0.0):
        pass


def test_an_application_is_not_deleted_while_it_is_deployed_and_not_deployed_while_it_is_deleted(
    installation: Installation,
) -> None:
    installation.registry.promote(RECORD)
    with Claim(installation, "app", "two", 9.0) as first:
        with pytest.raises(DeployError, match=r"'app' is being deployed by .*; delete it again when that has ended"):
            remove(other(installation), "app", timeout_s=0.0)
        first.promote(TWO)
        assert other(installation).registry.get("app").version == "two"

    with Claim(installation, "app", "", 9.0) as deletion:
        with pytest.raises(DeployError, match=r"'app' is being deleted by .*; deploy it again when that has ended"):
            Claim(other(installation), "app", "three", 0.0).__enter__()
        deletion.delete()

    assert not installation.registry.names()


def test_a_deletion_that_stood_still_does_not_delete_what_was_deployed_meanwhile(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation.registry.promote(RECORD)
    with Claim(other(installation), "app", "", 0.0) as late:
        monkeypatch.setattr(claims, "STILL_S", 0.0)
        with Claim(installation, "app", "two", 60.0) as deploy:
            deploy.promote(TWO)
            with pytest.raises(DeployError, match="another deploy of application 'app' has taken over"):
                late.delete()

    assert installation.registry.get("app").version == "two"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyboardInterrupt(), "it was interrupted (Ctrl-C)"),
        (SystemExit(1), "its program ended"),
        (DeployError("its constructor failed"), "its constructor failed"),
        (ValueError(), "ValueError"),
    ],
)
def test_why_a_deploy_has_ended_is_noted_in_words(installation: Installation, error: BaseException, words: str) -> None:
    with pytest.raises(type(error)), Claim(installation, "app", "one", 0.0):
        raise error

    _, rollout = other(installation).fleet.rollout("app")
    assert rollout is not None and (rollout.state, rollout.message) == ("failed", words)
