"""``qserve.run`` and handles, in one program that serves many applications one after the other."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from http_client import Client
from processes import Site, Started, free_port, is_alive, is_open, wait_until
from serving import ask

import qserve
from qserve import api
from qserve.base.settings import Settings
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.exceptions import QserveException, RayServeException
from qserve.handle import DeploymentHandle, RayServeHandle
from qserve.http_adapters import json_request
from qserve.wire.application import ApplicationRecord
from qserve.wire.envelope import Header

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("started")]


def run_script(site: Site, source: str, port: int) -> Any:
    (site.folder / "script.py").write_text(source.replace("PORT", str(port)))
    return site.start([sys.executable, "script.py"], cwd=site.folder)


@qserve.deployment
def hello(inp: str = "nobody") -> str:
    return f"hello {inp}"


@qserve.deployment
class Weighted:
    def __init__(self, weight: int) -> None:
        self.weight = weight

    def compute(self, value: Any) -> Any:
        return value * self.weight


# -- run -------------------------------------------------------------------------------------------


def test_each_run_takes_the_place_of_the_one_before(client: Client) -> None:
    @qserve.deployment
    class Echo:
        def __init__(self, text: str) -> None:
            self.text = text

        def __call__(self, request: Any = None) -> str:
            return self.text

    for text in ("foo", "bar", "baz"):
        handle = qserve.run(Echo.bind(text))
        assert client.get().text == text
        assert ask(handle) == text


def test_processes_of_this_version_serve_what_a_program_of_a_later_one_deploys_and_calls(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, packed in ((Header, 32), (ApplicationRecord, 0)):  # what lies before is the id of the request

        def encode(record: Any, packed: int = packed, encode: Any = kind.encode) -> bytes:
            found = msgpack.unpackb(encode(record)[packed:])
            more = {**found, "later": {"a": 1}} if isinstance(found, dict) else [*found, None, {"a": 1}]
            return encode(record)[:packed] + msgpack.packb(more)  # type: ignore[no-any-return]

        monkeypatch.setattr(kind, "encode", encode)

    handle = qserve.run(hello.bind())

    assert ask(handle, "Dora") == "hello Dora"
    assert client.get().status == 200


def test_the_deployments_of_the_one_before_are_gone() -> None:
    @qserve.deployment
    def older() -> int:
        return os.getpid()

    @qserve.deployment
    def newer() -> int:
        return os.getpid()

    old_handle = qserve.run(older.bind())
    old_pid = ask(old_handle)
    new_handle = qserve.run(newer.bind())

    wait_until(lambda: not is_alive(old_pid), description="the old replica ended")
    with pytest.raises(RayServeException, match="older"):
        qserve.get(old_handle.remote(), timeout=60)
    assert ask(new_handle) != old_pid


@pytest.mark.parametrize("by_graph", [True, False])
@pytest.mark.parametrize("deleted", [True, False])
def test_what_was_accepted_is_finished_by_the_version_that_took_it(by_graph: bool, deleted: bool) -> None:
    @qserve.deployment
    async def slow(value: int) -> int:
        await asyncio.sleep(0.6)
        return value

    @qserve.deployment
    def last(value: int) -> int:
        return value + 1

    @qserve.deployment
    class Front:
        def __init__(self, last: RayServeHandle) -> None:
            self.last = last

        async def predict(self, value: int) -> int:
            await asyncio.sleep(0.6)
            return await (await self.last.remote(value))

    with InputNode() as value:
        graph = DAGDriver.bind(last.bind(slow.bind(value)))
    handle = qserve.run(graph if by_graph else Front.bind(last.bind()), name="passing", route_prefix=None)
    ref = handle.predict.remote(1)

    # its last step has nothing to do yet, and must be there when its turn comes
    if deleted:
        qserve.delete("passing")
    else:
        qserve.run(slow.bind(), name="passing", route_prefix=None)

    assert qserve.get(ref, timeout=60) == 2


def test_name_and_route_prefix_let_applications_live_side_by_side(client: Client) -> None:
    @qserve.deployment
    class Echo:
        def __init__(self, text: str) -> None:
            self.text = text

        def __call__(self) -> str:
            return self.text

    default = qserve.run(Echo.bind("default"))
    first = qserve.run(Echo.bind("first"), name="first", route_prefix="/first")
    second = qserve.run(Echo.bind("second"), name="second", route_prefix="/second")
    hidden = qserve.run(Echo.bind("inside"), name="hidden", route_prefix=None)

    assert client.get("/-/routes").json == {"/": "Echo", "/first": "Echo", "/second": "Echo"}
    assert [ask(default), ask(first), ask(second), ask(hidden)] == ["default", "first", "second", "inside"]
    assert [client.get(path).text for path in ("/", "/first", "/second/x")] == ["default", "first", "second"]
    qserve.delete("first")
    assert [client.get("/first").text, ask(second)] == ["default", "second"]
    qserve.delete("second")
    qserve.delete("hidden")


def test_a_later_start_keeps_what_runs_where_it_runs(client: Client) -> None:
    qserve.run(hello.bind("again"))

    qserve.start()
    qserve.start(detached=True)
    qserve.start(detached=True, http_options={"host": "127.0.0.1", "port": 1})

    assert client.get().text == "hello again"


def test_a_route_prefix_of_run_wins_over_the_deployments(client: Client) -> None:
    with InputNode() as value:
        graph = Weighted.bind(3).compute.bind(value)
    app = DAGDriver.options(route_prefix="/first").bind(graph, http_adapter=json_request)
    qserve.run(app)
    assert client.post("/first", 2).json == 6

    handle = qserve.run(app, route_prefix="/second", _blocking=True)

    assert client.post("/second", 2).json == 6
    assert client.get("/-/routes").json == {"/second": "DAGDriver"}
    assert ask(handle.predict, 2) == 6


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_constructor_that_always_fails_ends_run_and_leaves_the_old_application(
    started: Started, replicas: int
) -> None:
    @qserve.deployment(name="Model")
    def works() -> int:
        return os.getpid()

    @qserve.deployment(name="Model", num_replicas=replicas)
    class Broken:
        def __init__(self) -> None:
            raise LookupError("the model's file is missing")

        def __call__(self) -> None: ...

    handle = qserve.run(works.bind())
    pid = ask(handle)
    before = set(started.site.processes())

    with pytest.raises(RuntimeError, match=r"(?s)'Model'.*LookupError: the model's file") as failure:
        qserve.run(Broken.bind())

    assert "in __init__" in str(failure.value)
    wait_until(lambda: not set(started.site.processes()) - before, description="no replica of it is left")
    assert ask(handle) == pid


def test_a_constructor_that_fails_once_is_tried_again(tmp_path: Path) -> None:
    tried = tmp_path / "tried"

    @qserve.deployment(num_replicas=2)
    class Unsteady:
        def __init__(self) -> None:
            try:
                tried.touch(exist_ok=False)
            except FileExistsError:
                return
            raise ConnectionError("not yet")

        def __call__(self) -> str:
            return "in the end"

    assert ask(qserve.run(Unsteady.bind())) == "in the end"
    assert tried.exists()


def test_state_stays_in_the_replica_and_is_the_same_by_http_and_by_handle(client: Client) -> None:
    @qserve.deployment
    class Counter:
        def __init__(self) -> None:
            self.count = 0

        def __call__(self) -> int:
            self.count += 1
            return self.count

    handle = qserve.run(Counter.bind())

    assert [ask(handle), client.get().json, ask(handle), client.get().json] == [1, 2, 3, 4]


# -- code that travels by value --------------------------------------------------------------------


def test_deployments_may_close_over_arrays_and_local_functions() -> None:
    weights = np.arange(3)

    def scaled(value: int) -> Any:
        return weights * value

    @qserve.deployment
    class Model:
        def __call__(self, value: int) -> Any:
            return scaled(value)

    assert ask(qserve.run(Model.bind()), 2).tolist() == [0, 2, 4]


def test_bound_arguments_may_be_arrays_lambdas_and_objects() -> None:
    class Settings:
        def __init__(self, factor: int) -> None:
            self.factor = factor

    @qserve.deployment
    class Model:
        def __init__(self, array: Any, *, function: Any, settings: Any) -> None:
            self.value = function(array).sum() * settings.factor

        def __call__(self) -> int:
            return int(self.value)

    node = Model.bind(np.ones(4), function=lambda array: array + 1, settings=Settings(10))
    assert ask(qserve.run(node)) == 80


SCRIPT = """
import builtins
import qserve
from qserve import InputNode
from qserve.drivers import DAGDriver

