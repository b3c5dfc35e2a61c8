"""Replicas that are told to end, or to reconfigure, at a bad moment, or by somebody who may not tell them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from celery import Celery
from installation import Installation, installed
from processes import new_site, wait_until
from qserve_workers.celery.app import make_celery

from qserve.base.settings import Settings
from qserve.deploy.installation import Installation as InstallationOf

pytestmark = pytest.mark.slow

SOURCE = """
import os, signal, time
import qserve

@qserve.deployment(user_config={"size": 1}, graceful_shutdown_timeout_s=0.1)
class Machine:
    def __init__(self):
        was = signal.getsignal(signal.SIGHUP)
        signal.signal(signal.SIGHUP, lambda *got: (was(*got), open("told", "w").close()))
        while os.path.exists("gate"):
            open("constructing", "w").close()
            time.sleep(0.01)
    def reconfigure(self, config):
        self.size = config["size"]
    async def pid(self):
        return os.getpid()
    async def get_size(self):
        return self.size
    def __del__(self):
        time.sleep(1e9)

app = Machine.bind()
"""


@pytest.fixture(scope="module")
def shop() -> Iterator[Installation]:
    with new_site() as site, installed(site, SOURCE) as shop:
        shop.worker_process = shop.serve()  # type: ignore[attr-defined]
        yield shop


@pytest.fixture(scope="module")
def control(shop: Installation) -> Iterator[Callable[[bytes | None], Celery]]:
    """Returns the Celery application of a key, or of none."""
    made: dict[bytes | None, Celery] = {}

    def find(key: bytes | None) -> Celery:
        return made.setdefault(key, make_celery(Settings(broker_url=shop.url, secret_key=key)))

    yield find
    for app in made.values():
        app.pool.force_close_all()


def test_a_user_config_that_changes_while_the_object_is_constructed_ends_nothing_and_is_taken(
    shop: Installation,
) -> None:
    installation = InstallationOf(shop.plane.settings)
    (record,) = installation.registry.all()
    gate, before = shop.site.write("gate", "") / "gate", shop.pids()
    os.kill(*before, signal.SIGKILL)
    wait_until((shop.site.folder / "constructing").exists, description="another is being constructed")

    machine = replace(record.deployments["Machine"], user_config=json.dumps({"size": 2}))
    installation.registry.promote(replace(record, deployments={"Machine": machine}))
    wait_until((shop.site.folder / "told").exists, description="it is told")
    gate.unlink()

    wait_until(lambda: shop.ask("get_size") == 2, description="the new user_config is taken")
    assert "SIGHUP" not in shop.worker_process.stderr  # type: ignore[attr-defined]


def test_control_that_is_not_sealed_with_the_key_stops_no_replica(
    shop: Installation, control: Callable[[bytes | None], Celery]
) -> None:
    genuine = control(shop.plane.settings.secret_key)
    before = genuine.control.ping(timeout=30.0, limit=1)
    assert len(before) == 1

    for key in (None, b"of-somebody-who-made-it-up"):
        control(key).control.shutdown()

    # it reads broadcasts in order: with this answer it has read those before
    assert genuine.control.ping(timeout=30.0, limit=1) == before
    assert control(None).control.ping(timeout=0.5) == []


def test_a_replica_that_control_shuts_down_is_replaced_although_its_end_hangs_and_the_next_one_is_not_deaf(
    shop: Installation, control: Callable[[bytes | None], Celery]
) -> None:
    genuine = control(shop.plane.settings.secret_key)
    (before,) = genuine.control.ping(timeout=30.0, limit=1)
    pid = shop.ask("pid")

    genuine.control.shutdown()

    wait_until(lambda: shop.ask("pid") != pid, description="another replica answers")
    found = wait_until(lambda: genuine.control.ping(timeout=1.0, limit=1), description="it answers")
    assert len(found) == 1
    assert found[0].keys() != before.keys()
