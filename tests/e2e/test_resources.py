"""What options say of a replica's process, seen from inside the replicas of one worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import Process, Site, new_site, wait_until

import qserve
from qserve.base.settings import Settings
from qserve.deploy.installation import Installation
from qserve.deploy.status import DeploymentStatusOverview, status_of

pytestmark = pytest.mark.slow
KEY = "the-key-of-this-test"
APP = """
import logging
import os
import threading
import qserve

AT_IMPORT = dict(os.environ)

@qserve.deployment
class Model:
    def __call__(self, *names):
        logging.getLogger("shop").debug("asked for %d", len(names))
        return {name: AT_IMPORT.get(name) for name in names}

app = Model.bind()

@qserve.deployment(ray_actor_options={"memory": 400 << 20})
class Hungry:
    def __call__(self):
        threading.Timer(0.1, self.eat).start()
        return os.environ["QSERVE_REPLICA"]

    def eat(self):
        self.much = bytearray(450 << 20)

hungry = Hungry.bind()
"""
FILE = """
logging_config: {encoding: JSON}
applications:
  - name: shop
    import_path: shop:app
    route_prefix: null
    runtime_env: {env_vars: {MODE: slow, TZ: Asia/Tokyo}}
    deployments:
      - name: Model
        logging_config:
          log_level: DEBUG
          logs_dir: logs
          enable_access_log: true
        ray_actor_options:
          num_cpus: 2
          runtime_env: {env_vars: {MODE: fast, DATA: "${HOME}/data"}}
  - name: hungry
    import_path: shop:hungry
    route_prefix: null
"""


class Stack:
    """A broker and a worker, and a client in this process."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.url = site.broker()
        self.env = {"QSERVE_BROKER_URL": self.url, "QSERVE_SECRET_KEY": KEY, "HOME": "/home/shop"}
        self.folder = site.write("shop.py", APP)
        self.worker = self.qserve("worker")
        self.client = qserve.connect(self.url, secret_key=KEY)

    def qserve(self, *arguments: str) -> Process:
        return self.site.qserve(*arguments, cwd=self.folder, env=self.env)

    def deploy(self, file: str) -> None:
        self.site.write("app.yaml", file)
        deploy = self.qserve("deploy", "app.yaml")
        assert deploy.wait() == 0, deploy.output + self.worker.output

    def ask(self, app: str, *names: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get_app_handle(app).remote(*names).result(timeout_s=60)
        return found

    def status_of(self, app: str, deployment: str) -> DeploymentStatusOverview:
        installation = Installation(Settings(broker_url=self.url, secret_key=KEY.encode()))
        return status_of(installation).applications[app].deployments[deployment]


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with new_site() as site:
        made = Stack(site)
        made.deploy(FILE)
        with made.client:
            yield made


def test_variables_are_set_before_user_code_is_imported(stack: Stack) -> None:
    assert stack.ask("shop", "OMP_NUM_THREADS", "NUMEXPR_NUM_THREADS", "MODE", "TZ", "DATA") == {
        "OMP_NUM_THREADS": "2",
        "NUMEXPR_NUM_THREADS": "2",
        "MODE": "fast",
        "TZ": "Asia/Tokyo",
        "DATA": "/home/shop/data",
    }


def test_a_deployment_logs_as_its_logging_config_says(stack: Stack) -> None:
    def written() -> list[str]:
        return [line for path in Path(stack.folder, "logs").glob("*.log") for line in path.read_text().splitlines()]

    stack.ask("shop", "MODE", "TZ")

    asked = wait_until(lambda: [line for line in written() if "asked for 2" in line], description="it is logged")
    assert " DEBUG [Model " in asked[-1]
    wait_until(lambda: any("] CALL __call__ OK " in line for line in written()), description="the call is logged")
    assert [path.name[:11] for path in Path(stack.folder, "logs").glob("*.log")] == ["shop-Model-"]
    assert "asked for 2" in stack.worker.stderr


def test_logs_change_without_a_restart(stack: Stack) -> None:
    before = stack.ask("shop", "QSERVE_REPLICA")

    stack.deploy(FILE.replace("log_level: DEBUG", "log_level: WARNING"))
    stack.ask("shop", "MODE", "TZ", "DATA")
    stack.deploy(FILE)

    assert stack.ask("shop", "QSERVE_REPLICA") == before
    [log] = Path(stack.folder, "logs").glob("*.log")
    assert "asked for 3" not in log.read_text()


def test_a_replica_over_its_memory_is_replaced_with_the_reason_in_the_status(stack: Stack) -> None:
    first = stack.client.get_app_handle("hungry").remote().result(timeout_s=60)

    def says() -> str:
        return stack.status_of("hungry", "Hungry").message

    wait_until(lambda: "memory_limit: it " in says(), description="the status says why")
    wait_until(lambda: says().startswith("1 of 1 run: memory_limit: it "), description="another one runs")
    assert stack.client.get_app_handle("hungry").remote().result(timeout_s=60) != first
