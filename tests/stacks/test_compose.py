"""The file for docker compose: what it has for which application."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from applications import APPLICATIONS, plan_for, record

from qserve.stacks.compose import compose_text
from qserve.stacks.plan import Plan, services_of, slug
from qserve.wire.application import DeploymentRecord, Resources

ROOT = Path(__file__).parents[2]


def loaded(plan: Plan) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(compose_text(plan))
    return found


def test_it_has_a_service_for_each_deployment_beside_the_broker_the_gateway_and_the_deploy() -> None:
    services = loaded(plan_for("graph"))["services"]

    assert list(services) == ["broker", "deploy", "gateway", "spanish-responder", "language-classifier"]
    command = ["worker", "--name", "default", "--deployment", "SpanishResponder", "--replicas", "1"]
    assert services["spanish-responder"]["command"] == command
    assert services["spanish-responder"]["scale"] == 2
    assert services["deploy"]["command"] == ["deploy", "shop:app"]


def test_resources_become_limits_of_the_containers() -> None:
    service = loaded(plan_for("gpu"))["services"]["model"]

    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert (device["count"], device["capabilities"]) == (2, ["gpu"])
    assert (service["mem_limit"], service["cpus"], service["stop_grace_period"]) == (f"{4 * 1024 + 128}m", 16, "55s")
    assert service["command"][-2:] == ["--replicas", "4"]


def test_several_applications_share_a_stack_and_their_services_have_names_of_their_own() -> None:
    services = loaded(plan_for("two"))["services"]

    assert {*services} - {"broker", "deploy", "gateway"} == {"shop-model", "back-office-model", "back-office-front"}
    assert services["back-office-model"]["command"][:3] == ["worker", "--name", "back office"]


def test_variables_reach_the_containers_as_they_were_given() -> None:
    plan = plan_for("environment")
    worker = loaded(plan)["services"]["model"]

    assert worker["environment"]["PRICE"] == "5$$ 'each': \"\u00e4\" $$(HOME)"  # compose makes one $ of two
    assert worker["environment"]["TOKEN"] == "${TOKEN:-}"
    assert worker["environment"]["QSERVE_SECRET_KEY_FILE"] == "/run/secrets/qserve_key"
    assert "TOKEN" not in loaded(plan)["services"]["gateway"]["environment"]
    assert loaded(plan)["services"]["gateway"]["ports"] == ["127.0.0.1:${QSERVE_PORT:-9000}:8000"]


def test_no_secret_is_in_the_file_and_none_on_a_command_line() -> None:
    found = loaded(plan_for("graph"))

    assert {one["file"] for one in found["secrets"].values()} == {"./secrets/qserve_key", "./secrets/broker_password"}
    assert "requirepass" not in json.dumps([one.get("command") for one in found["services"].values()][1:])
    assert "$$(cat /run/secrets/broker_password)" in found["services"]["broker"]["command"][2]


def test_its_containers_are_as_limited_as_those_of_the_committed_example() -> None:
    ours = loaded(plan_for("graph"))["services"]
    committed = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    limits = ("read_only", "tmpfs", "cap_drop", "security_opt", "pids_limit", "restart", "mem_limit", "user", "volumes")

    for name, other in (("broker", "broker"), ("gateway", "gateway"), ("language-classifier", "spanish")):
        for limit in (*limits, "stop_grace_period"):
            assert ours[name].get(limit) == committed[other].get(limit), (name, limit)
    said, ours_said = " ".join(committed["broker"]["command"][1:-2]), ours["broker"]["command"][2]
    assert set(said.split()) - {"--save", "yes", ""} <= set(ours_said.split())


@pytest.mark.parametrize("app", APPLICATIONS)
def test_the_same_application_gives_the_same_file(app: str) -> None:
    assert compose_text(plan_for(app)) == compose_text(plan_for(app))
    assert {service["image"].split(":")[0] for service in loaded(plan_for(app))["services"].values()} <= {
        "redis", "shop-worker", "shop-gateway",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("SpanishResponder", "spanish-responder"),
        ("HTTPFront", "http-front"),
        ("my_model.v2", "my-model-v2"),
        ("2nd", "app-2nd"),
        ("\u041c\u043e\u0434\u0435\u043b\u044c", "app"),
        ("A" * 90, "a" * 30),
    ],
)
def test_names_become_names_of_services(words: str, name: str) -> None:
    assert slug(words) == name


def test_no_two_services_have_one_name() -> None:
    names = ("Gateway", "gateway", "model", "Model", "deploy")
    deployments = [DeploymentRecord(name, resources=Resources()) for name in names]

    found = [service.name for service in services_of([record("default", *deployments)])]

    assert found == ["gateway-2", "gateway-3", "model", "model-2", "deploy-2"]


@pytest.mark.long
@pytest.mark.parametrize("app", APPLICATIONS)
def test_it_is_what_the_compose_specification_says(app: str) -> None:
    from importlib.resources import files

    import jsonschema

    text = next(files("check_jsonschema").joinpath("builtin_schemas").rglob("compose-spec.json")).read_text()

    jsonschema.validate(loaded(plan_for(app)), json.loads(text))
