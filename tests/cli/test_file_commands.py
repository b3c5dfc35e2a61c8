"""The commands that read and write config files: what they print, and how they end."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis
from click.testing import CliRunner, Result

from qserve.__main__ import main
from qserve.appfile.read import read_file
from qserve.base.settings import Settings
from qserve.broker.registry import Registry
from qserve.deploy.installation import Installation
from qserve.wire.application import ApplicationRecord, DeploymentRecord
from qserve.wire.status import RUNNING, ReplicaStatus

SHOP = """
import qserve

@qserve.deployment(num_replicas=2, user_config={"on": "off", "code": "010"}, retry_on=(ConnectionError,))
class Model:
    def __init__(self, size=1): ...
    def reconfigure(self, config): ...

@qserve.deployment(autoscaling_config={"max_replicas": 3})
class Front:
    def __init__(self, model): ...

app = Front.bind(Model.bind())
other = Model.options(route_prefix="/other").bind()

def builder(args):
    return Model.bind(args["size"])
"""
Qserve = Callable[..., Result]


@pytest.fixture
def qserve(settings: Settings, client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Qserve:
    """Run a command in a folder with the module ``shopcli``, on this test's broker."""
    for name, value in settings.to_env().items():
        monkeypatch.setenv(name, value)
    (tmp_path / "shopcli.py").write_text(SHOP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    return lambda *words: CliRunner().invoke(main, [*words])


@pytest.fixture
def installation(settings: Settings, client: redis.Redis) -> Installation:
    return Installation(settings, client)


@pytest.fixture
def registry(installation: Installation) -> Registry:
    return installation.registry


# -- build -----------------------------------------------------------------------------------------


def test_build_writes_a_file_that_says_what_the_code_says(qserve: Qserve) -> None:
    assert qserve("build", "shopcli:app", "-o", "app.yaml").output == "app.yaml: default\n"

    (app,) = read_file(Path("app.yaml")).applications
    model, front = app.deployments
    assert (app.name, app.route_prefix, app.import_path) == ("default", "/", "shopcli:app")
    assert model.options == {
        "num_replicas": 2,
        "user_config": {"on": "off", "code": "010"},
        "retry_on": ["ConnectionError"],
    }
    assert front.options == {"autoscaling_config": {"max_replicas": 3}}


def test_build_names_several_applications_and_gives_each_its_path(qserve: Qserve) -> None:
    qserve("build", "shopcli:app", "shopcli:other", "-o", "app.yaml")

    first, second = read_file(Path("app.yaml")).applications
    assert (first.name, first.route_prefix) == ("app1", "/app1")
    assert (second.name, second.route_prefix) == ("app2", "/other")


def test_build_passes_arguments_to_a_builder_and_writes_them(qserve: Qserve) -> None:
    printed = qserve("build", "shopcli:builder", "size=4", "--name", "shop", "-o", "-").output
    Path("app.yaml").write_text(printed)

    (app,) = read_file(Path("app.yaml")).applications
    assert (app.name, app.args) == ("shop", {"size": "4"})


def test_build_replaces_no_file_that_says_something_else(qserve: Qserve) -> None:
    Path("app.yaml").write_text("# mine\n")

    refused = qserve("build", "shopcli:app", "-o", "app.yaml")
    assert (refused.exit_code, Path("app.yaml").read_text()) == (2, "# mine\n")
    assert "app.yaml exists and says something else: pass --force to replace it" in refused.output

    assert qserve("build", "shopcli:app", "-o", "app.yaml", "--force").exit_code == 0
    assert qserve("build", "shopcli:app", "-o", "app.yaml").exit_code == 0, "it says the same"


# -- deploy ----------------------------------------------------------------------------------------

APP = "applications:\n  - name: shop\n    import_path: shopcli:app\n"
BAD = {
    "applications: [": "app.yaml:2:1: this is not YAML: ",
    f"{APP}    deployments: [{{name: Modle}}]\n": (
        "app.yaml:4:20 applications[0].deployments[0].name: deployment 'Modle' is not in application 'shop'; it has:"
        " Model, Front. Did you mean 'Model'?"
    ),
    f"{APP}    deployments: [{{name: Model, num_replicas: many}}]\n": (
        "app.yaml:4:33 applications[0].deployments[0].num_replicas: input should be a valid integer"
    ),
    f"{APP}  - name: b\n    import_path: shopcli:app\n": "app.yaml:4:5 applications[1]: application 'shop' is at '/' a",
    f"{APP}    args: {{size: 1}}\n": "app.yaml:4:5 applications[0].args: shopcli:app is an application and takes no",
    "applications:\n  - name: shop\n": "app.yaml:2:5 applications[0].import_path: it is missing",
    "applications:\n  - import_path: shopcli.app2\n": "applications[0].import_path: module 'shopcli' has no 'app2'",
    f"{APP}    args: &a [*a]\n": "app.yaml:4:15: the anchor &a contains itself",
    "# " + "x" * 2_000_000: "app.yaml is longer than 1 MiB",
}


@pytest.mark.parametrize(("text", "message"), BAD.items(), ids=range(len(BAD)))
def test_a_bad_file_is_told_on_one_line_with_exit_code_2_and_nothing_is_changed(
    qserve: Qserve, registry: Registry, text: str, message: str
) -> None:
    Path("app.yaml").write_text(text)

    result = qserve("deploy", "app.yaml")

    (line,) = [line for line in result.output.splitlines() if not line.startswith("qserve: connecting")]
    assert (result.exit_code, line[: len("Error: ")]) == (2, "Error: ")
    assert message in line
    assert (registry.names(), registry.last_change()) == ([], "0-0")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("deploy", "nothing.yaml"), "nothing.yaml cannot be read: No such file or directory"),
        (("deploy", "shopcli.py"), "'shopcli.py' is a file path. Use a module name: shopcli:NODE"),
        (("deploy", "app.yaml", "--name", "x"), "a FILE says all of this itself"),
        (("deploy", "app.yaml", "size=3"), "a FILE says all of this itself"),
        (("deploy", "shopcli:app", "--dry-run"), "--dry-run is for a FILE"),
        (
            ("deploy", "app.yaml", "--max-surge", "half"),
            "'half' is not a number of replicas, such as 1, or a percentage",
        ),
        (("deploy", "app.yaml", "--max-surge", "-1%"), "'-1%' is not a number of replicas"),
        (("deploy", "app.yaml", "--max-surge", "0.5"), "'0.5' is not a number of replicas"),
        (("deploy", "app.yaml", "--max-surge", "nan%"), "'nan%' is not a number of replicas"),
        (("deploy", "shopcli:app", "size=3"), "shopcli:app is an application and takes no arguments; got: size"),
        (("deploy", "shopcli:builder", "size"), "'size' is not an argument of a builder. Write key=value"),
        (("deploy", "nowhere:app"), "module 'nowhere' was not found"),
        (("config", "nothing.yaml"), "nothing.yaml cannot be read: No such file or directory"),
        (("rollback", "shop"), "application 'shop' is not deployed; deployed are: none"),
        (("rollback", "shop", "--list"), "application 'shop' is not deployed; deployed are: none"),
        (("run", "app.yaml", "--route-prefix", "/x"), "a FILE says all of this itself"),
        (("run", "shopcli:app", "--address", "auto"), "--address is not an option of `qserve run`: name the broker"),
        (("run", "shopcli:app", "--non-blocking"), "--non-blocking is not an option of `qserve run`: use `qserve"),
        (("run", "shopcli:app", "--runtime-env", "x"), "--runtime-env is not an option of `qserve run`: install"),
        (("run", "app.yaml", "--blocking", "--working-dir", ".", "size=3"), "a FILE says all of this itself"),
        (("run", "app.yaml", "size=3"), "a FILE says all of this itself"),
        (("build", "size=3", "-o", "-"), "name one MODULE:NODE"),
        (("build", "shopcli:app", "shopcli:other", "--name", "x", "-o", "-"), "belong to a single one"),
    ],
)
def test_what_a_command_cannot_do_is_told_with_exit_code_2(
    qserve: Qserve, registry: Registry, words: tuple[str, ...], message: str
) -> None:
    Path("app.yaml").write_text(APP)

    result = qserve(*words)

    assert result.exit_code == 2
    assert message in result.output
    assert registry.names() == []


