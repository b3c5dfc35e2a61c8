"""A config file: what it may say, and what is said of each mistake in it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qserve.__main__ import main
from qserve.appfile.model import ServeFile, json_schema
from qserve.appfile.read import read_file, read_value
from qserve.appfile.yaml_text import FileError
from qserve.define.options import DeploymentOptions

GOOD = """
proxy_location: EveryNode
controller_options: {}
http_options:
  host: 0.0.0.0
  port: 8000
  request_timeout_s: 5
  keep_alive_timeout_s: 90
  root_path: ""
  ssl_keyfile: null
grpc_options: {port: 9000, grpc_servicer_functions: []}
logging_config: {encoding: JSON, log_level: INFO, logs_dir: null, enable_access_log: true}
tracing_config: {enabled: false}
target_capacity: null
applications:
  - name: shop
    route_prefix: /shop
    import_path: shop.main:app
    args: {model: small, sizes: [1, 2]}
    runtime_env: {env_vars: {A: b, PYTHONHASHSEED: "0"}, pip: [numpy]}
    external_scaler_enabled: false
    autoscaling_policy: null
    logging_config: null
    deployments:
      - &model
        name: Model
        num_replicas: auto
        max_ongoing_requests: 5
        user_config: {threshold: 0.5, names: [a, b]}
        autoscaling_config: {min_replicas: 0, max_replicas: 9, target_num_ongoing_requests_per_replica: 3}
        ray_actor_options: {num_cpus: 1, runtime_env: {env_vars: {A: b}}}
        graceful_shutdown_wait_loop_s: 2
        max_surge_percent: 20
        rolling_update_percentage: 30
        request_router_config: {a: 1}
      - <<: *model
        name: Other
        num_replicas: null
  - name: back office
    route_prefix: null
    import_path: office.app
