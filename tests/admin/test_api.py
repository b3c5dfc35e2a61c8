"""The REST API for programs: Ray Serve's paths, bodies and statuses, behind a token, and nothing for anybody else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from http_client import Client
from processes import Site, free_port, wait_until
from qserve_gateway.admin.application import AdminApi
from qserve_gateway.admin.command import ADMIN_TOKEN
from qserve_gateway.admin.deploys import Deploys, failures_in
from qserve_gateway.request.access import AccessPolicy
from roles import Roles
from werkzeug.test import Client as Wsgi
from werkzeug.test import TestResponse

from qserve.__main__ import main
from qserve.appfile.read import read_file
from qserve.deploy.installation import Installation
from qserve.fleet.store import FleetStore
from qserve.wire.application import ApplicationRecord, DeploymentRecord, Resources, Scaling
from qserve.wire.status import RUNNING, ReplicaStatus

TOKEN = "the-token-of-this-test"
ALL, SCALE = "/api/serve/applications/", "/api/v1/applications/{}/deployments/{}/scale"
FILE = {"applications": [{"name": "shop", "import_path": "shop:app", "deployments": [{"name": "Model ✓ \U0001f600"}]}]}
CONFIG = json.dumps({"name": "shop", "import_path": "shop:app", "external_scaler_enabled": True})
DEPLOYMENTS = {
    "Model": DeploymentRecord("Model", num_replicas=2, resources=Resources(gpus=1.0)),
    "Scaled": DeploymentRecord("Scaled", scaling=Scaling()),
}
SHOP = ApplicationRecord(
    "shop",
    "v1",
    "Model",
    "/shop",
    config=CONFIG,
    deployments=DEPLOYMENTS,
    deployed_at=9.5,
    target="shop:app",
    external_scaler=True,
)
Send = Callable[..., TestResponse]


class Recorded(Deploys):
    """Deploys whose command is not run; ``output`` is what it would say, once ``may_end`` returns."""

    output = ""
    given: dict[str, Any] | None = None

    def may_end(self) -> None:
        """Replaced by tests."""

    def _deploy(self, folder: str) -> str:
        self.given = read_file(Path(folder) / "body.yaml").model_dump(exclude_unset=True)
        self.may_end()
        return self.output


@pytest.fixture
def deploys(installation: Installation) -> Recorded:
    return Recorded(installation.settings, ".")


@pytest.fixture
def send(installation: Installation, deploys: Recorded) -> Send:
    """Send a request with the token, unless it has another ``Authorization``."""
    api = Wsgi(AdminApi(installation, AccessPolicy.from_env({ADMIN_TOKEN: TOKEN}, ADMIN_TOKEN), deploys))

    def send(method: str, path: str, body: Any = None, token: str | None = f"Bearer {TOKEN}", **headers: str) -> Any:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        given = {} if token is None else {"Authorization": token}
        return api.open(path, method=method, data=data, headers={**given, **headers})

    return send


def serve(installation: Installation, record: ApplicationRecord = SHOP) -> None:
    installation.registry.stage(record)
    installation.registry.promote(record)


# -- who may ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "", "Bearer", "Bearer x", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN])
@pytest.mark.parametrize(("method", "path"), [("GET", ALL), ("PUT", ALL), ("DELETE", ALL), ("GET", "/elsewhere")])
def test_without_the_token_nothing_is_said_or_changed(
    installation: Installation, deploys: Recorded, send: Send, token: str | None, method: str, path: str
) -> None:
    serve(installation)

    answer = send(method, path, FILE if method == "PUT" else None, token=token)

    assert (answer.status_code, answer.json["error"]["code"]) == (401, "unauthorized")
    assert (deploys.given, installation.registry.names()) == (None, ["shop"])


def test_a_web_page_of_another_host_may_not_send_what_changes_something(installation: Installation, send: Send) -> None:
    serve(installation)

    assert send("DELETE", ALL, Origin="https://elsewhere.example").status_code == 403
    assert installation.registry.names() == ["shop"]


@pytest.mark.parametrize("text", [None, "", "two words\n"])
def test_without_a_token_the_command_does_not_start(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None
) -> None:
    monkeypatch.delenv(ADMIN_TOKEN, raising=False)
    monkeypatch.setattr("os.execv", lambda *command: pytest.fail("it was started"))
    path = tmp_path / "token"
    if text is not None:
        path.write_text(text.replace("two words", ""))
        monkeypatch.setenv(f"{ADMIN_TOKEN}_FILE", str(path))

    result = CliRunner().invoke(main, ["api"])

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"Error: set {ADMIN_TOKEN}, or {ADMIN_TOKEN}_FILE")


# -- PUT -------------------------------------------------------------------------------------------

BAD: list[tuple[bytes | dict[str, Any], str]] = [
    (b"", "body"),
    (b"{", "not valid JSON"),
    (b"[]", "the file must be a mapping"),
    (b'{"applications": [], "applications": []}', "applications"),
    ({"applications": [{"name": "shop"}]}, "the body applications[0].import_path: it is missing"),
    ({"aplications": []}, "unknown key 'aplications'. Did you mean 'applications'?"),
    (
        {"applications": [{"import_path": "a:b", "deployments": [{"name": "M", "num_replicas": -1}]}]},
        "the body applications[0].deployments[0].num_replicas: ",
    ),
    (
        {"applications": [{"import_path": "a:b", "name": "x"}, {"import_path": "a:b", "name": "x"}]},
        "another application is named 'x'",
    ),
]


@pytest.mark.parametrize(("body", "message"), BAD, ids=range(len(BAD)))
def test_a_bad_body_is_refused_with_its_place_and_what_is_allowed(
    installation: Installation, deploys: Recorded, send: Send, body: bytes | dict[str, Any], message: str
) -> None:
    answer = send("PUT", ALL, body)

    assert answer.status_code == 400
    assert message in answer.json["error"]["message"]
    assert (deploys.given, installation.registry.last_change()) == (None, "0-0")


def test_a_body_of_more_than_a_mebibyte_is_not_read(deploys: Recorded, send: Send) -> None:
    answer = send("PUT", ALL, b" " * (1 << 20) + b"{}")

    assert (answer.status_code, answer.json["error"]["code"]) == (413, "body_too_large")
    assert deploys.given is None


def test_an_accepted_file_is_deployed_in_the_background_one_at_a_time(
    installation: Installation, deploys: Recorded, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    during: list[Any] = []

    def may_end() -> None:
        during.append(send("GET", ALL).json["applications"]["shop"]["status"])
        during.append(send("PUT", ALL, FILE).status_code)
        during.append(send("DELETE", ALL).status_code)

    monkeypatch.setattr(deploys, "may_end", may_end)

    answer = send("PUT", ALL, FILE)

    assert (answer.status_code, answer.json) == (200, {})
    wait_until(lambda: not deploys.expected().is_running, description="the deploy is over")
    assert during == ["DEPLOYING", 409, 409]
    assert deploys.given == FILE
    assert send("GET", ALL).json["applications"] == {}


def test_a_deploy_that_fails_is_seen_with_its_message(
    installation: Installation, deploys: Recorded, send: Send
) -> None:
    deploys.output = "shop: deploying\nError: shop: its constructor failed:\nValueError: no file\n\nError: exit code 1"
    send("PUT", ALL, FILE)
    wait_until(lambda: not deploys.expected().is_running, description="the deploy is over")

    found = send("GET", ALL).json["applications"]["shop"]
    assert (found["status"], found["message"]) == ("DEPLOY_FAILED", "its constructor failed:\nValueError: no file")

    serve(installation)  # an older version goes on
    found = send("GET", ALL).json["applications"]["shop"]
    assert found["status"] != "DEPLOY_FAILED"
    assert found["message"].endswith("ValueError: no file")


def test_what_fails_before_anything_is_changed_is_about_all_applications() -> None:
    said = "Traceback\n  File x\nValueError: no\n{}body.yaml applications[0]: a:b cannot be loaded"
    output = said.format("Error: ") + "\n\nError: exit code 2"

    found = failures_in(output, ["a", "b"])

    assert found == dict.fromkeys("ab", said.format(""))
    assert failures_in("", ["a"]) == {}
    assert failures_in("Error: exit code -9", ["a"]) == {"a": "exit code -9"}


# -- GET -------------------------------------------------------------------------------------------


def test_the_details_have_the_keys_of_ray(installation: Installation, send: Send) -> None:
    serve(installation)
    serve(installation, replace(SHOP, name="office", config="", external_scaler=False, route_prefix=None))
    report = ReplicaStatus("Model-a-1", "Model", "v1", RUNNING, pid=7, host="a", worker="a-1")
    installation.reports("shop").report(report)

    answer = send("GET", ALL.rstrip("/"))

    found = answer.json
    assert answer.headers["Content-Type"] == "application/json"
    assert found.keys() == {
        "controller_info", "proxy_location", "http_options", "grpc_options", "proxies", "deploy_mode", "applications",
        "target_capacity",
    }  # fmt: skip
    shop, office = found["applications"]["shop"], found["applications"]["office"]
    assert (shop["name"], shop["route_prefix"], shop["last_deployed_time_s"]) == ("shop", "/shop", 9.5)
    assert (shop["source"], office["source"], office["route_prefix"]) == ("declarative", "imperative", None)
    assert shop["deployed_app_config"] == json.loads(CONFIG)
    model = shop["deployments"]["Model"]
    assert (model["status"], model["target_num_replicas"]) == ("UPDATING", 2)
    assert model["deployment_config"] == {"name": "Model", "num_replicas": 2, "ray_actor_options": {"num_gpus": 1.0}}
    assert model["required_resources"] == {"CPU": 1.0, "GPU": 1.0}
    (replica,) = model["replicas"]
    assert (replica["replica_id"], replica["state"], replica["pid"], replica["node_id"]) == (
        "Model-a-1",
        "RUNNING",
        7,
        "a",
    )
    installation.reports("shop").remove("Model-a-1")


# -- DELETE and scale ------------------------------------------------------------------------------


def test_delete_removes_all_applications(installation: Installation, send: Send) -> None:
    serve(installation)
    serve(installation, replace(SHOP, name="office", route_prefix="/office"))

    answer = send("DELETE", ALL)

    assert (answer.status_code, answer.json) == (200, {})
    wait_until(lambda: not installation.registry.names(), description="they are removed")


def wanted(installation: Installation) -> dict[str, int | None]:
    store = FleetStore(installation.client, installation.keys, installation.seal)
    return {name: wish.count for name, wish in store.wishes("shop").items()}


def test_an_external_scaler_sets_the_number_of_replicas(installation: Installation, send: Send) -> None:
    serve(installation)

    answer = send("POST", SCALE.format("shop", "Model"), {"target_num_replicas": 3})

    assert (answer.status_code, answer.json) == (200, {"message": "shop/Model: 2 -> 3 replicas"})
    assert wanted(installation) == {"Model": 3}


@pytest.mark.parametrize(
    ("app", "deployment", "body", "status", "message"),
    [
        ("shopp", "Model", {"target_num_replicas": 3}, 404, "application 'shopp' is not deployed; deployed"),
        ("shop", "Modle", {"target_num_replicas": 3}, 404, "deployment 'Modle' is not in application 'shop'"),
        ("shop", "Model", {"target_num_replicas": -1}, 400, "from 0 to 10000; got -1"),
        ("shop", "Model", {"target_num_replicas": 10_001}, 400, "from 0 to 10000; got 10001"),
        ("shop", "Model", {"target_num_replicas": "3"}, 400, "with a whole number"),
        ("shop", "Model", {"target_num_replicas": True}, 400, "with a whole number"),
        ("shop", "Model", [], 400, "with a whole number"),
        ("shop", "Scaled", {"target_num_replicas": 3}, 400, "scales by its load"),
        ("office", "Model", {"target_num_replicas": 3}, 412, "not deployed with external_scaler_enabled: true"),
    ],
)  # fmt: skip
def test_a_number_that_is_not_possible_is_refused_with_rays_statuses(
    installation: Installation, send: Send, app: str, deployment: str, body: Any, status: int, message: str
) -> None:
    serve(installation)
    serve(installation, replace(SHOP, name="office", config="", external_scaler=False, route_prefix=None))

    answer = send("POST", SCALE.format(app, deployment), body)

    assert answer.status_code == status
    assert message in answer.json["error"]["message"]
    assert wanted(installation) == {}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", ALL, 405), ("GET", SCALE.format("a", "b"), 405), ("GET", "/", 404), ("GET", "/api/v1/jobs", 404)],
)
def test_other_paths_and_methods_are_refused(send: Send, method: str, path: str, status: int) -> None:
    assert send(method, path).status_code == status


# -- with processes --------------------------------------------------------------------------------

SOURCE = """
import os, qserve

