"""Install what is published into an empty environment, outside the checkout, and do what README does first."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from distributions import FULL, SLIM
from environments import ROOT, Environment
from http_client import Client
from processes import READY, Site, free_port

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]
WITHOUT_CHECKOUT = {"PYTHONPATH": "", "VIRTUAL_ENV": ""}


@pytest.fixture(scope="module")
def full(environment: Callable[[str], Environment]) -> Environment:
    return environment(FULL)


def test_it_is_found_in_its_environment_and_nothing_is_missing(full: Environment) -> None:
    paths = full.run("python", "-c", "import qserve, sys; print(qserve.__file__, *sys.path, sep='\\n')").split()

    assert Path(paths[0]).is_relative_to(full.bin.parent)
    assert not [path for path in paths if path.startswith(str(ROOT))]
    assert full.run("python", "-m", "pip", "check") == "No broken requirements found.\n"
    assert "\n  run " in full.run("qserve", "--help")


def test_the_first_service_of_the_readme_runs_there(full: Environment, site: Site) -> None:
    program = re.search(r"```python\n(# hello\.py\n.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert program
    site.write("hello.py", program[1])
    port = free_port()
    run = site.start(
        [str(full.bin / "qserve"), "run", "hello:language_classifier", "--port", str(port)], env=WITHOUT_CHECKOUT
    )
    run.wait_for(READY)

    assert Client(port).send("POST", "/", {"name": "Dora"}).text == "Hola Dora"
    call = 'serve.get_deployment_handle("SpanishResponder", "default").say_hello.remote("Ana").result()'
    client = site.start(
        [str(full.bin / "python"), "-c", f"import qserve as serve; print({call})"], env=WITHOUT_CHECKOUT
    )
    assert client.wait() == 0, client.output
    assert client.stdout == "Hola Ana\n"
    doctor = site.start([str(full.bin / "qserve"), "doctor"], env=WITHOUT_CHECKOUT)
    assert doctor.wait() == 0, doctor.output

    run.press_ctrl_c()
    assert run.wait() == 0, run.output
    site.wait_empty()


def test_what_init_writes_is_installed_tested_and_type_checked_there(full: Environment, tmp_path: Path) -> None:
    said = full.run("qserve", "init", "shop", cwd=tmp_path)
    (install,) = re.findall(r"cd shop && pip install -e '(.*)'\n  pytest\n", said)

    full.run("pip", "install", "--quiet", "--editable", install, cwd=tmp_path / "shop")

    assert "1 passed" in full.run("pytest", cwd=tmp_path / "shop")
    assert full.run("mypy", cwd=tmp_path / "shop") == "Success: no issues found in 2 source files\n"


def test_a_stack_that_is_written_there_installs_the_same_wheel(full: Environment, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)

    full.run("qserve", "compose", "shop:app", cwd=tmp_path)

    (wheel,) = (tmp_path / ".qserve").iterdir()
    text = (tmp_path / "Dockerfile").read_text()
    assert f"COPY ./.qserve/{wheel.name} /src/qserve/\n" in text
    assert f" -c /src/qserve-constraints.txt /src/qserve/{wheel.name}\n" in text


# -- the slim distribution -------------------------------------------------------------------------

SHOP = """
import qserve as serve


@serve.deployment
class Doubler:
    def double(self, number):
        return 2 * number


app = Doubler.bind()
"""
API = """
import qserve as serve
from fastapi import FastAPI

api = FastAPI()


@serve.deployment
@serve.ingress(api)
class Shop:
    pass


app = Shop.bind()
"""
OPTIONAL = (
    "qserve.http.user_adapter",
    "qserve.mypy_plugin",
    "qserve.porting",
    "qserve.tracing.spans",
    "qserve_workers.__main__",
)
"""Modules that need an extra, or belong to a tool of others; the last one starts a worker."""
IMPORT_ALL = f"""
import importlib, pkgutil, qserve, qserve_workers
for package in (qserve, qserve_workers):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.startswith({OPTIONAL}):
            importlib.import_module(module.name)
"""


@pytest.fixture(scope="module")
def slim(environment: Callable[[str], Environment]) -> Environment:
    return environment(SLIM)


def test_the_slim_distribution_has_all_that_clients_and_workers_import(slim: Environment) -> None:
    assert slim.run("python", "-m", "pip", "check") == "No broken requirements found.\n"
    assert "gunicorn" not in slim.run("python", "-m", "pip", "list")
    slim.run("python", "-W", "error", "-c", IMPORT_ALL)


def test_a_worker_and_a_client_of_the_slim_distribution_work_with_a_broker_of_another_environment(
    slim: Environment, site: Site
) -> None:
    folder = site.write("shop.py", SHOP)
    env = {**WITHOUT_CHECKOUT, "QSERVE_BROKER_URL": site.broker(), "QSERVE_SECRET_KEY": "key-of-this-test"}
    site.start([str(slim.bin / "qserve"), "worker", "shop:app"], cwd=folder, env=env)
    deploy = site.start([str(slim.bin / "qserve"), "deploy", "shop:app"], cwd=folder, env=env)
    assert deploy.wait() == 0, deploy.output

    call = 'serve.get_app_handle("default").double.remote(21).result()'
    client = site.start([str(slim.bin / "python"), "-c", f"import qserve as serve; print({call})"], env=env)
    assert client.wait() == 0, client.output
    assert client.stdout == "42\n"


def test_what_the_slim_distribution_leaves_out_is_named_with_what_to_install(slim: Environment, site: Site) -> None:
    site.write("shop.py", SHOP)
    site.write("api.py", API)
    gateway = "needs flask, gunicorn, gevent, wsproto: pip install 'qserve-celery-slim[gateway]'"

    assert f"Error: `qserve gateway` {gateway}" in slim.run("qserve", "gateway", fails=True)
    assert gateway in slim.run("qserve", "run", "shop:app", cwd=site.folder, fails=True)
    said = slim.run("qserve", "deploy", "api:app", "--broker", site.broker(), cwd=site.folder, fails=True)
    assert said.splitlines()[-1] == (
        "Error: api:app cannot be loaded: ModuleNotFoundError: No module named 'fastapi'; "
        "qserve-celery-slim leaves fastapi out: pip install 'qserve-celery-slim[fastapi]'"
    )