"""
"""Every key of Ray Serve's, and YAML's own ways to say things twice."""


def read(tmp_path: Path, text: str | bytes) -> ServeFile:
    path = tmp_path / "app.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_file(path)


def refused(tmp_path: Path, text: str | bytes) -> str:
    with pytest.raises(FileError) as caught:
        read(tmp_path, text)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_a_file_with_every_key_of_ray_serve_is_read(tmp_path: Path) -> None:
    file = read(tmp_path, GOOD)

    shop, office = file.applications
    model, other = shop.deployments
    assert (file.http_options.host, file.http_options.port) == ("0.0.0.0", 8000)
    assert (shop.name, shop.route_prefix, shop.import_path) == ("shop", "/shop", "shop.main:app")
    assert shop.args == {"model": "small", "sizes": [1, 2]}
    assert model.options["max_ongoing_requests"] == 5
    assert other.options == {**model.options, "num_replicas": None}
    assert ("route_prefix" in office.model_fields_set, office.route_prefix) == (True, None)
    assert file.where("applications", 0, "deployments", 1, "user_config").endswith(
        "app.yaml:29:9 applications[0].deployments[1].user_config"
    )


def test_what_has_no_effect_is_named_once_in_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(tmp_path, GOOD).warn()

    warning, environment = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert all(f"{key} (" in environment for key in ("pip", "env_vars.PYTHONHASHSEED"))
    assert "env_vars.A" not in environment
    for key in ("proxy_location", "grpc_options", "http_options.keep_alive_timeout_s"):
        assert f"{key} (" in warning
    assert "applications[0].deployments[0].rolling_update_percentage (" in warning
    assert "http_options.port (" in warning, "a gateway has its own"
    for key in ("root_path", "target_capacity", "autoscaling_policy", "num_replicas", "logging_config"):
        assert key not in warning, "it is empty, or has an effect"
    caplog.clear()
    read(tmp_path, GOOD).warn(is_run=True)
    assert "http_options.port" not in caplog.text


def test_what_a_file_says_of_the_gateway_and_the_logs_are_variables_of_qserve_run(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD).variables == {
        "QSERVE_HOST": "0.0.0.0",
        "QSERVE_PORT": "8000",
        "QSERVE_REQUEST_TIMEOUT_S": "5.0",
        "QSERVE_LOG_LEVEL": "info",
        "QSERVE_LOG_FORMAT": "json",
        "QSERVE_ACCESS_LOG": "1",
        "QSERVE_TRACING": "off",
    }
    assert read(tmp_path, "applications: []").variables == {}


@pytest.mark.parametrize(
    ("given", "variables"),
    [
        ({}, {}),
        ({"enabled": True}, {"QSERVE_TRACING": "on", "QSERVE_TRACING_SAMPLING_RATIO": "0.01"}),
        (
            {"enabled": True, "exporter_import_path": "shop.spans:exporter", "sampling_ratio": 1},
            {
                "QSERVE_TRACING": "on",
                "QSERVE_TRACING_EXPORTER": "shop.spans:exporter",
                "QSERVE_TRACING_SAMPLING_RATIO": "1.0",
            },
        ),
    ],
)
def test_what_a_file_says_of_tracing_are_variables_of_qserve_run(given: Any, variables: dict[str, str]) -> None:
    assert read_value({"applications": [], "tracing_config": given}, "body").variables == variables


@pytest.mark.parametrize("given", [{"sampling_ratio": 2}, {"exporter_import_path": "; rm"}, {"exporter": "a:b"}])
def test_what_a_file_says_wrongly_of_tracing_is_refused(given: Any) -> None:
    with pytest.raises(FileError, match="tracing_config"):
        read_value({"applications": [], "tracing_config": given}, "body")


@pytest.mark.parametrize(
    ("level", "name"), [("WARNING", "warning"), ("CRITICAL", "error"), (10, "debug"), (25, "info"), ("error", "error")]
)
def test_each_level_of_python_has_one_of_ours(level: Any, name: str) -> None:
    file = read_value({"applications": [], "logging_config": {"log_level": level}}, "body")

    assert file.variables["QSERVE_LOG_LEVEL"] == name


def test_the_logs_of_a_file_are_those_of_applications_without_any_but_for_what_a_variable_says() -> None:
    apps = [{"import_path": "a:b"}, {"name": "other", "import_path": "a:b", "logging_config": {"log_level": "ERROR"}}]
    given = {"log_level": "DEBUG", "encoding": "JSON", "logs_dir": "/logs"}
    file = read_value({"applications": apps, "logging_config": given}, "body")

    shared, own = file.logs_of(0, {"QSERVE_LOG_FORMAT": "text"}), file.logs_of(1, {})

    assert shared is not None and shared.given == {"log_level": "DEBUG", "logs_dir": "/logs"}
    assert own is not None and own.given == {"log_level": "ERROR"}


APP = "applications:\n  - name: shop\n    import_path: shop:app\n"
DEPLOYMENT = f"{APP}    deployments:\n      - name: Model\n"
LAUGHS = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [*{before}, *{before}, *{before}, *{before}, *{before}, *{before}, *{before}, *{before}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD = {
    # what is no YAML, or more of it than anybody writes
    "": "app.yaml: it is empty",
    "# nothing\n": "app.yaml: it is empty",
    "applications: [": "app.yaml:2:1: this is not YAML: did not find expected node content",
    "a: b: c\n": "app.yaml:1:5: this is not YAML: mapping values are not allowed in this context",
    "a: 1\n---\nb: 2\n": "app.yaml:2:1: a second document begins; put everything into one",
    "- 1\n": "app.yaml:1:1: the file must be a mapping with the key `applications`",
    "just words\n": "app.yaml:1:1: the file must be a mapping",
    f"{APP}    args: &x\n      again: [*x]\n": "app.yaml:5:15: the anchor &x contains itself",
    f"{APP}    args: *x\n": "app.yaml:4:11: no anchor &x comes before this alias",
    LAUGHS: "app.yaml:5:8: the aliases stand for more than 10000 values",
    "[" * 60 + "]" * 60: "app.yaml:1:52: it is nested more than 50 levels deep",
    "[" * 100_000: "nest",
    f"{APP}{APP}": "app.yaml:4:1: the key 'applications' is here twice; the first is in line 1",
    f"{APP}    args: {{200: ok}}\n": "app.yaml:4:12: the key '200' is not text; put it into quotes",
    f"{APP}    args: {{on: ok}}\n": "app.yaml:4:12: the key 'on' is not text; put it into quotes",
    f"{APP}    args: {{[1]: ok}}\n": "app.yaml:4:12: the key is not text; put it into quotes",
    f"{APP}    args: {{since: 2026-01-01}}\n": "a value of the kind 'timestamp' is not JSON; put it into quotes",
    f"{APP}    args: {{x: !!python/object:os.system 1}}\n": "a value of the kind 'python/object:os.system' is not JSON",
    f"{APP}    args: {{x: !mine 1}}\n": "a value of the kind '!mine' is not JSON; put it into quotes",
    f"{APP}    args: {{x: !!int a}}\n": "app.yaml:4:15: 'a' is not a value of int",
    f"{APP}    args: {{x: .nan}}\n": "app.yaml:4:15: '.nan' is not a number that JSON has",
    f"{APP}    args: {{<<: 1}}\n": "app.yaml:4:12: '<<' takes a mapping, or a list of them",
    # keys
    "application: []\n": "app.yaml:1:1 application: unknown key 'application'. Did you mean 'applications'?",
    "applications: []\nx: 1\n": "app.yaml:2:1 x: unknown key 'x'. The keys here are: applications, controller_options",
    "http_options: {}\n": "app.yaml:1:1 applications: it is missing",
    "http_options: {prot: 1}\napplications: []\n": "app.yaml:1:16 http_options.prot: unknown key 'prot'. Did you mean",
    "import_path: shop:app\n": "app.yaml:1:1 import_path: 'import_path' does not belong here; write it in an item of",
    f"{APP}    port: 8000\n": "app.yaml:4:5 applications[0].port: 'port' does not belong here; write it in http",
    f"{APP}    replicas: 2\n": "app.yaml:4:5 applications[0].replicas: unknown key 'replicas'. The keys here are: args",
    f"{DEPLOYMENT}        num_replica: 2\n": (
        "app.yaml:6:9 applications[0].deployments[0].num_replica: unknown key 'num_replica'. Did you mean 'num_repli"
    ),
    f"{DEPLOYMENT}        init_args: [2]\n": "'init_args' does not belong here; write it in `bind(...)`",
    f"{DEPLOYMENT}        route_prefix: /x\n": "'route_prefix' does not belong here; write it in the application",
    f"{DEPLOYMENT}        autoscaling_config: {{max_replica: 2}}\n": (
        "app.yaml:6:30 applications[0].deployments[0].autoscaling_config.max_replica: unknown key 'max_replica'."
        " Did you mean 'max_replicas'?"
    ),
    f"{DEPLOYMENT}        ray_actor_options: {{num_cpu: 2}}\n": (
        "app.yaml:6:29 applications[0].deployments[0].ray_actor_options.num_cpu: unknown key 'num_cpu'. Did you mean"
    ),
    # values
    "http_options: {port: 70000}\napplications: []\n": "http_options.port: input should be less than or equal to 65535",
    "applications: 3\n": "app.yaml:1:1 applications: input should be a valid list; got 3",
    "applications: [3]\n": "app.yaml:1:16 applications[0]: input should be a valid dictionary",
    "applications:\n  - name: shop\n": "app.yaml:2:5 applications[0].import_path: it is missing",
    "applications:\n  - name: ''\n    import_path: a:b\n": "applications[0].name: string should have at least 1",
    "applications:\n  - import_path: shop.py\n": "app.yaml:2:5 applications[0].import_path: 'shop.py' is a file path.",
    f"{APP}    route_prefix: shop\n": "app.yaml:4:5 applications[0].route_prefix: route_prefix must start with '/'",
    f"{APP}    args: 3\n": "app.yaml:4:5 applications[0].args: input should be a valid dictionary; got 3",
    f"{APP}    deployments: {{}}\n": "app.yaml:4:5 applications[0].deployments: input should be a valid list",
    f"{APP}    deployments: [{{num_replicas: 2}}]\n": "applications[0].deployments[0].name: it is missing",
    f"{DEPLOYMENT}        num_replicas: many\n": (
        "app.yaml:6:9 applications[0].deployments[0].num_replicas: input should be a valid integer"
    ),
    f"{DEPLOYMENT}        num_replicas: 0\n": "app.yaml:6:9 applications[0].deployments[0].num_replicas: num_replicas",
    f"{DEPLOYMENT}        num_replicas: 2\n        autoscaling_config: {{}}\n": (
        "app.yaml:6:9 applications[0].deployments[0].num_replicas: num_replicas and autoscaling_config cannot be given"
    ),
    f"{DEPLOYMENT}        max_ongoing_requests: 0\n": "app.yaml:6:9 applications[0].deployments[0].max_ongoing_req",
    f"{DEPLOYMENT}        autoscaling_config: {{min_replicas: -1}}\n": "autoscaling_config.min_replicas: input should",
    f"{DEPLOYMENT}        logging_config: {{log_level: []}}\n": "app.yaml:6:26 applications[0].deployments[0].logging_",
    f"{DEPLOYMENT}        ray_actor_options: {{num_cpus: x}}\n": "6:29 applications[0].deployments[0].ray_actor_optio",
    f"{DEPLOYMENT}        ray_actor_options: {{num_gpus: 1.5}}\n": "ray_actor_options: num_gpus (1.5) must be a whole",
    f"{DEPLOYMENT}        ray_actor_options: 3\n": "ray_actor_options must be a dict, got int 3",
    # two of one
    f"{DEPLOYMENT}      - name: Model\n": (
        "app.yaml:6:9 applications[0].deployments[1].name: another deployment is named 'Model':"
        " applications[0].deployments[0]"
    ),
    f"{APP}  - name: shop\n    import_path: a:b\n": "app.yaml:4:5 applications[1].name: another application is named",
    f"{APP}    route_prefix: /\n  - name: b\n    route_prefix: /\n    import_path: a:b\n": (
        "app.yaml:6:5 applications[1].route_prefix: another application is at '/': applications[0]"
    ),
}


@pytest.mark.parametrize(("text", "message"), BAD.items(), ids=range(len(BAD)))
def test_a_mistake_is_one_line_with_its_place_and_what_is_allowed(tmp_path: Path, text: str, message: str) -> None:
    said = refused(tmp_path, text)

    assert message in said
    assert said.startswith("app.yaml")
    assert "\n" not in said


@pytest.mark.parametrize(
    "data", [b"\xff\xfe\xff", b"a: \xff\n", b"a: \x00\n", b"\x00" * 50, b'a: "\\ud800"\n', b"%YAML 9.9\n---\na: 1\n"]
)
def test_what_is_not_text_is_refused_on_one_line(tmp_path: Path, data: bytes) -> None:
    said = refused(tmp_path, data)

    assert said.startswith("app.yaml")
    assert "\n" not in said


def test_several_mistakes_are_all_told_in_the_order_of_the_file(tmp_path: Path) -> None:
    said = refused(tmp_path, f"{DEPLOYMENT}        num_replica: 2\n        num_replicas: x\ntarget: 1\n")

    assert [line.split()[0] for line in said.splitlines()] == ["app.yaml:6:9", "app.yaml:7:9", "app.yaml:8:1"]


def test_control_characters_of_a_file_do_not_reach_the_terminal(tmp_path: Path) -> None:
    assert "\x1b" not in refused(tmp_path, '"\\e[31mred": 1\napplications: [{"\\e[2J": 1}]\n')


def test_no_more_than_a_mebibyte_is_read(tmp_path: Path) -> None:
    assert refused(tmp_path, b"# " + b"x" * 10_000_000) == "app.yaml is longer than 1 MiB"


@pytest.mark.parametrize(("name", "why"), [("nothing.yaml", "No such file or directory"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(FileError, match=f"cannot be read: {why}"):
        read_file(tmp_path / name)


def test_a_plain_value_is_checked_like_a_file_and_has_no_lines() -> None:
    app: dict[str, Any] = {"name": "shop", "import_path": "shop:app"}

    assert read_value({"applications": [app]}, "body").applications[0].name == "shop"
    with pytest.raises(FileError, match=r"^body applications\[0\].replica: unknown key 'replica'"):
        read_value({"applications": [{**app, "replica": 3}]}, "body")


# -- the schema ------------------------------------------------------------------------------------


def test_the_schema_is_printed_for_editors() -> None:
    printed = CliRunner().invoke(main, ["config", "--schema"])

    assert printed.exit_code == 0
    assert '"$schema": "https://json-schema.org/draft/2020-12/schema"' in printed.output


def test_the_schema_knows_every_option_of_a_deployment_that_a_file_may_change() -> None:
    known = json_schema()["$defs"]["DeploymentPart"]["properties"]
    only_in_code = {"init_args", "init_kwargs", "route_prefix", "use_new_handle_api", "version"}

    assert {*DeploymentOptions.model_fields} - only_in_code <= {*known}
    assert not only_in_code & {*known}
    assert "no effect: " in json_schema()["properties"]["proxy_location"]["description"]