print("started")  # a replica that ran this script again would print it again

@qserve.deployment
class Model:
    def __init__(self, weight):
        self.weight = weight
    def forward(self, value):
        return value + self.weight

@qserve.deployment
def combine(refs):
    return sum(qserve.get(refs))

with InputNode() as value:
    m1, m2 = Model.bind(0), Model.bind(1)
    output = combine.bind([m1.forward.bind(value), m2.forward.bind(value)])

handle = qserve.run(DAGDriver.bind(output), port=PORT)
sum = qserve.get(handle.predict.remote(1))
print(sum)

@qserve.deployment
class Model:
    def forward(self, value, operation="none"):
        return f"{value} {operation}"

with InputNode() as value:
    output = Model.bind().forward.bind(value[0], value[1])

handle = qserve.run(DAGDriver.bind(output), port=PORT)
max = qserve.get(handle.predict.remote(1, "max"))
builtins.print(max)
"""


def test_a_script_may_run_at_module_level_redefine_a_class_and_shadow_builtins(site: Site) -> None:
    process = run_script(site, SCRIPT, free_port())

    assert process.wait() == 0, process.output
    assert process.stdout == "started\n3\n1 max\n"
    assert process.problems == ""
    site.wait_empty()


TWICE = """
import sys
import urllib.request

