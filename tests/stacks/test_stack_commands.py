"""``qserve compose`` and ``qserve kubernetes`` in a folder of the user's own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from qserve.__main__ import main

SHOP = """
import qserve

@qserve.deployment(num_replicas=2)
class Model:
    def __init__(self, size="small"): ...

app = Model.bind()

def builder(args):
    return Model.bind(args["size"])
"""
FILE = """
http_options: {port: 9000, request_timeout_s: 5}
applications:
  - name: shop
    import_path: shopstack:app
    deployments: [{name: Model, num_replicas: 3}]
"""
Qserve = Callable[..., Result]


@pytest.fixture
def qserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Qserve:
    """Run a command in a folder with the module ``shopstack``."""
    (tmp_path / "shopstack.py").write_text(SHOP)
    (tmp_path / "app.yaml").write_text(FILE)
    (tmp_path / "requirements.txt").write_text("emoji\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    return lambda *words: CliRunner().invoke(main, [*words])


def test_a_file_that_the_code_has_outgrown_is_found_in_ci(qserve: Qserve, tmp_path: Path) -> None:
    assert qserve("compose", "shopstack:app").exit_code == 0
    assert qserve("compose", "shopstack:app", "--check").exit_code == 0
    (tmp_path / "shopstack.py").write_text(SHOP.replace("num_replicas=2", "num_replicas=4"))

    result = qserve("compose", "shopstack:app", "--check")

    assert result.exit_code == 1
    assert "-    scale: 2\n+    scale: 4\n" in result.stdout
    assert "Error: not up to date: run `qserve compose shopstack:app`" in result.stderr
    assert "scale: 2" in (tmp_path / "docker-compose.yml").read_text()


def test_a_config_file_says_what_the_stack_is_of(qserve: Qserve) -> None:
    result = qserve("compose", "app.yaml")

    assert result.exit_code == 0, result.output
    services = yaml.safe_load(Path("docker-compose.yml").read_text())["services"]
    assert services["model"]["scale"] == 3
    assert services["model"]["environment"]["QSERVE_REQUEST_TIMEOUT_S"] == "5.0"
    assert services["deploy"]["command"] == ["deploy", "app.yaml"]
    assert services["gateway"]["ports"] == ["${QSERVE_PORT:-9000}:8000"]


def test_a_builder_s_arguments_reach_the_deploy(qserve: Qserve) -> None:
    words = "shopstack:builder", "size=large one", "--name", "shop", "--route-prefix", "/shop", "--env", "A=b"

    assert qserve("compose", *words).exit_code == 0

    text = Path("docker-compose.yml").read_text()
    deploy = ["deploy", "shopstack:builder", "size=large one", "--name", "shop", "--route-prefix", "/shop"]
    assert yaml.safe_load(text)["services"]["deploy"]["command"] == deploy
    assert text.startswith(
        "# Written by `qserve compose shopstack:builder 'size=large one' --name shop --route-prefix /shop --env A=b`"
    )


@pytest.mark.slow
def test_files_of_the_user_s_own_are_not_replaced(qserve: Qserve, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM mine AS worker\n")
    (tmp_path / "docker-compose.yml").write_text("services: {}\n")

    refused = qserve("compose", "shopstack:app")
    (tmp_path / "docker-compose.yml").unlink()
    kept = qserve("compose", "shopstack:app")

    assert (refused.exit_code, "docker-compose.yml exists" in refused.stderr) == (2, True)
    assert (kept.exit_code, (tmp_path / "Dockerfile").read_text()) == (0, "FROM mine AS worker\n")
    assert qserve("compose", "shopstack:app", "--check").exit_code == 0
    assert qserve("compose", "shopstack:app", "--force").exit_code == 0
    assert "AS gateway" in (tmp_path / "Dockerfile").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere:app"], "nowhere"),
        (["shopstack:other"], "other"),
        (["missing.yaml"], "missing.yaml cannot be read"),
        (["../app.yaml"], "it must be inside this folder"),
        (["shopstack:app", "--app-dir", ".."], "it must be inside this folder"),
        (["shopstack:app", "--env", "1=2"], "is not NAME or NAME=VALUE"),
        (["app.yaml", "--name", "shop"], "a FILE says all of this itself"),
    ],
)
def test_what_cannot_be_done_changes_nothing(words: list[str], message: str, qserve: Qserve, tmp_path: Path) -> None:
    before = {path.name for path in tmp_path.iterdir()}

    result = qserve("compose", *words)

    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == before


def test_manifests_are_written_and_compared_with_the_tag_of_a_release(qserve: Qserve, tmp_path: Path) -> None:
    words = "kubernetes", "shopstack:app", "--image", "registry/shop", "--tag", "v1", "--api-token"

    assert qserve(*words).exit_code == 0
    assert qserve(*words, "--check").exit_code == 0
    assert qserve(*words[:-2], "v2", "--check").exit_code == 1

    text = (tmp_path / "kubernetes.yaml").read_text()
    assert "image: registry/shop-worker:v1" in text
    assert f"# Written by `qserve {' '.join(words)}`" in text
    assert {path.name for path in (tmp_path / "secrets").iterdir()} == {"qserve_key", "broker_password", "api_token"}


def test_a_password_does_not_get_into_a_manifest(qserve: Qserve, tmp_path: Path) -> None:
    result = qserve("kubernetes", "shopstack:app", "--broker", "redis://:hidden@host:6379")

    assert result.exit_code == 2
    assert "leave the password out" in result.stderr
    assert not (tmp_path / "kubernetes.yaml").exists()
