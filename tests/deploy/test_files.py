"""A whole file is deployed: compiled first, compared, rolled out one by one, and what is missing is deleted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import redis

from qserve.appfile.diff import diff
from qserve.appfile.model import ServeFile
from qserve.appfile.read import read_value
from qserve.appfile.yaml_text import FileError
from qserve.base import import_path
from qserve.base.settings import Settings
from qserve.deploy.claim import Claim
from qserve.deploy.files import FilePlan, deploy_file, plan_file, release_of_part
from qserve.deploy.installation import Installation
from qserve.deploy.registration import Release, import_code
from qserve.deploy.rollout import roll_out
from qserve.exceptions import DeployError, QserveException
from qserve.wire.application import ApplicationRecord, DeploymentRecord, DriverRecord
from qserve.wire.status import RUNNING, ReplicaStatus

SHOP = """
import qserve
from pydantic import BaseModel

@qserve.deployment(num_replicas=2)
class Model:
    def __init__(self, size=1): ...

@qserve.deployment(route_prefix="/front")
class Front:
    def __init__(self, model): ...

app = Front.bind(Model.bind())

class Args(BaseModel):
    size: int = 3

def builder(args: Args):
    return Front.bind(Model.bind(args.size))

number = 3
"""


@pytest.fixture
def installation(settings: Settings, client: redis.Redis) -> Installation:
    return Installation(settings, client)


@pytest.fixture(autouse=True)
def shop(tmp_path: Path) -> Iterator[None]:
    path, finders = list(sys.path), list(sys.meta_path)
    (tmp_path / "shopfile.py").write_text(SHOP)
    import_path.search_for_user_code(str(tmp_path))
    yield
    sys.path[:], sys.meta_path[:] = path, finders
    sys.modules.pop("shopfile", None)


def file_of(*applications: dict[str, Any], **top: Any) -> ServeFile:
    parts = [{"import_path": "shopfile:app", **one} for one in applications]
    return read_value({"applications": parts, **top}, "app.yaml")


def records(installation: Installation, file: ServeFile) -> Callable[[int], Release]:
    return lambda number: release_of_part(file, number, installation.settings.keyring)


@pytest.fixture
def deploy(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Deploy a file; replicas run as soon as they are wanted, but for those of applications that are to fail."""
    failing: set[str] = set()

    def run_at_once(record: ApplicationRecord, *_: Any, **__: Any) -> None:
        if record.name in failing:
            raise DeployError("its constructor raised")

    monkeypatch.setattr("qserve.deploy.rollout.wait_until_running", run_at_once)

    def deploy(*applications: dict[str, Any], fails: str = "", **options: Any) -> dict[str, Any]:
        failing.clear()
        failing.update(fails.split())
        file = file_of(*applications)
        plan = plan_file(installation, file, records(installation, file))
        return {**deploy_file(installation, plan, **options)}

    return deploy


def served(installation: Installation) -> dict[str, str | None]:
    return {record.name: record.route_prefix for record in installation.registry.all()}


def deploy_by_hand(installation: Installation) -> None:
    record = release_of_part(
        file_of({"name": "by hand", "route_prefix": "/h"}), 0, installation.settings.keyring
    ).record
    installation.registry.stage(replace(record, config=""))
    installation.registry.promote(replace(record, config=""))


def versions(installation: Installation) -> dict[str, str]:
    return {record.name: record.version for record in installation.registry.all()}


# -- what one application becomes -------------------------------------------------------------------


def test_a_file_changes_options_as_code_does(installation: Installation) -> None:
    file = file_of({"name": "shop", "deployments": [
        {"name": "Model", "num_replicas": 5, "max_ongoing_requests": 7, "user_config": {"a": 1}},
        {"name": "Front", "request_timeout_s": 9, "cancel_on_disconnect": False},
    ]})  # fmt: skip

    record = records(installation, file)(0).record

    model = record.deployments["Model"]
    assert (model.num_replicas, model.max_ongoing, model.user_config) == (5, 7, '{"a": 1}')
    assert (record.timeout_s, record.cancel_on_disconnect, record.route_prefix) == (9, False, "/front")
    assert '"num_replicas": 5' in record.config