@qserve.deployment
class Model:
    def __init__(self, fails):
        if fails:
            raise ValueError("no such file")

    def __call__(self):
        return "here"

def builder(args):
    assert "QSERVE_ADMIN_TOKEN" not in os.environ
    return Model.bind(args.get("fails"))
"""


@pytest.mark.slow
def test_a_program_deploys_and_deletes_over_http(site: Site) -> None:
    roles, port = Roles(site, SOURCE, {"QSERVE_BROKER_URL": site.broker()}), free_port()
    worker = roles.command("worker")
    api = roles.command("api", "--port", str(port), QSERVE_ADMIN_TOKEN=TOKEN)
    client, token = Client(port), f"Bearer {TOKEN}"
    wait_until(lambda: _is_up(client), description="the API answers")

    def file(**args: Any) -> dict[str, Any]:
        app = {"name": "shop", "import_path": "shop:builder", "args": args, "external_scaler_enabled": True}
        return {"applications": [app]}

    def shop() -> dict[str, Any]:
        return client.get(ALL, Authorization=token).json["applications"].get("shop", {})

    assert client.send("PUT", ALL, file(fails=1), Authorization=token).status == 200
    wait_until(lambda: shop().get("status") == "DEPLOY_FAILED", description="the deploy has failed")
    assert "ValueError: no such file" in shop()["message"]
    assert client.send("PUT", ALL, file(), Authorization=token).status == 200
    wait_until(lambda: shop().get("status") == "RUNNING", description=f"it runs {api.output} {worker.output}")
    assert [one["state"] for one in shop()["deployments"]["Model"]["replicas"]] == ["RUNNING"]
    assert client.send("DELETE", ALL, Authorization=token).status == 200
    wait_until(lambda: not shop(), description="it is removed")
    assert TOKEN not in api.output + worker.output


def _is_up(client: Client) -> bool:
    try:
        return client.get(ALL).status == 401
    except OSError:
        return False