import qserve as serve
from qserve.handle import RayServeHandle, RayServeSyncHandle

port = int(sys.argv[1])
serve.start(http_options={"host": "127.0.0.1", "port": port})
serve.start()

@serve.deployment("label", num_replicas=1, route_prefix="/hello")
class Hello:
    async def __init__(self, names: dict, *, child: RayServeHandle):
        self.names, self.child = names, child

    async def __call__(self, request) -> str:
        ref = await self.child.options(method_name="greet").remote(self.names["a"])
        return await ref

@serve.deployment
class Child:
    def greet(self, name):
        return f"hello {name}"

handle: RayServeSyncHandle = serve.run(Hello.bind({"a": "you"}, child=Child.bind()), host="127.0.0.1", port=port)
print(urllib.request.urlopen(f"http://localhost:{port}/hello").read().decode())

serve.shutdown()
serve.shutdown()
try:
    urllib.request.urlopen(f"http://localhost:{port}/hello")
except OSError:
    print("refused")

@serve.deployment
class Child:
    def __call__(self):
        return "another child"

print(serve.get(serve.run(Child.bind(), port=port).remote(), timeout=60))
"""


@pytest.mark.long  # the program of tests/faults/test_run_restarts.py does it
def test_a_script_may_start_run_shut_down_and_run_again(site: Site) -> None:
    port = free_port()
    (site.folder / "script.py").write_text(TWICE)

    process = site.start([sys.executable, "script.py", str(port)], cwd=site.folder)

    assert process.wait() == 0, process.output
    assert process.stdout == "hello you\nrefused\nanother child\n"
    assert process.problems == ""
    site.wait_empty()
    assert not is_open(port)


ENDING = """
import os, signal, sys, time
import qserve

@qserve.deployment
def app():
    return "here"

handle = qserve.run(app.bind(), port=PORT)
assert qserve.get(handle.remote()) == "here"
print("served", flush=True)
"""


@pytest.mark.parametrize(
    ("last_words", "code"),
    [
        ("sys.exit(3)", 3),
        ("raise ValueError('of no use')", 1),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", -signal.SIGINT),
    ],
)
@pytest.mark.long  # tests/e2e/test_run_command.py has Ctrl-C, and a program that is killed is below
def test_the_end_of_a_program_ends_what_it_started(site: Site, last_words: str, code: int) -> None:
    port = free_port()
    process = run_script(site, ENDING + last_words, port)

    assert process.wait() == code, process.output
    site.wait_empty()
    assert not is_open(port)


FORKING = """
import os
import qserve

@qserve.deployment
def double(value: int) -> int:
    return value * 2

handle = qserve.run(double.bind(), port=PORT)
print(qserve.get(handle.remote(1)), flush=True)
child = os.fork()
print("child" if child == 0 else "parent", qserve.get(handle.remote(2), timeout=60), flush=True)
if child:
    print("it ended with", os.waitpid(child, 0)[1], flush=True)
    print("still", qserve.get(handle.remote(3), timeout=60), flush=True)