@pytest.mark.parametrize(
    ("given", "path"), [({}, "/front"), ({"route_prefix": "/x"}, "/x"), ({"route_prefix": None}, None)]
)
def test_the_path_is_that_of_the_file_or_else_of_the_code(
    installation: Installation, given: dict[str, Any], path: str | None
) -> None:
    assert records(installation, file_of({"name": "shop", **given}))(0).record.route_prefix == path


def test_arguments_reach_the_builder_here_and_on_every_replica(installation: Installation) -> None:
    file = file_of({"import_path": "shopfile:builder", "args": {"size": 8}})

    record = Release.decode(records(installation, file)(0).encode()).record

    assert import_code(record.target, "shop", record.arguments, "Model").init_args == (8,)
    with pytest.raises(QserveException, match="shopfile:builder has no deployment 'Mode'; it has: Model"):
        import_code(record.target, "shop", record.arguments, "Mode")
    other = replace(record, args='{"size": 9}')
    assert record.has_code_of(record)
    assert not record.has_code_of(other)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    (
        {"name": "shop", "deployments": [{"name": "Front"}, {"name": "Modle"}]},
        "app.yaml applications[0].deployments[1].name: deployment 'Modle' is not in application 'shop'; it has: Model,"
        " Front."
        " Did you mean 'Model'?",
    ),
    ({"import_path": "nowhere:app"}, "app.yaml applications[0].import_path: module 'nowhere' was not found"),
    ({"import_path": "shopfile:ap"}, "app.yaml applications[0].import_path: module 'shopfile' has no 'ap'"),
    ({"args": {"size": 1}}, "app.yaml applications[0].args: shopfile:app is an application and takes no arguments"),
    (
        {"import_path": "shopfile:builder", "args": {"size": "x"}},
        "app.yaml applications[0].args.size: the arguments of shopfile:builder do not fit: size: input should be",
    ),
]


@pytest.mark.parametrize(("application", "message"), MISTAKES)
def test_what_the_code_does_not_have_is_told_with_its_place(
    installation: Installation, application: dict[str, Any], message: str
) -> None:
    with pytest.raises(FileError) as caught:
        records(installation, file_of(application))(0)

    assert str(caught.value).startswith(message)


# -- several applications ---------------------------------------------------------------------------


def test_applications_are_served_and_those_of_an_earlier_file_deleted(
    installation: Installation, deploy: Callable[..., dict[str, Any]]
) -> None:
    deploy_by_hand(installation)
    said: list[tuple[str, str]] = []

    assert deploy({"name": "a", "route_prefix": "/a"}, {"name": "b", "route_prefix": "/b"}) == {}
    before = versions(installation)
    assert deploy({"name": "b", "route_prefix": "/b"}, on_application=lambda *words: said.append(words)) == {}

    assert served(installation) == {"by hand": "/h", "b": "/b"}
    assert versions(installation)["b"] == before["b"]
    assert said == [("b", "unchanged"), ("a", "deleted: no longer in the file")]


def test_a_file_takes_over_what_was_deployed_by_hand_without_a_restart(
    installation: Installation, deploy: Callable[..., dict[str, Any]]
) -> None:
    deploy_by_hand(installation)
    before = versions(installation)

    deploy({"name": "by hand", "route_prefix": "/h"})
    assert versions(installation) == before

    deploy({"name": "other"})
    assert served(installation) == {"other": "/front"}


def test_an_unchanged_application_is_restarted_when_asked(
    installation: Installation, deploy: Callable[..., dict[str, Any]]
) -> None:
    deploy({"name": "a"})
    before = versions(installation)
    deploy({"name": "a"}, restart=True)

    assert versions(installation)["a"] != before["a"]


def test_one_that_fails_does_not_stop_the_others_and_nothing_is_deleted(
    installation: Installation, deploy: Callable[..., dict[str, Any]]
) -> None:
    deploy({"name": "old", "route_prefix": "/old"})

    failed = deploy({"name": "a", "route_prefix": "/a"}, {"name": "b", "route_prefix": "/b"}, fails="a")

    assert [*failed] == ["a"]
    assert served(installation) == {"old": "/old", "b": "/b"}