@pytest.mark.slow
def test_run_refuses_a_bad_file_before_it_starts_anything(
    qserve: Qserve, registry: Registry, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("app.yaml").write_text(f"{APP}    replicas: 3\n")

    result = qserve("run", "app.yaml")

    assert (result.exit_code, result.output) == (2, "")
    assert "Error: app.yaml:4:5 applications[0].replicas: unknown key 'replicas'" in capfd.readouterr().err


def test_an_error_of_user_code_is_told_with_its_traceback_and_the_place_in_the_file(
    qserve: Qserve, registry: Registry, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("shopcli.py").write_text("1 / 0\n")
    Path("app.yaml").write_text(APP)

    result = qserve("deploy", "app.yaml")

    assert result.exit_code == 1
    assert "Error: app.yaml:3:5 applications[0].import_path: shopcli:app cannot be loaded: ZeroDivisionError" in (
        result.output
    )
    assert registry.names() == []


# -- config ----------------------------------------------------------------------------------------


def test_config_prints_what_is_deployed_as_a_file_that_deploys_the_same(
    qserve: Qserve, installation: Installation
) -> None:
    record = serve(installation.registry, "shop")
    file = {"name": "office", "import_path": "shopcli:other", "route_prefix": "/office"}
    serve(installation.registry, "office", config=json.dumps(file))

    Path("app.yaml").write_text(qserve("config").output)

    office, shop = sorted(read_file(Path("app.yaml")).applications, key=lambda app: app.name)
    assert office.model_dump(exclude_unset=True) == file
    assert (shop.import_path, shop.deployments[0].options) == (
        "shopcli:app",
        {"num_replicas": 1, "graceful_shutdown_timeout_s": 0.0},
    )
    assert json.loads(qserve("config", "-n", "office", "--json").output) == {"applications": [file]}
    assert "application 'x' is not deployed; deployed are: office, shop" in qserve("config", "-n", "x").output
    assert "shop Model.num_replicas" in qserve("config", "--origin", "-n", record.name).output


def test_config_of_a_file_tells_where_each_value_comes_from(qserve: Qserve, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("app.yaml").write_text(
        f"http_options: {{port: 8100, host: 0.0.0.0}}\n{APP}    deployments:\n"
        "      - name: Model\n        max_concurrent_queries: 7\n"
        "      - name: Front\n        autoscaling_config: {max_replicas: 9}\n"
    )
    monkeypatch.setenv("QSERVE_HOST", "::1")
    monkeypatch.delenv("QSERVE_REQUEST_TIMEOUT_S")

    rows = {}
    for line in qserve("config", "app.yaml", "--origin").output.splitlines():
        name, value, origin = re.split(r" {2,}", line)
        rows[name] = value, origin

    assert rows["http_options.host"] == ("::1", "QSERVE_HOST")
    assert rows["http_options.port"] == ("8100", "app.yaml:1")
    assert rows["http_options.request_timeout_s"][1] == "default"
    assert rows["shop import_path"][1] == "app.yaml:4"
    assert rows["shop Model.num_replicas"][1] == "code"
    assert rows["shop Model.max_ongoing_requests"][1] == "app.yaml:7"
    assert rows["shop Model.max_retries"][1] == "default"
    assert rows["shop Front.autoscaling_config.max_replicas"][1] == "app.yaml:9"
    assert rows["shop Front.autoscaling_config.min_replicas"][1] == "default"


@pytest.mark.parametrize("name", ["127.0.0.1:9000", "[::1]:9000"])
def test_a_port_with_an_address_wins_over_the_file(qserve: Qserve, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    Path("app.yaml").write_text(f"http_options: {{port: 8100, host: 0.0.0.0}}\n{APP}")
    monkeypatch.setenv("QSERVE_PORT", name)  # as docker compose takes it

    rows = [re.split(r" {2,}", line) for line in qserve("config", "app.yaml", "--origin").output.splitlines()]

    host = name.rpartition(":")[0].strip("[]")
    assert rows[:2] == [
        ["http_options.host", host, "QSERVE_PORT"],
        ["http_options.port", "9000", "QSERVE_PORT"],
    ]


def test_config_of_a_file_prints_what_it_says(qserve: Qserve) -> None:
    Path("app.yaml").write_text(APP)

    assert qserve("config", "app.yaml").output == APP
    assert "application 'x' is not in app.yaml; it has: shop" in qserve("config", "app.yaml", "-n", "x").output


# -- delete and shutdown ---------------------------------------------------------------------------


def serve(registry: Registry, name: str, config: str = "") -> ApplicationRecord:
    model = DeploymentRecord("Model", grace_s=0.0)
    record = ApplicationRecord(name, "v1", "Model", target="shopcli:app", config=config, deployments={"Model": model})
    registry.stage(record)
    registry.promote(replace(record, route_prefix=None))
    return record


def test_delete_removes_one_application(qserve: Qserve, registry: Registry) -> None:
    serve(registry, "shop")
    serve(registry, "office")

    result = qserve("delete", "shop")

    assert (result.exit_code, result.output) == (0, "shop: deleted\n")
    assert registry.names() == ["office"]


@pytest.mark.parametrize(("ends", "said"), [(True, ""), (False, "; replicas that have not reported their end: 1")])
def test_delete_waits_for_the_end_of_the_replicas(
    qserve: Qserve, installation: Installation, monkeypatch: pytest.MonkeyPatch, ends: bool, said: str
) -> None:
    reports = installation.reports("shop")
    serve(installation.registry, "shop")
    reports.report(ReplicaStatus("Model-1", "Model", "v1", RUNNING))
    monkeypatch.setattr("qserve.cli.delete._END_WITHIN_S", 60.0 if ends else 0.0)
    # the name in that module only: threads of other tests sleep as well
    monkeypatch.setattr("qserve.cli.delete.time", SimpleNamespace(sleep=lambda s: reports.remove("Model-1")))

    assert qserve("delete", "shop").output == f"shop: deleted{said}\n"
    reports.remove("Model-1")


def test_delete_names_what_is_deployed_when_there_is_no_such_application(qserve: Qserve, registry: Registry) -> None:
    serve(registry, "shop")

    result = qserve("delete", "shoop")

    assert (result.exit_code, result.output) == (
        2,
        "Error: application 'shoop' is not deployed; deployed are: shop. Did you mean 'shop'?\n",
    )
    assert registry.names() == ["shop"]


def test_shutdown_removes_all_applications_once_it_is_told_to(qserve: Qserve, registry: Registry) -> None:
    serve(registry, "shop")
    serve(registry, "office")

    refused = qserve("shutdown")
    assert (refused.exit_code, refused.output) == (2, "Error: this removes office, shop: pass -y\n")
    assert len(registry.names()) == 2

    assert qserve("shutdown", "-y").output == "office: deleted\nshop: deleted\n"
    assert registry.names() == []
    assert qserve("shutdown").output == "no application is deployed\n"


# -- dry run ---------------------------------------------------------------------------------------


def test_a_dry_run_prints_what_would_change_and_changes_nothing(qserve: Qserve, registry: Registry) -> None:
    Path("app.yaml").write_text(APP)

    result = qserve("deploy", "app.yaml", "--dry-run")

    assert result.exit_code == 0
    assert "shop none -> 3 replicas at / (starts)\n" in result.output
    assert (registry.names(), registry.last_change()) == ([], "0-0")
