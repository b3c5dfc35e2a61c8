"""A rollout with replicas that only report: what is staged, awaited, made active or withdrawn."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import pytest
import redis

import qserve
from qserve.base.settings import Settings
from qserve.broker.registry import Registry
from qserve.define.compile import compile_application
from qserve.deploy.installation import Installation
from qserve.deploy.registration import DeploymentCode, Release, release_of, unpack_code
from qserve.deploy.rollout import roll_back, roll_out, wait_for_gateways
from qserve.deploy.status import status_of
from qserve.exceptions import DeployError, PayloadError, UsageProblem
from qserve.wire.application import ApplicationRecord, DeploymentRecord, Resources, Scaling
from qserve.wire.fleet import Scaled
from qserve.wire.status import FAILED, RUNNING, ReplicaStatus


class Model:
    """User code, which nothing here runs."""


@pytest.fixture
def installation(settings: Settings, client: redis.Redis) -> Installation:
    return Installation(settings, client)


def release(installation: Installation, target: str = "", version: str | None = None, **options: object) -> Release:
    model = qserve.deployment(name="Model", version=version, **options)(Model)  # type: ignore[call-overload]
    built = compile_application(model.bind(), app_name="shop")
    return release_of(built, installation.settings.keyring, target=target, modules={"shop": "1"} if target else None)


def replicas_report(installation: Installation, state: str, count: int = 1, message: str = "") -> Callable[[], None]:
    """Return what replicas of all versions that are registered do when they are started."""

    def report() -> None:
        for record in installation.registry.versions("shop"):
            for number in range(count):
                status = ReplicaStatus(
                    f"{record.version}-{number}",
                    "Model",
                    record.version,
                    state,
                    message=message,
                    config=record.deployments["Model"].config,
                )
                installation.reports("shop").report(status)

    return report


def test_a_version_is_active_once_its_replicas_run(installation: Installation) -> None:
    shown: list[tuple[object, ...]] = []
    new = release(installation)

    record = roll_out(
        installation,
        new,
        on_progress=lambda *counts: shown.append(counts),
        check=replicas_report(installation, RUNNING),
    )

    assert record == new.record == installation.registry.get("shop")
    assert shown == [("Model", 0, 1), ("Model", 1, 1)]
    status = status_of(installation).applications["shop"]
    assert (status.status, status.deployments["Model"].status) == ("RUNNING", "HEALTHY")


def test_a_version_whose_constructor_fails_is_withdrawn_and_the_one_before_stays(installation: Installation) -> None:
    before = roll_out(installation, release(installation), check=replicas_report(installation, RUNNING))
    fails = replicas_report(installation, FAILED, count=3, message="ValueError: no such model")

    with pytest.raises(DeployError, match="(?s)'Model' could not be started.*no such model"):
        roll_out(installation, release(installation, target="shop:app"), check=fails)

    assert installation.registry.versions("shop") == [before]


@pytest.mark.parametrize(("retries", "failures"), [(1, 1), (0, 1), (4, 4), (20, 6)])
def test_a_deploy_ends_after_as_many_failed_starts_as_its_deployment_says_and_three_a_replica_at_most(
    installation: Installation, retries: int, failures: int
) -> None:
    begun: list[int] = []

    def fail_once_more() -> None:
        begun.append(1)
        replicas_report(installation, FAILED, count=len(begun), message="ValueError: no such model")()

    with pytest.raises(DeployError, match="'Model' could not be started"):
        roll_out(
            installation,
            release(installation, num_replicas=2, max_constructor_retry_count=retries),
            check=fail_once_more,
        )

    assert len(begun) == failures


def test_replicas_that_are_late_are_named(installation: Installation) -> None:
    with pytest.raises(DeployError, match=r"not all replicas were ready within 0 s: Model \(0 of 2\)"):
        roll_out(installation, release(installation, num_replicas=2), ready_timeout_s=0)

    assert installation.registry.versions("shop") == []


@pytest.mark.parametrize("target", ["", "shop:app"])
def test_replicas_of_the_same_code_go_on_with_other_options(installation: Installation, target: str) -> None:
    running = replicas_report(installation, RUNNING)
    before = roll_out(installation, release(installation, target, user_config={"size": 1}), check=running)

    after = roll_out(installation, release(installation, target, user_config={"size": 2}), check=running)

    assert after.version == before.version
    assert after.deployments["Model"].config != before.deployments["Model"].config
    again = roll_out(installation, release(installation, target, user_config={"size": 3}), restart=True, check=running)
    assert again.version != before.version


NEED_NEW_REPLICAS = {
    "replicated": False,
    "resources": Resources(cpus=2.0),
    "env": {"A": "b"},
    "preload": "shop:load",
    "max_requests": 9,
    "version": "2",
}


@pytest.mark.parametrize("field", [one.name for one in fields(DeploymentRecord) if one.name != "name"])
def test_only_what_a_process_is_started_with_needs_new_replicas(field: str) -> None:
    others = {"user_config": '{"size": 2}', "scaling": Scaling(max_replicas=3), "logging": {"a": 1}} | NEED_NEW_REPLICAS
    before, after = DeploymentRecord("Model"), DeploymentRecord("Model", **{field: others.get(field, 9)})
    record = ApplicationRecord("shop", "1", "Model", target="shop:app", modules={"shop": "1"})
    active = replace(record, deployments={"Model": before})
    new = replace(record, version="2", route_prefix="/x", timeout_s=9.0, deployments={"Model": after})

    assert new.keeps_replicas_of(active) is (field not in NEED_NEW_REPLICAS)
    assert active.keeps_replicas_of(new) is (field not in (*NEED_NEW_REPLICAS, "user_config"))
    for other in ({"modules": {"shop": "2"}}, {"modules": {}}, {"args": '{"a": 1}'}, {"graphs": {"": []}}):
        assert not replace(new, **other).keeps_replicas_of(active)
    is_taken_while_it_runs = field not in (*NEED_NEW_REPLICAS, "num_replicas", "scaling", *OF_CALLERS)
    assert (before.config != after.config) is is_taken_while_it_runs


OF_CALLERS = ("surge", "max_queued", "full_status", "full_retry_after_s", "constructor_retries")


def test_a_user_config_that_is_refused_leaves_the_one_before(installation: Installation) -> None:
    running = replicas_report(installation, RUNNING)
    before = roll_out(installation, release(installation, user_config={"size": 1}), check=running)
    new = release(installation, user_config={"size": 2})
    config = new.record.deployments["Model"].config

    def refuse() -> None:
        status = ReplicaStatus("one", "Model", before.version, RUNNING, message="ValueError: too big", refused=config)
        installation.reports("shop").report(status)

    with pytest.raises(DeployError, match="(?s)'Model' has refused its user_config.*ValueError: too big"):
        roll_out(installation, new, check=refuse)

    assert installation.registry.versions("shop") == [before]


def test_a_deploy_tells_what_its_replicas_have_no_place_for_while_it_waits_and_when_it_gives_up(
    installation: Installation, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    why = "1 of 1 replicas have no place: each takes 1 GPU; free: 0 of 0 on a-1"
    monkeypatch.setattr("qserve.deploy.rollout._SHORT_AFTER_S", 0.0)
    installation.fleet.note("shop", "Model", Scaled(1, 1, shortage=why))

    def wait_for_the_line() -> None:
        if caplog.messages:
            raise DeployError("given up")

    with pytest.raises(DeployError, match="given up"):
        roll_out(installation, release(installation), check=wait_for_the_line)
    with pytest.raises(DeployError, match=f"not all replicas were ready within 0 s: Model .0 of 1.\nModel: {why}"):
        roll_out(installation, release(installation), ready_timeout_s=0)

    assert caplog.messages[0] == f"deployment 'Model' of application 'shop' waits: {why}"


def test_options_bring_new_replicas_where_those_before_fail(installation: Installation) -> None:
    running = replicas_report(installation, RUNNING)
    before = roll_out(installation, release(installation, user_config={"size": 1}), check=running)
    replicas_report(installation, FAILED, message="ValueError: no such size")()

    after = roll_out(installation, release(installation, user_config={"size": 2}), check=running)

    assert after.version != before.version


@pytest.mark.parametrize(("version", "is_kept"), [(None, False), ("1", True)])
def test_the_same_again_starts_new_replicas_unless_its_deployments_have_versions(
    installation: Installation, version: str | None, is_kept: bool
) -> None:
    running = replicas_report(installation, RUNNING)
    before = roll_out(installation, release(installation, version=version), check=running)

    after = roll_out(installation, release(installation, version=version), check=running)

    assert (after.version == before.version) is is_kept


def test_one_can_go_back_to_what_was_replaced_and_forward_again(installation: Installation) -> None:
    running, registry = replicas_report(installation, RUNNING), installation.registry

    def deploy(target: str = "", **options: object) -> ApplicationRecord:
        return roll_out(installation, release(installation, target, **options), check=running)

    def back(to: str = "") -> ApplicationRecord:
        return roll_back(installation, "shop", to, check=running)

    one = deploy(user_config={"size": 1})
    with pytest.raises(UsageProblem, match="'shop' has no version that was replaced"):
        back()
    deploy(user_config={"size": 2})
    again = back()
    assert (again.version, again.deployments) == (one.version, one.deployments)  # no replica was replaced
    assert back().deployments["Model"].user_config == '{"size": 2}'

    two = deploy("shop:app")
    code = registry.code("shop", one.version)
    by_value = back()
    assert by_value.version not in (one.version, two.version) and code
    assert registry.code("shop", by_value.version) == code
    imported = back(two.version[:6])
    assert (imported.target, imported.modules, imported.sent_for) == ("shop:app", two.modules, "")
    with pytest.raises(UsageProblem, match="'shop' has no versions that begin with 'x'; kept are: "):
        back("x")
    assert registry.get("shop") == imported


def test_the_code_of_the_last_three_versions_stays(installation: Installation) -> None:
    running, client = replicas_report(installation, RUNNING), installation.client
    versions = [roll_out(installation, release(installation), check=running).version for _ in range(5)]

    lives = [client.pttl(installation.keys.code("shop", version)) for version in versions]

    assert lives[0] > 0 and lives[1:] == [-1] * 4
    client.delete(installation.keys.code("shop", versions[3]))
    with pytest.raises(UsageProblem, match=f"the code of version {versions[3]} .* is not kept any more"):
        roll_back(installation, "shop")
    installation.registry.delete("shop")
    assert all(client.pttl(installation.keys.code("shop", version)) != -1 for version in versions)


def test_code_travels_signed_and_imported_code_does_not_travel(installation: Installation) -> None:
    new, keyring = release(installation), installation.settings.keyring

    assert unpack_code(new.code, keyring, "Model") == DeploymentCode(Model, (), {})
    with pytest.raises(PayloadError, match="not signed with this process's key"):
        unpack_code(new.code, replace(keyring, current=b"another"), "Model")
    with pytest.raises(PayloadError, match="set QSERVE_SECRET_KEY"):
        release_of(
            compile_application(qserve.deployment(Model).bind(), app_name="shop"), replace(keyring, current=None)
        )
    assert release(installation, target="shop:app").code == b""


def test_gateways_are_awaited_until_enough_of_them_serve_the_change(installation: Installation) -> None:
    keys, gateways = installation.keys, iter("abc")

    def another_gateway() -> None:
        key = keys.gateway(next(gateways))
        installation.client.set(key, installation.seal.seal(key.encode(), b"5-0"), px=60_000)

    forged = {keys.gateway("forged"): b"5-0", keys.gateway("copy"): installation.seal.seal(b"another", b"5-0")}
    installation.client.mset(forged)
    wait_for_gateways(installation, "4-1", 2, another_gateway)

    assert next(gateways) == "c"
    installation.client.delete(*forged)


def serve(installation: Installation, name: str, prefix: str) -> None:
    record = named(installation, name, prefix).record
    installation.registry.stage(record)
    installation.registry.promote(record)


def named(installation: Installation, name: str, prefix: str | None) -> Release:
    built = compile_application(qserve.deployment(Model).bind(), app_name=name)
    built.ingress.set_options(route_prefix=prefix)
    return release_of(built, installation.settings.keyring)


def test_a_second_application_at_a_path_is_refused_with_the_name_of_the_first(installation: Installation) -> None:
    registry = installation.registry
    serve(installation, "one", "/")

    with pytest.raises(DeployError, match="'two' cannot be served at /: application 'one' is served there"):
        roll_out(installation, named(installation, "two", "/"), ready_timeout_s=0)
    assert registry.names() == ["one"]

    for name, prefix in (("two", "/two"), ("hidden", None), ("also hidden", None), ("one", "/")):
        registry.check_prefix(named(installation, name, prefix).record)
    serve(installation, "one", "/elsewhere")
    registry.check_prefix(named(installation, "two", "/").record)


def test_of_two_applications_that_start_at_one_path_the_faster_one_is_served(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, two = installation.registry, named(installation, "two", "/")
    monkeypatch.setattr("qserve.deploy.rollout.wait_until_running", lambda *_, **__: serve(installation, "one", "/"))
    with pytest.raises(DeployError, match="application 'one' is served there"):
        roll_out(installation, two)
    assert registry.names() == ["one"]


def test_of_two_applications_that_are_promoted_to_one_path_at_the_same_moment_one_is_served(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [named(installation, name, "/").record for name in ("one", "two")]
    have_read, check_prefix = threading.Barrier(len(both), timeout=20), Registry.check_prefix
    first_look = threading.local()

    def check(self: Registry, record: ApplicationRecord) -> None:
        check_prefix(self, record)
        if not hasattr(first_look, "is_over"):  # neither has written yet when both have found the path free
            first_look.is_over = True
            have_read.wait()

    def promote(record: ApplicationRecord) -> str:
        registry = Installation(installation.settings, installation.client).registry
        registry.stage(record)
        try:
            return registry.promote(record)
        except DeployError as error:
            return str(error)

    monkeypatch.setattr(Registry, "check_prefix", check)
    with ThreadPoolExecutor(len(both)) as pool:
        results = [*pool.map(promote, both)]

    (served,) = installation.registry.all()
    assert sum(f"application {served.name!r} is served there" in result for result in results) == 1