PATHS: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = [
    ([{"name": "old", "route_prefix": "/"}], [{"name": "new", "route_prefix": "/"}]),
    (
        [{"name": "a", "route_prefix": "/a"}, {"name": "b", "route_prefix": "/b"}],
        [{"name": "a", "route_prefix": "/b"}, {"name": "b", "route_prefix": "/a"}],
    ),
    (
        [{"name": "a", "route_prefix": "/a"}, {"name": "b", "route_prefix": "/b"}],
        [{"name": "a", "route_prefix": "/b"}, {"name": "b", "route_prefix": None}],
    ),
]


@pytest.mark.parametrize(("before", "after"), PATHS, ids=["renamed", "swapped", "given up"])
def test_paths_move_from_one_application_to_another(
    installation: Installation,
    deploy: Callable[..., dict[str, Any]],
    before: list[dict[str, Any]],
    after: list[dict[str, Any]],
) -> None:
    assert deploy(*before) == {}
    versions = {record.name: record.version for record in installation.registry.all()}
    assert deploy(*after) == {}
    for record in installation.registry.all():
        assert versions.get(record.name, record.version) == record.version, "its replicas go on"

    assert served(installation) == {one["name"]: one["route_prefix"] for one in after}


def test_a_path_stays_with_an_application_whose_new_version_fails(
    installation: Installation, deploy: Callable[..., dict[str, Any]]
) -> None:
    before, after = PATHS[1]
    deploy(*before)

    failed = deploy(*after, fails="b")

    assert {*failed} == {"a", "b"}
    assert served(installation) == {"a": "/a", "b": "/b"}


# -- two deploys at once ----------------------------------------------------------------------------


