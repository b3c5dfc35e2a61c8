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
import time
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

@qserve.deployment
class Part:
    def __init__(self, *others):
        pass

    def __call__(self):
        time.sleep(0.05)
        return os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ["QSERVE_REPLICA"]

def with_parts(**parts):
    parts = [Part.options(name=name, **options).bind() for name, options in parts.items()]
    return Part.options(name="Root").bind(*parts)

gpus = with_parts(
    Two={"ray_actor_options": {"num_gpus": 2}},
    One={"num_replicas": 2, "ray_actor_options": {"num_gpus": 1}},
    Half={"num_replicas": 3, "ray_actor_options": {"num_gpus": 0.5}},
)
large = with_parts(
    Gpus={"ray_actor_options": {"num_gpus": 7}},
    Cpus={"ray_actor_options": {"num_cpus": 99}},
    Disk={"ray_actor_options": {"resources": {"disk": 3}}},
    Tape={"ray_actor_options": {"resources": {"tape": 1}}},
    Memory={"ray_actor_options": {"memory": 8 << 30}},
    Zone={"ray_actor_options": {"label_selector": {"zone": "south"}}},
    Kind={"ray_actor_options": {"accelerator_type": "T4"}},
    Spread={"num_replicas": 2, "max_replicas_per_node": 1},
)
"""
GPUS = """
  - name: gpus
    import_path: shop:gpus
    route_prefix: null
"""
LARGE = """
  - name: large
    import_path: shop:large
    route_prefix: null
"""
WORKER = ["--places", "14", "--devices", "a,b,c,d,e,f", "--label", "zone=north", "--resource", "disk=2", "--memory=4gb"]
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
        self.worker = self.qserve("worker", *WORKER)
        self.client = qserve.connect(self.url, secret_key=KEY)

    def qserve(self, *arguments: str) -> Process:
        return self.site.qserve(*arguments, cwd=self.folder, env=self.env)

    def start_deploy(self, file: str) -> Process:
        self.site.write("app.yaml", file)
        return self.qserve("deploy", "app.yaml")

    def deploy(self, file: str) -> None:
        deploy = self.start_deploy(file)
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


def test_each_replica_sees_the_gpus_that_it_was_given(stack: Stack) -> None:
    def seen(deployment: str, count: int) -> list[str]:
        handle, found = stack.client.get_deployment_handle(deployment, "gpus"), dict[str, str]()

        def ask() -> bool:
            answers = [call.result(timeout_s=60) for call in [handle.remote() for _ in range(count)]]
            found.update({replica: gpus for gpus, replica in answers})
            return len(found) == count

        wait_until(ask, description="each replica has answered")
        return sorted(found.values())

    stack.deploy(FILE + GPUS)

    assert seen("Two", 1) == ["a,b"]
    assert seen("One", 2) == ["c", "d"]
    assert seen("Half", 3) == ["e", "e", "f"]
    assert seen("Root", 1) == [None], "nothing was said"


MISSING = {
    "Gpus": "1 of 1 replicas have no place: each takes 7 GPUs; free: ",
    "Cpus": "1 of 1 replicas have no place: each takes 99 places; free: ",
    "Disk": "1 of 1 replicas have no place: each takes 3 disk; free: 2 of 2 on ",
    "Tape": "1 of 1 replicas have no place: each takes 1 tape; free: 0 of 0 on ",
    "Memory": "1 of 1 replicas have no place: each takes 8192 MiB of memory; free: 3696 of 4096 on ",
    "Zone": "1 of 1 replicas have no place: no worker has the labels zone=south",
    "Kind": "1 of 1 replicas have no place: no worker has the labels accelerator=T4",
    "Spread": "1 of 2 replicas have no place: one host may run 1 of them (max_replicas_per_node)",
}


def test_what_no_host_has_room_for_is_told_by_the_status_and_by_the_deploy(stack: Stack) -> None:
    deploying = stack.start_deploy(FILE + LARGE)

    for name, why in MISSING.items():
        deploying.wait_for(f"deployment {name!r} of application 'large' waits: {why}")
        found = stack.status_of("large", name)
        assert why in found.message
        assert found.status in ("UPDATING", "UPSCALING")
    deploying.press_ctrl_c()
    deploying.wait()
