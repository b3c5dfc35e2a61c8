"""`qserve tasks`: stock Celery producers call deployments, once each, whatever happens to the process in between."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from installation import Installation, installed
from processes import PATIENCE_S, Process, new_site, wait_until

pytestmark = pytest.mark.slow
SOURCE = """
import asyncio, os, time
import qserve

class OutOfStock(Exception):
    pass

@qserve.deployment(max_ongoing_requests=100)
class Machine:
    def __call__(self, x, factor=2):
        return x * factor

    def total(self, *xs):
        return sum(sum(x) if isinstance(x, list) else x for x in xs)

    def trace(self):
        return qserve.get_request_context().traceparent

    def fail(self):
        raise OutOfStock("none left")

    async def note(self, ledger, gate=""):
        with open(ledger, "a") as file:
            file.write("x")
        while gate and not os.path.exists(gate):
            await asyncio.sleep(0.01)
        return "noted"

    async def until_told(self, ledger):
        try:
            await asyncio.sleep(1e9)
        finally:
            with open(ledger, "a") as file:
                file.write("told")

app = Machine.bind()
"""
PRODUCER = """
import json, sys, time
from celery import Celery, chain, chord

app = Celery(broker=sys.argv[1], backend=sys.argv[1])
NAME, WAIT_S = "qserve.default.Machine", 60
found = {}

def send(name, *args, **options):
    return app.send_task(name, args, queue="qserve", **options)

def step(method, *args):
    return app.signature(NAME + method, args=args, queue="qserve")

def error_of(result):
    try:
        return ["no error", result.get(timeout=WAIT_S)]
    except Exception as error:
        return [type(error).__qualname__, str(error)]

found["call"] = send(NAME, 21).get(timeout=WAIT_S)
found["keywords"] = app.send_task(NAME, [21], {"factor": 3}, queue="qserve").get(timeout=WAIT_S)
found["later"] = send(NAME, 2, countdown=1).get(timeout=WAIT_S)
found["msgpack"] = send(NAME, 3, serializer="msgpack").get(timeout=WAIT_S)
found["chain"] = chain(step("", 1), step(""), step(".total", 5))().get(timeout=WAIT_S)
found["chord"] = chord([step("", number) for number in range(5)], step(".total"))().get(timeout=WAIT_S)
trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
found["traces"] = [send(NAME + ".trace", headers=headers).get(timeout=WAIT_S) for headers in ({}, trace)]
failed = send(NAME + ".fail")
found["error"], found["where"] = error_of(failed), "in fail" in failed.traceback
found["unknown deployment"] = error_of(send("qserve.default.Machin"))
found["unknown method"] = error_of(send(NAME + ".nothing"))
found["private method"] = error_of(send(NAME + ".__init__"))
found["unknown"] = error_of(send("shop.tasks.add"))
found["expired"] = error_of(send(NAME, 1, expires=-1))
app.conf.accept_content = ["json", "pickle"]
found["pickle"] = error_of(send(NAME, 1, serializer="pickle"))
dropped = send(NAME, 1, countdown=1)
app.control.revoke(dropped.id)
found["revoked"] = error_of(dropped)
running = send(NAME + ".until_told", sys.argv[2])
while running.id not in [task["id"] for tasks in (app.control.inspect().active() or {}).values() for task in tasks]:
    pass
app.control.revoke(running.id, terminate=True)
found["terminated"] = error_of(running)
print(json.dumps(found))
"""
EXPECTED = {
    "call": 42, "keywords": 63, "later": 4, "msgpack": 6, "chain": 9, "chord": 20,
    "traces": ["", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"],
    "error": ["OutOfStock", "none left"], "where": True,
}  # fmt: skip
REFUSED = {
    "unknown deployment": ("QserveException", "Did you mean 'qserve.default.Machine'?"),
    "unknown method": ("QserveException", "'nothing' that does not exist"),
    "private method": ("QserveException", "no deployment is called"),
    "unknown": ("QserveException", "there are: qserve.default.Machine. If it is a task of your own, name its queue"),
    "expired": ("TaskRevokedError", "expired"),
    "pickle": ("PayloadError", "sent as json or msgpack"),
    "revoked": ("TaskRevokedError", "revoked"),
    "terminated": ("TaskRevokedError", "terminated"),
}
OLD_CELERY = "celery==5.4.0"


@pytest.fixture(scope="module")
def shop() -> Iterator[Installation]:
    with new_site() as site, installed(site, SOURCE) as shop:
        shop.serve()
        yield shop


@pytest.fixture
def tasks(shop: Installation) -> Iterator[Process]:
    process = started(shop)
    yield process
    process.stop()
    assert process.exit_code() == 0, process.output


def started(shop: Installation, **env: str) -> Process:
    process = shop.command("tasks", "--visibility-timeout-s", "1", **env)
    process.wait_for("tasks are taken from the queues qserve")
    return process


@pytest.fixture
def producer(shop: Installation) -> Iterator[Celery]:
    app = Celery(broker=shop.url, backend=shop.url, set_as_current=False)
    yield app
    app.close()


def python_with_celery(folder: Path, requirement: str) -> str:
    """Make an environment that has Celery and nothing of ours; answers its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = str(folder / "bin" / "python")
    packages = [requirement, "redis", "msgpack", "packaging"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True, capture_output=True)
    return python