@pytest.fixture
def meanwhile(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """Have something done once by another process, as soon as a file has been compared with what runs."""

    def plan(act: Callable[[], Any], compare: Callable[..., FilePlan] = plan_file) -> None:
        def compared(*args: Any) -> FilePlan:
            found = compare(*args)
            act()
            return found

        monkeypatch.setitem(globals(), "plan_file", compared)

    return plan


def by_hand(installation: Installation, name: str, **changes: Any) -> None:
    """Deploy a new version of an application by hand."""
    before = installation.registry.get(name)
    with Claim(installation, name, "by hand", 0.0) as claim:
        claim.promote(replace(before, version="by hand", config="", **changes))


def test_an_unchanged_application_that_was_deployed_again_meanwhile_becomes_what_the_file_says(
    installation: Installation, deploy: Callable[..., dict[str, Any]], meanwhile: Callable[..., None]
) -> None:
    deploy({"name": "a"})
    meanwhile(lambda: by_hand(installation, "a", timeout_s=1.0))

    assert deploy({"name": "a"}) == {}
    active = installation.registry.get("a")
    assert (active.version, active.timeout_s) == ("by hand", None), "not the version that has ended"


def test_an_application_that_was_deployed_by_hand_meanwhile_is_not_deleted_with_a_file(
    installation: Installation, deploy: Callable[..., dict[str, Any]], meanwhile: Callable[..., None]
) -> None:
    deploy({"name": "a"})
    meanwhile(lambda: by_hand(installation, "a"))

    assert deploy({"name": "b", "route_prefix": "/b"}) == {}
    assert versions(installation)["a"] == "by hand"


def test_paths_are_not_exchanged_under_the_hands_of_another_deploy(
    installation: Installation, deploy: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = PATHS[1]
    deploy(*before)
    running = Claim(Installation(installation.settings, installation.client), "b", "by hand", 0.0)

    def rolled_out(*args: Any, **kwargs: Any) -> ApplicationRecord:
        done = roll_out(*args, **kwargs)
        if done.name == "b":  # the last one: somebody else begins to deploy it before the paths are exchanged
            running.__enter__()
        return done

    monkeypatch.setattr("qserve.deploy.files.roll_out", rolled_out)
    failed = deploy(*after, ready_timeout_s=0.0)
    running.__exit__(None, None, None)

    assert {*failed} == {"a", "b"}
    assert "'b' is being deployed by" in str(failed["b"])
    assert served(installation) == {"a": "/a", "b": "/b"}


@pytest.mark.parametrize(
    "applications",
    [
        [{"name": "a"}, {"name": "b"}],
        [{"name": "a"}, {"name": "b", "route_prefix": "/front"}],
        [{"name": "a", "route_prefix": "/h"}],
    ],
)
def test_two_applications_at_one_path_are_refused_and_nothing_is_changed(
    installation: Installation, deploy: Callable[..., dict[str, Any]], applications: list[dict[str, Any]]
) -> None:
    deploy_by_hand(installation)

    with pytest.raises(FileError, match=r"application '(a|by hand)' is at '/(front|h)' already"):
        deploy(*applications)
    assert served(installation) == {"by hand": "/h"}


# -- what would change ------------------------------------------------------------------------------


def test_the_difference_is_told_in_the_words_of_the_file(
    installation: Installation, deploy: Callable[..., dict[str, Any]]
) -> None:
    deploy({"name": "shop", "route_prefix": "/"}, {"name": "old", "route_prefix": "/old"})
    file = file_of(
        {"name": "shop", "route_prefix": "/x", "import_path": "shopfile:builder", "args": {"size": 2},
         "deployments": [{"name": "Model", "num_replicas": 4, "max_ongoing_requests": 5, "user_config": {"a": 1},
                          "ray_actor_options": {"num_cpus": 2, "runtime_env": {"env_vars": {"A": "b"}}}}]},
        {"name": "new", "route_prefix": "/new"},
    )  # fmt: skip
    before = installation.registry.last_change()

    plan = plan_file(installation, file, records(installation, file))

    assert [str(change) for change in plan.changes] == [
        "shop route_prefix / -> /x (all its replicas are replaced)",
        "shop import_path shopfile:app -> shopfile:builder (all its replicas are replaced)",
        'shop args {} -> {"size": 2} (all its replicas are replaced)',
        "shop/Model num_replicas 2 -> 4 (all its replicas are replaced)",
        "shop/Model max_ongoing_requests 100 -> 5 (all its replicas are replaced)",
        'shop/Model user_config none -> {"a": 1} (all its replicas are replaced)',
        "shop/Model ray_actor_options.num_cpus none -> 2.0 (all its replicas are replaced)",
        'shop/Model ray_actor_options.runtime_env.env_vars {} -> {"A": "b"} (all its replicas are replaced)',
        "new none -> 3 replicas at /new (starts)",
        "old (is deleted)",
    ]
    assert installation.registry.last_change() == before


OTHER: dict[str, Any] = {
    "route_prefix": "/x",
    "target": "m:other",
    "args": '{"a": 1}',
    "modules": {"m": "2"},
    "code_version": "2",
    "timeout_s": 9.0,
    "cancel_on_disconnect": False,
    "deployments": {"Other": DeploymentRecord("Other")},
    "graphs": {"": []},
    "driver": DriverRecord("json_request"),
    "ingress": "Other",
    "external_scaler": True,
    "capacity": 50.0,
}
NO_CHANGE = {
    "name",
    "version",
    "config",
    "change",
    "place",
    "code_digest",
    "deployed_at",
    "sent_for",
    "format",
    "description",
    "handles",
    "share",
    "share_until_ms",
}


@pytest.mark.parametrize("field", sorted({one.name for one in fields(ApplicationRecord)} - NO_CHANGE))
def test_each_field_of_a_record_that_replicas_or_callers_obey_is_a_change(field: str) -> None:
    record = ApplicationRecord("shop", "v1", "Model", target="m:app", modules={"m": "1"})

    assert diff({"shop": record}, {"shop": replace(record, **{field: OTHER.get(field)})}, [])
    assert not diff({"shop": record}, {"shop": replace(record, version="v2", config="{}", deployed_at=1.0)}, [])


def test_a_file_that_is_deployed_changes_nothing_more(
    installation: Installation, deploy: Callable[..., dict[str, Any]]
) -> None:
    deploy({"name": "shop"})
    file = file_of({"name": "shop"})

    assert plan_file(installation, file, records(installation, file)).changes == []


def test_a_real_rollout_waits_for_the_replicas_of_the_file(installation: Installation) -> None:
    file = file_of({"name": "shop", "deployments": [{"name": "Model", "num_replicas": 1}]})
    plan = plan_file(installation, file, records(installation, file))
    (record,) = plan.records.values()
    for name in record.deployments:
        status = ReplicaStatus(f"{name}-1", name, record.version, RUNNING)
        installation.reports("shop").report(status)

    assert deploy_file(installation, plan) == {}
    assert versions(installation) == {"shop": record.version}
