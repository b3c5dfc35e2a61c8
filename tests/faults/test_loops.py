"""Loops that must live: each turn of each loop fails a few times, in a real worker, and the work goes on.

``tests/architecture/test_loop_table.py`` has the table of all loops, and says for each which turn fails here.
"""

from __future__ import annotations

import json
import os
import re
import signal
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from installation import Installation
from loops import TURNS
from processes import PATIENCE_S, Process, Site, wait_until

from qserve.base.keys import GROUP
from qserve.calls.ref import Call

pytestmark = pytest.mark.slow

FAILURES = 2
SOURCE = """
import os
import qserve

@qserve.deployment(max_retries=1, user_config={"size": 1}, health_check_period_s=0.2, graceful_shutdown_timeout_s=5)
class Leaf:
    def __init__(self):
        self.is_well = True
    def reconfigure(self, config):
        self.size = config["size"]
    def check_health(self):
        if not self.is_well:
            raise RuntimeError("not well")
    async def fall_ill(self):
        self.is_well = False
    @qserve.multiplexed(max_num_models_per_replica=1)
    async def load(self, model_id):
        return model_id
    async def pid(self):
        return os.getpid()
    async def get_size(self):
        return self.size
    async def model(self):
        return await self.load("m")

@qserve.deployment
class Machine:
    def __init__(self, leaf):
        self.leaf = leaf
    async def ask(self, method):
        return await getattr(self.leaf, method).remote()

app = Machine.bind(Leaf.bind())
"""
INJECTION = '''
"""Makes the first calls of the methods that LOOPS names fail, in each process."""
import functools, importlib, os, pathlib

folder, failures = pathlib.Path(os.environ["LOOPS_FOLDER"]), int(os.environ["LOOPS_FAILURES"])

def failing(target, method):
    counts, error = {}, type("Injected", (Exception,), {})  # a class for each: the same error is logged once
    @functools.wraps(method)
    def call(*args, **kwargs):
        count = counts[os.getpid()] = counts.get(os.getpid(), 0) + 1
        if count <= failures:
            raise error(f"injected into {target}")
        result = method(*args, **kwargs)
        (folder / target).touch()
        return result
    return call

for target in os.environ["LOOPS"].split():
    module, _, name = target.partition(":")
    owner, _, name = name.partition(".")
    owner = getattr(importlib.import_module(module), owner)
    setattr(owner, name, failing(target, getattr(owner, name)))
'''


class Scene(Installation):
    """A worker whose turns fail, and what is done to it so that each of them has something to do."""

    def __init__(self, site: Site) -> None:
        super().__init__(site, SOURCE)
        self.marks = site.folder / "marks"
        self.marks.mkdir()

    def start_worker(self) -> Process:
        folder = self.site.folder / "injected"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(INJECTION)
        variables = {"LOOPS": " ".join(TURNS), "LOOPS_FOLDER": str(self.marks), "LOOPS_FAILURES": str(FAILURES)}
        return self.worker(PYTHONPATH=str(folder), **variables)

    def release(self, *options: str) -> None:
        deploy = self.command("deploy", "shop:app", *options)
        assert deploy.wait() == 0, deploy.output

    def reconfigure(self, size: int) -> None:
        record = self.plane.registry.get("default")
        leaf = replace(record.deployments["Leaf"], user_config=json.dumps({"size": size}))
        self.plane.registry.promote(replace(record, deployments={**record.deployments, "Leaf": leaf}))

    def ask(self, method: str, *args: Any, timeout_s: float = PATIENCE_S, model: str = "") -> Any:
        call = Call("default", "Machine", "ask", (method, *args), timeout_s=timeout_s)
        return self.plane.submit(call).result(timeout_s)

    def pid_of(self, deployment: str) -> int:
        (pid,) = {one.pid for one in self.replicas() if one.deployment == deployment}
        return pid

    def wait_for(self, *names: str) -> None:
        for turn in TURNS:
            if turn.rpartition(".")[2] in names:
                wait_until((self.marks / turn).exists, description=f"{turn} works")


@pytest.mark.row("F51")
def test_a_worker_whose_every_turn_fails_a_few_times_goes_on_with_all_of_its_work(site: Site) -> None:
    with closing(Scene(site)) as scene:
        worker = scene.start_worker()
        scene.release()
        assert scene.ask("get_size") == 1
        assert scene.ask("model") == "m"
        scene.wait_for("_send_models", "_prepare", "_answer_next")

        before = scene.pid_of("Leaf")
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: scene.ask("pid") != before, description="the dead replica is replaced")
        for stream in scene.client.scan_iter("*:q:default:*:Leaf"):
            scene.client.xgroup_createconsumer(stream, GROUP, "on-a-host-that-is-gone")
        scene.wait_for("_hand_over_all", "_on_death")

        scene.reconfigure(size=2)
        wait_until(lambda: scene.ask("get_size") == 2, description="the replica reads its new user_config")

        before = scene.pid_of("Leaf")
        scene.ask("fall_ill")
        wait_until(lambda: scene.ask("pid") != before, description="the replica that fell ill is replaced")

        scene.release("--restart")  # another version: the one before is retired
        scene.wait_for(*(turn.rpartition(".")[2] for turn in TURNS))

        found = re.findall(r"(\S+) \[.*failed: injected into ([\w.:]+); trying again", worker.stderr)
        assert {turn for _, turn in found} == set(TURNS)
        assert {level for level, _ in found} == {"ERROR"}
        assert "Injected: injected into" in worker.stderr
        assert "works again after" in worker.stderr
        assert worker.exit_code() is None