@pytest.mark.parametrize(
    "requirement", ["", pytest.param(OLD_CELERY, marks=[pytest.mark.long, pytest.mark.timeout(600)])]
)
def test_a_stock_producer_gets_results_errors_and_refusals(
    shop: Installation, tasks: Process, tmp_path: Path, requirement: str
) -> None:
    python = python_with_celery(tmp_path / "venv", requirement) if requirement else sys.executable
    ledger = tmp_path / "ledger"
    done = subprocess.run(
        [python, "-c", PRODUCER, shop.url, str(ledger)], capture_output=True, text=True, check=False, timeout=150
    )
    assert done.returncode == 0, done.stderr + tasks.output
    found: dict[str, Any] = json.loads(done.stdout)
    assert {name: found[name] for name in EXPECTED} == EXPECTED
    for name, (kind, text) in REFUSED.items():
        assert found[name][0] == kind, (name, found[name])
        assert text in found[name][1], (name, found[name])
    wait_until(ledger.exists, description="the call of the task that was revoked is cancelled")


def test_a_task_whose_process_is_killed_after_it_was_submitted_runs_once(
    shop: Installation, producer: Celery, tmp_path: Path
) -> None:
    ledger, gate = tmp_path / "ledger", tmp_path / "gate"
    killed = started(shop, QSERVE_FAILPOINT="submit.after_send:kill9")
    sent = producer.send_task("qserve.default.Machine.note", [str(ledger), str(gate)], queue="qserve")
    killed.wait()
    wait_until(ledger.exists, description="the call runs")
    gate.touch()
    process = started(shop)
    assert sent.get(timeout=PATIENCE_S) == "noted"
    assert ledger.read_text() == "x"
    process.stop()


def test_a_task_that_waits_when_its_process_is_stopped_goes_on_in_the_next(
    shop: Installation, producer: Celery, tmp_path: Path
) -> None:
    ledger, gate = tmp_path / "ledger", tmp_path / "gate"
    stopped = started(shop)
    sent = producer.send_task("qserve.default.Machine.note", [str(ledger), str(gate)], queue="qserve")
    wait_until(ledger.exists, description="the call runs")
    stopped.stop()
    assert stopped.exit_code() == 0, stopped.output
    process = started(shop)
    gate.touch()
    assert sent.get(timeout=PATIENCE_S) == "noted"
    assert ledger.read_text() == "x"
    process.stop()


def test_messages_of_older_celery_are_understood(shop: Installation, tasks: Process, producer: Celery) -> None:
    for name, message in json.loads((Path(__file__).parent / "celery_messages.json").read_text()).items():
        shop.client.lpush("qserve", json.dumps(message))
        task_id = (message.get("headers") or {}).get("id") or name
        assert producer.AsyncResult(task_id).get(timeout=PATIENCE_S) == 42, name


def test_what_is_not_a_message_stops_nothing(shop: Installation, tasks: Process, producer: Celery) -> None:
    (sound, *_) = json.loads((Path(__file__).parent / "celery_messages.json").read_text()).values()
    properties = sound["properties"]
    for strange in (
        b"\xff no message", b"[]", b"{}", b"null", b'{"properties": {}}', b"[" * 100_000,
        *(
            json.dumps({**sound, **change}).encode()
            for change in (
                {"headers": []}, {"headers": {}}, {"body": "?"}, {"body": None}, {"content-type": "x/y"},
                {"content-encoding": "none such"}, {"headers": {**sound["headers"], "eta": "tomorrow"}},
                {"headers": {**sound["headers"], "id": None}}, {"headers": {**sound["headers"], "task": 1}},
                {"headers": {**sound["headers"], "timelimit": "x"}}, {"headers": {**sound["headers"], "retries": []}},
                {"properties": {**properties, "delivery_info": []}}, {"properties": {**properties, "priority": "x"}},
                {"properties": {**properties, "body_encoding": "x"}}, {"body": "WzFd"}, {"body": "W1tdLFtdLFtdXQ=="},
            )
        ),
    ):  # fmt: skip
        shop.client.lpush("qserve", strange)
    sent = producer.send_task("qserve.default.Machine", [21], queue="qserve")
    assert sent.get(timeout=PATIENCE_S) == 42
    assert tasks.exit_code() is None


def test_the_command_and_the_program_of_the_document_work(shop: Installation) -> None:
    process = shop.type("celery.md", "qserve tasks")
    process.wait_for("tasks are taken from the queues qserve")
    text = (Path(__file__).parents[2] / "docs" / "celery.md").read_text()
    (program,) = re.findall(r"^```python\n(from celery.*?)^```", text, re.S | re.M)
    program = program.replace("redis://localhost:6379/0", shop.url).replace("Model.predict", "Machine")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=150)
    assert done.stdout == "42\n", done.stderr + process.output
    process.stop()
    assert process.exit_code() == 0, process.output