"""


@pytest.mark.long  # tests/local/test_forks.py has what a child may do
def test_the_child_of_a_program_that_serves_may_call_and_ends_by_itself_only(site: Site) -> None:
    process = run_script(site, FORKING, free_port())

    assert process.wait() == 0, process.output
    assert sorted(process.stdout.split("\n")) == ["", "2", "child 4", "it ended with 0", "parent 4", "still 6"]
    site.wait_empty()


# tests/e2e/test_run_command.py ends a run by SIGTERM
@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.long), signal.SIGKILL])
def test_a_program_that_is_killed_leaves_no_process(site: Site, number: int) -> None:
    port = free_port()
    process = run_script(site, ENDING + "time.sleep(600)", port)
    process.wait_for("served")

    process.signal(number)

    process.wait()
    wait_until(lambda: not site.processes(), description="no process is left")
    assert not is_open(port)
    for folder in site.broker_folders():  # with the last process gone, nobody is left to remove it
        (site.folder / folder).rename(site.folder / f"left-{folder}")


@pytest.mark.long  # tests/e2e/test_run_command.py has Ctrl-C
def test_a_blocking_run_serves_until_ctrl_c(site: Site) -> None:
    port = free_port()
    source = ENDING.partition("handle =")[0] + "qserve.run(app.bind(), blocking=True, port=PORT)\n"
    process = run_script(site, source, port)
    wait_until(lambda: is_open(port), description="the gateway listens")
    client = Client(port)
    wait_until(lambda: client.get().text == "here", description="it answers")
    process.press_ctrl_c()

    assert process.wait() == 0, process.output
    site.wait_empty()
    assert "Traceback" not in process.stderr


# -- handles from the driver -----------------------------------------------------------------------


class Calls:
    """A deployment of a method, for the test of handles."""

    async def method_b(self, value: int) -> int:
        return value


def test_the_newer_handles_give_responses() -> None:
    qserve.run(qserve.deployment(Calls).bind())
    handle = qserve.get_app_handle("default")

    async def main() -> tuple[int, int]:
        return await handle.method_b.remote(4), await handle.method_b.remote(5)

    assert isinstance(handle, DeploymentHandle)
    assert handle.method_b.remote(3).result(timeout_s=60) == 3
    assert asyncio.run(main()) == (4, 5)
    with pytest.raises(QserveException, match="no deployment 'Nobody'"):
        qserve.get_deployment_handle("Nobody")
    with pytest.raises(QserveException, match="nowhere"):
        qserve.get_app_handle("nowhere")


def test_clients_serve_threads_event_loops_children_and_other_processes(site: Site) -> None:
    qserve.run(Weighted.bind(7), name="kept", route_prefix=None)
    settings = api._client().settings
    assert settings.broker_url and settings.secret_key

    async def awaited(handle: DeploymentHandle) -> list[int]:
        async with qserve.connect() as own:  # what this program has started, whatever else runs here
            return await asyncio.gather(handle.remote(1), own.get_app_handle("kept").compute.remote(2))

    with qserve.connect(settings.broker_url, secret_key=settings.secret_key) as client:
        compute = client.get_app_handle("kept").compute
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda number: compute.remote(number).result(60), range(20))) == [*range(0, 140, 7)]
        assert asyncio.run(awaited(compute)) == asyncio.run(awaited(compute)) == [7, 14]
        with multiprocessing.get_context("fork").Pool(2) as processes:
            assert processes.map(partial(_computed, compute), range(3)) == [0, 7, 14]
        good, bad, last = client.submit_many(compute, [(1,), (None,), {"value": compute.remote(1)}])
        assert [good.result(60), last.result(60)] == [7, 49]
        with pytest.raises(TypeError):
            bad.result(60)
    source = "import qserve, sys; print(qserve.connect().get_ref(sys.argv[1]).result(60))"
    env = settings.to_env()
    process = site.start([sys.executable, "-c", source, good.request_id], cwd=site.folder, env=env)
    assert process.wait() == 0, process.output
    assert process.stdout == "7\n"
    qserve.delete("kept")


def test_a_deployment_connects_to_an_installation_as_a_program_does() -> None:
    @qserve.deployment
    class Caller:
        def __init__(self, url: str, key: bytes) -> None:
            self.compute = qserve.connect(url, secret_key=key).get_app_handle("kept").compute

        async def ask(self, number: int) -> Any:
            return await self.compute.remote(number)

        def ask_and_wait(self, number: int) -> Any:
            return self.compute.remote(number).result(60)

    qserve.run(Weighted.bind(7), name="kept", route_prefix=None)
    settings = api._client().settings
    handle = qserve.run(Caller.bind(settings.broker_url, settings.secret_key), name="caller", route_prefix=None)

    assert [ask(handle.ask, 2), ask(handle.ask_and_wait, 3)] == [14, 21]
    qserve.delete("caller")
    qserve.delete("kept")


def _computed(compute: DeploymentHandle, number: int) -> Any:
    return compute.remote(number).result(60)


def test_a_handle_is_kept_in_a_file_and_used_by_another_process(site: Site) -> None:
    handle = qserve.run(Weighted.bind(7), name="kept", route_prefix=None)
    kept = site.folder / "handle"
    kept.write_bytes(pickle.dumps(handle.compute))
    source = "import pickle, qserve, sys; print(qserve.get(pickle.load(open(sys.argv[1], 'rb')).remote(6), timeout=60))"
    settings = api._client().settings.to_env()

    process = site.start([sys.executable, "-c", source, str(kept)], cwd=Path(kept).parent, env=settings)

    assert process.wait() == 0, process.output
    assert process.stdout == "42\n"
    qserve.delete("kept")


# -- handles inside deployments --------------------------------------------------------------------


@qserve.deployment
class Adder:
    """Adds a number; shows how often it runs at the same time."""

    def __init__(self, increment: int = 0) -> None:
        self.increment = increment
        self.inside = 0

    def add(self, value: int) -> int:
        return value + self.increment

    async def meet(self, others: int) -> int:
        """Answers only once that many calls are inside at the same time."""
        self.inside += 1
        while self.inside < others:
            await asyncio.sleep(0.001)
        return others


def test_calls_started_before_the_first_await_run_at_the_same_time() -> None:
    @qserve.deployment
    class Driver:
        def __init__(self, adder: RayServeHandle) -> None:
            self.adder = adder

        async def __call__(self) -> list[int]:
            tasks = [self.adder.meet.remote(3) for _ in range(3)]
            refs = [await task for task in tasks]
            return await asyncio.gather(*refs)

    assert ask(qserve.run(Driver.bind(Adder.bind()))) == [3, 3, 3]


def test_a_ref_that_a_deployment_returns_is_resolved_on_the_way_out() -> None:
    @qserve.deployment
    class Driver:
        def __init__(self, adder: RayServeHandle) -> None:
            self.adder = adder

        async def ref(self) -> Any:
            return await self.adder.add.remote(1)

        def task(self) -> Any:
            return self.adder.add.remote(2)

    handle = qserve.run(Driver.bind(Adder.bind(10)))

    assert [ask(handle.ref), ask(handle.task)] == [11, 12]


# -- graphs ----------------------------------------------------------------------------------------


def test_the_driver_may_stand_for_a_class_node_or_a_function_node(client: Client) -> None:
    @qserve.deployment
    class Model:
        def __call__(self, value: int) -> int:
            return value + 100

    @qserve.deployment
    def negative(value: int) -> int:
        return -value

    handle = qserve.run(DAGDriver.bind(Model.bind(), http_adapter=json_request))
    assert ask(handle.predict, 1) == 101
    assert client.post("/", 2).json == 102

    with InputNode() as value:
        handle = qserve.run(DAGDriver.bind(negative.bind(value), http_adapter=json_request))
    assert ask(handle.predict, 1) == -1
    assert client.post("/", 2).json == -2


def test_a_function_that_is_bound_to_arguments_answers_http_with_them(client: Client) -> None:
    qserve.run(hello.bind(inp="over HTTP"))

    assert client.get().text == "hello over HTTP"


# -- killed replicas -------------------------------------------------------------------------------


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("sync", [True, False])
def test_a_call_outlives_the_replica_that_was_killed_while_running_it(
    tmp_path: Path, replicas: int, sync: bool
) -> None:
    told = tmp_path / "pid"

    def first_time() -> bool:
        try:
            told.touch(exist_ok=False)
        except FileExistsError:
            return False
        told.write_text(str(os.getpid()))
        return True

    @qserve.deployment(num_replicas=replicas)
    class Model:
        def wait(self) -> int:
            if first_time():
                time.sleep(600)
            return os.getpid()

        async def wait_async(self) -> int:
            if first_time():
                await asyncio.sleep(600)
            return os.getpid()

        async def pid(self) -> int:
            await asyncio.sleep(0.01)
            return os.getpid()

    handle = qserve.run(Model.bind())
    ref = (handle.wait if sync else handle.wait_async).remote()
    victim = int(wait_until(lambda: told.exists() and told.read_text(), description="it runs"))

    os.kill(victim, signal.SIGKILL)

    assert qserve.get(ref, timeout=Settings().lease_s) != victim

    def all_there() -> bool:
        pids = set(qserve.get([handle.pid.remote() for _ in range(20)], timeout=60))
        assert victim not in pids
        return len(pids) == replicas

    wait_until(all_there, description=f"{replicas} replicas answer")
