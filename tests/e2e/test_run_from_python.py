"""``qserve.run`` and handles, in one program that serves many applications one after the other."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import Site, Started, free_port, is_alive, is_open, wait_until

import qserve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.exceptions import GetTimeoutError, QserveException, RayServeException, RayTaskError, RequestCancelled
from qserve.handle import DeploymentHandle, RayServeDeploymentHandle, RayServeHandle
from qserve.http_adapters import json_request

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def url(started: Started) -> str:
    """Where the gateway answers, which runs for all tests here."""
    return started.url


def fetch(url: str, body: Any = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(url, data=data, timeout=10) as response:
        return response.read().decode()


def run_script(site: Site, source: str, port: int) -> Any:
    (site.folder / "script.py").write_text(source.replace("PORT", str(port)))
    return site.start([sys.executable, "script.py"], cwd=site.folder)


def ask(handle: Any, *args: Any, **kwargs: Any) -> Any:
    return qserve.get(handle.remote(*args, **kwargs), timeout=10)


# -- run -------------------------------------------------------------------------------------------


def test_run_returns_a_handle_whose_calls_give_refs() -> None:
    @qserve.deployment
    def double(value: int) -> int:
        return value * 2

    handle = qserve.run(double.bind())

    assert qserve.get(handle.remote(21)) == 42


def test_each_run_takes_the_place_of_the_one_before(url: str) -> None:
    @qserve.deployment
    class Echo:
        def __init__(self, text: str) -> None:
            self.text = text

        def __call__(self, request: Any = None) -> str:
            return self.text

    for text in ("foo", "bar", "baz"):
        handle = qserve.run(Echo.bind(text))
        assert fetch(url) == text
        assert ask(handle) == text


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
        qserve.get(old_handle.remote(), timeout=5)
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

    assert qserve.get(ref, timeout=5) == 2


def test_start_changes_nothing_when_things_run_already(url: str) -> None:
    @qserve.deployment
    def app() -> str:
        return "kept"

    qserve.run(app.bind())
    qserve.start()
    qserve.start(detached=True)

    assert fetch(url) == "kept"


def test_name_and_route_prefix_let_applications_live_side_by_side(url: str) -> None:
    @qserve.deployment
    class Echo:
        def __init__(self, text: str) -> None:
            self.text = text

        def __call__(self) -> str:
            return self.text

    default = qserve.run(Echo.bind("default"))
    first = qserve.run(Echo.bind("first"), name="first", route_prefix="/first")
    second = qserve.run(Echo.bind("second"), name="second", route_prefix="/second")

    assert json.loads(fetch(f"{url}/-/routes")) == {"/": "Echo", "/first": "Echo", "/second": "Echo"}
    assert [ask(default), ask(first), ask(second)] == ["default", "first", "second"]
    assert [fetch(f"{url}{path}") for path in ("", "/first", "/second/x")] == ["default", "first", "second"]
    qserve.delete("first")
    assert [fetch(f"{url}/first"), ask(second)] == ["default", "second"]
    qserve.delete("second")


def test_an_application_without_a_route_prefix_answers_only_handles(url: str) -> None:
    @qserve.deployment
    def app() -> str:
        return "inside"

    handle = qserve.run(app.bind(), name="hidden", route_prefix=None)

    assert ask(handle) == "inside"
    assert "hidden" not in fetch(f"{url}/-/routes")
    qserve.delete("hidden")


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_constructor_that_always_fails_ends_run_and_leaves_the_old_application(
    started: Started, replicas: int
) -> None:
    @qserve.deployment
    def works() -> str:
        return "still here"

    @qserve.deployment(num_replicas=replicas)
    class Broken:
        def __init__(self) -> None:
            raise LookupError("the model's file is missing")

        def __call__(self) -> None: ...

    handle = qserve.run(works.bind())
    before = set(started.site.processes())

    with pytest.raises(RuntimeError, match=r"(?s)'Broken'.*LookupError: the model's file") as failure:
        qserve.run(Broken.bind())

    assert "in __init__" in str(failure.value)
    wait_until(lambda: not set(started.site.processes()) - before, description="no replica of it is left")
    assert ask(handle) == "still here"


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


def test_an_async_constructor_is_awaited() -> None:
    @qserve.deployment
    class Model:
        async def __init__(self) -> None:
            await asyncio.sleep(0)
            self.loaded = True

        def __call__(self) -> bool:
            return self.loaded

    assert ask(qserve.run(Model.bind())) is True


def test_a_user_config_is_given_to_reconfigure() -> None:
    @qserve.deployment(user_config={"threshold": 3})
    class Model:
        def reconfigure(self, config: dict[str, int]) -> None:
            self.threshold = config["threshold"]

        def __call__(self) -> tuple[int, int]:
            return self.threshold, os.getpid()

    threshold, pid = ask(qserve.run(Model.options(version="1").bind()))
    changed = Model.options(version="1", user_config={"threshold": 5})
    assert threshold == 3
    assert ask(qserve.run(changed.bind())) == (5, pid)


def test_two_replicas_are_two_processes_and_the_number_can_change() -> None:
    @qserve.deployment(num_replicas=2)
    class Model:
        async def __call__(self) -> int:
            await asyncio.sleep(0.02)
            return os.getpid()

    def pids(handle: Any) -> set[int]:
        return set(qserve.get([handle.remote() for _ in range(40)], timeout=10))

    assert len(pids(qserve.run(Model.bind()))) == 2
    assert len(pids(qserve.run(Model.options(num_replicas=3).bind()))) == 3
    assert len(pids(qserve.run(Model.options(num_replicas=1).bind()))) == 1


def test_state_stays_in_the_replica_and_is_the_same_by_http_and_by_handle(url: str) -> None:
    @qserve.deployment
    class Counter:
        def __init__(self) -> None:
            self.count = 0

        def __call__(self) -> int:
            self.count += 1
            return self.count

    handle = qserve.run(Counter.bind())

    assert [ask(handle), fetch(url), ask(handle), fetch(url)] == [1, "2", 3, "4"]


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


def test_a_class_made_at_run_time_can_be_deployed() -> None:
    def make() -> Any:
        class MyInlineClass:
            def __init__(self, value: int) -> None:
                self.value = value

            def get(self) -> int:
                return self.value

        return MyInlineClass

    Made = qserve.deployment(make())  # noqa: N806
    assert Made.name == "MyInlineClass"
    assert ask(qserve.run(Made.bind(3)).get) == 3


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
    assert process.stderr == ""
    site.wait_empty()


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
print("child" if child == 0 else "parent", qserve.get(handle.remote(2), timeout=10), flush=True)
if child:
    print("it ended with", os.waitpid(child, 0)[1], flush=True)
    print("still", qserve.get(handle.remote(3), timeout=10), flush=True)
"""


def test_the_child_of_a_program_that_serves_may_call_and_ends_by_itself_only(site: Site) -> None:
    process = run_script(site, FORKING, free_port())

    assert process.wait() == 0, process.output
    assert sorted(process.stdout.split("\n")) == ["", "2", "child 4", "it ended with 0", "parent 4", "still 6"]
    site.wait_empty()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_program_that_is_killed_leaves_no_process(site: Site, number: int) -> None:
    port = free_port()
    process = run_script(site, ENDING + "time.sleep(600)", port)
    process.wait_for("served")

    process.signal(number)

    process.wait()
    wait_until(lambda: not site.processes(), description="no process is left", timeout_s=5)
    assert not is_open(port)
    for folder in site.broker_folders():  # with the last process gone, nobody is left to remove it
        (site.folder / folder).rename(site.folder / f"left-{folder}")


def test_a_blocking_run_serves_until_ctrl_c(site: Site) -> None:
    port = free_port()
    source = ENDING.partition("handle =")[0] + "qserve.run(app.bind(), blocking=True, port=PORT)\n"
    process = run_script(site, source, port)
    wait_until(lambda: is_open(port), description="the gateway listens", timeout_s=20)
    address = f"http://127.0.0.1:{port}/"

    def answers() -> bool:
        try:
            return fetch(address) == "here"
        except urllib.error.HTTPError as error:
            error.close()
            return False

    wait_until(answers, description="it answers", timeout_s=20)
    process.press_ctrl_c()

    assert process.wait(5) == 0, process.output
    site.wait_empty()
    assert "Traceback" not in process.stderr


# -- handles from the driver -----------------------------------------------------------------------


class Calls:
    """A deployment of many methods, for the tests of handles."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return ["call", list(args), kwargs]

    def method_a(self, *args: Any, **kwargs: Any) -> Any:
        return ["a", list(args), kwargs]

    async def method_b(self, value: int, *, factor: int = 1) -> int:
        return value * factor


def test_remote_calls_the_object_and_methods_by_name_or_option() -> None:
    handle = qserve.run(qserve.deployment(Calls).bind())

    assert ask(handle, 1, b=2) == ["call", [1], {"b": 2}]
    assert ask(handle.method_a, 1, 2, c=3) == ["a", [1, 2], {"c": 3}]
    assert ask(handle.options(method_name="method_a")) == ["a", [], {}]
    assert ask(handle) == ["call", [], {}]
    assert ask(handle.method_b, 3, factor=5) == 15


def test_a_class_without_call_is_fine_as_long_as_only_its_methods_are_called() -> None:
    @qserve.deployment
    class Model:
        def exists(self) -> str:
            return "yes"

        def _hidden(self) -> None: ...

    handle = qserve.run(Model.bind())

    assert ask(handle.exists) == "yes"
    with pytest.raises(RayServeException, match=r"'does_not_exist'.*Available methods: \['exists'\]"):
        ask(handle.does_not_exist)
    with pytest.raises(RayServeException, match="'__call__'"):
        ask(handle)


def test_get_keeps_the_order_of_a_list_and_takes_no_other_things() -> None:
    @qserve.deployment
    async def wait(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    handle = qserve.run(wait.bind())

    refs = [handle.remote(0.2), handle.remote(0.0), handle.remote(0.1)]
    assert qserve.get(refs) == [0.2, 0.0, 0.1]
    assert qserve.get([]) == []
    with pytest.raises(TypeError, match="int"):
        qserve.get(3)


def test_get_stops_waiting_at_its_timeout_and_the_call_goes_on() -> None:
    @qserve.deployment
    async def slow() -> str:
        await asyncio.sleep(0.5)
        return "done"

    ref = qserve.run(slow.bind()).remote()

    with pytest.raises(GetTimeoutError):
        qserve.get(ref, timeout=0.05)
    with pytest.raises(TimeoutError):
        qserve.get([ref], timeout=0.05)
    assert qserve.get(ref, timeout=5) == "done"


def test_a_call_that_is_cancelled_while_it_is_queued_never_runs(tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    @qserve.deployment(max_concurrent_queries=1)
    class Gated:
        def __init__(self) -> None:
            self.ran: list[int] = []

        async def __call__(self, number: int) -> list[int]:
            self.ran.append(number)
            while not gate.exists():
                await asyncio.sleep(0.005)
            return self.ran

    handle = qserve.run(Gated.bind())
    first, second, third = (handle.remote(number) for number in range(3))

    second.cancel()

    with pytest.raises(RequestCancelled):
        qserve.get(second, timeout=5)
    gate.touch()
    assert qserve.get(first, timeout=5) == [0]
    assert qserve.get(third, timeout=5) == [0, 2]


def test_refs_of_the_driver_arrive_as_values() -> None:
    @qserve.deployment
    def app(left: str, right: str = "") -> str:
        return f"hello {left}{right}"

    handle = qserve.run(app.bind())

    inner = handle.remote("Serve")
    assert ask(handle, inner) == "hello hello Serve"
    assert ask(handle, "x", right=inner) == "hello xhello Serve"
    assert ask(handle, handle.remote(handle.remote("deep"))) == "hello hello hello deep"


def test_handles_are_values_equal_hashable_and_printable() -> None:
    handle = qserve.run(qserve.deployment(Calls).bind())

    many = [qserve.get_app_handle("default") for _ in range(100)]
    assert len(set(many)) == 1
    assert many[0] == qserve.get_deployment_handle("Calls")
    assert handle.method_a == handle.options(method_name="method_a") != handle
    assert repr(RayServeDeploymentHandle("Model")) == "RayServeDeploymentHandle(deployment='Model')"
    restored = pickle.loads(pickle.dumps(handle))
    assert restored == handle
    assert ask(restored.method_b, 2) == 2


def test_the_newer_handles_give_responses() -> None:
    qserve.run(qserve.deployment(Calls).bind())
    handle = qserve.get_app_handle("default")

    async def main() -> tuple[int, int]:
        return await handle.method_b.remote(4), await handle.method_b.remote(5)

    assert isinstance(handle, DeploymentHandle)
    assert handle.method_b.remote(3).result(timeout_s=5) == 3
    assert asyncio.run(main()) == (4, 5)
    with pytest.raises(QserveException, match="no deployment 'Nobody'"):
        qserve.get_deployment_handle("Nobody")
    with pytest.raises(QserveException, match="nowhere"):
        qserve.get_app_handle("nowhere")


def test_a_handle_works_in_other_threads() -> None:
    handle = qserve.run(qserve.deployment(Calls).bind())
    answers: list[int] = []

    def call(number: int) -> None:
        answers.append(ask(handle.method_b, number))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(answers) == list(range(8))


@pytest.mark.parametrize("cached", [True, False])
def test_a_handle_works_in_ten_fresh_event_loops(cached: bool) -> None:
    handle = qserve.run(qserve.deployment(Calls).bind())

    async def main(number: int) -> int:
        used = handle if cached else qserve.get_app_handle("default")
        return await used.method_b.remote(number)

    assert [asyncio.run(main(number)) for number in range(10)] == list(range(10))


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


def test_two_awaits_give_the_ref_and_then_the_value() -> None:
    @qserve.deployment
    class Driver:
        def __init__(self, adder: RayServeHandle) -> None:
            self.adder = adder

        async def __call__(self) -> list[Any]:
            task = self.adder.add.remote(1)
            ref = await task
            return [await ref, await (await self.adder.add.remote(2)), type(self.adder).__name__]

    handle = qserve.run(Driver.bind(Adder.bind(10)))

    assert ask(handle) == [11, 12, "RayServeDeploymentHandle"]


def test_a_call_may_be_awaited_twice_late_or_never() -> None:
    @qserve.deployment
    class Driver:
        def __init__(self, adder: RayServeHandle) -> None:
            self.adder = adder

        async def __call__(self) -> list[int]:
            self.adder.add.remote(0)
            task = self.adder.add.remote(1)
            await asyncio.sleep(0.05)
            first, second = await task, await task
            return [await first, await first, await second]

    assert ask(qserve.run(Driver.bind(Adder.bind(1)))) == [2, 2, 2]


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


def test_get_works_inside_sync_and_async_methods() -> None:
    @qserve.deployment
    class Driver:
        def __init__(self, left: RayServeHandle, right: RayServeHandle) -> None:
            self.left, self.right = left, right

        def in_sync(self, value: int) -> int:
            refs = [self.left.add.remote(value), self.right.add.remote(value)]
            return sum(qserve.get(refs))

        async def in_async(self, value: int) -> int:
            refs = [await self.left.add.remote(value), await self.right.add.remote(value)]
            return sum(qserve.get(refs)) + qserve.get(await self.left.add.remote(value))

    handle = qserve.run(Driver.bind(Adder.bind(1), Adder.bind(2)))

    # more than once: a method that was fast runs elsewhere the next time
    for _ in range(3):
        assert ask(handle.in_sync, 10) == 23
        assert ask(handle.in_async, 10) == 34


def test_unawaited_calls_and_refs_are_arguments_that_arrive_as_values() -> None:
    @qserve.deployment
    class Driver:
        def __init__(self, adder: RayServeHandle) -> None:
            self.adder = adder

        async def __call__(self) -> list[int]:
            task = self.adder.add.remote(1)
            by_task = await self.adder.add.remote(task)
            by_ref = await self.adder.add.remote(await task)
            by_keyword = await self.adder.add.remote(value=self.adder.add.remote(task))
            return [await by_task, await by_ref, await by_keyword]

    assert ask(qserve.run(Driver.bind(Adder.bind(10)))) == [21, 21, 31]


def test_an_argument_that_is_not_ready_holds_up_nobody_else() -> None:
    @qserve.deployment
    class First:
        def __init__(self) -> None:
            self.opened = asyncio.Event()

        async def __call__(self, number: int) -> int:
            if number == 0:
                await self.opened.wait()
            return number

        async def open(self) -> None:
            self.opened.set()

    @qserve.deployment
    class Second:
        def __init__(self) -> None:
            self.started: list[int] = []

        async def __call__(self, number: int) -> list[int]:
            self.started.append(number)
            return self.started

    @qserve.deployment
    class Driver:
        def __init__(self, first: RayServeHandle, second: RayServeHandle) -> None:
            self.first, self.second = first, second

        async def __call__(self, number: int) -> list[int]:
            return await (await self.second.remote(self.first.remote(number)))

        async def open(self) -> None:
            await (await self.first.open.remote())

    handle = qserve.run(Driver.bind(First.bind(), Second.bind()))

    blocked = handle.remote(0)
    assert ask(handle, 1) == [1]
    with pytest.raises(GetTimeoutError):
        qserve.get(blocked, timeout=0.1)
    ask(handle.open)
    assert qserve.get(blocked, timeout=5) == [1, 0]


def test_handles_travel_as_call_arguments_and_nested_in_init_arguments() -> None:
    @qserve.deployment
    class Borrower:
        async def borrow(self, handle: Any) -> int:
            return await (await handle.add.remote(1))

    @qserve.deployment
    class Driver:
        def __init__(self, children: dict[str, Any], *, more: list[Any]) -> None:
            self.children, self.more = children, more

        async def __call__(self) -> list[int]:
            adder = self.children["adder"]
            lent = await self.children["borrower"].borrow.remote(adder)
            return [await lent, await (await self.more[0].add.remote(2))]

    adder = Adder.bind(100)
    handle = qserve.run(Driver.bind({"adder": adder, "borrower": Borrower.bind()}, more=[adder]))

    assert ask(handle) == [101, 102]


def test_both_users_of_one_node_talk_to_the_same_replica() -> None:
    @qserve.deployment
    class Child:
        def pid(self) -> int:
            return os.getpid()

    @qserve.deployment
    class Parent:
        def __init__(self, child: RayServeHandle) -> None:
            self.child = child

        async def pid(self) -> int:
            return await (await self.child.pid.remote())

    @qserve.deployment
    class GrandParent:
        def __init__(self, child: RayServeHandle, parent: RayServeHandle) -> None:
            self.child, self.parent = child, parent

        async def __call__(self) -> list[int]:
            return [await (await one.pid.remote()) for one in (self.child, self.parent)]

    child = Child.bind()
    first, second = ask(qserve.run(GrandParent.bind(child, Parent.bind(child))))

    assert first == second


def test_a_constructor_may_ask_for_the_newer_handles() -> None:
    @qserve.deployment
    class Driver:
        def __init__(self, annotated: DeploymentHandle, plain: Any) -> None:
            self.annotated = annotated
            self.chosen = plain.options(use_new_handle_api=True)

        async def __call__(self) -> list[int]:
            chained = self.annotated.add.remote(self.chosen.add.remote(2))
            return [await self.annotated.add.remote(1), await chained]

    assert ask(qserve.run(Driver.bind(Adder.bind(10), Adder.bind(5)))) == [11, 17]


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


def test_results_inside_containers_arrive_as_refs_and_inputs_as_values() -> None:
    @qserve.deployment
    def combine(refs: list[Any], named: dict[str, Any], plain: list[int]) -> list[int]:
        return [sum(qserve.get(refs)), qserve.get(named["x"]), *plain]

    with InputNode() as value:
        one, two = Adder.bind(1).add.bind(value), Adder.bind(2).add.bind(value)
        output = combine.bind([one, two], {"x": one}, [value, 7])

    assert ask(qserve.run(DAGDriver.bind(output)).predict, 10) == [23, 11, 10, 7]


def test_a_shared_node_runs_once_for_each_request() -> None:
    @qserve.deployment
    class Once:
        def __init__(self) -> None:
            self.seen: set[int] = set()

        def forward(self, value: int) -> int:
            if value in self.seen:
                raise RuntimeError("called twice")
            self.seen.add(value)
            return value

    @qserve.deployment
    def combine(*values: int) -> int:
        return sum(values)

    with InputNode() as value:
        shared = Once.bind().forward.bind(value)
        output = combine.bind(shared, shared, Adder.bind(1).add.bind(shared))
    handle = qserve.run(DAGDriver.bind(output))

    assert [ask(handle.predict, 1), ask(handle.predict, 2)] == [4, 7]


def test_independent_nodes_run_at_the_same_time() -> None:
    @qserve.deployment
    def combine(left: int, right: int) -> int:
        return left + right

    with InputNode() as value:
        adder = Adder.bind()  # each of the two calls waits for the other one
        output = combine.bind(adder.meet.bind(value), adder.meet.bind(value))

    assert ask(qserve.run(DAGDriver.bind(output)).predict, 2) == 4


def test_parts_of_the_input_come_by_position_key_and_attribute() -> None:
    @qserve.deployment
    def show(*parts: Any) -> list[Any]:
        return list(parts)

    with InputNode() as value:
        by_position = show.bind(value[0], value[1])
        by_key = show.bind(value["m1"], value.m2)
    routes = {"/position": by_position, "/key": by_key, "/method": Adder.bind(4).add.bind(1)}
    handle = qserve.run(DAGDriver.bind(routes))

    predict = handle.predict_with_route
    assert ask(predict, "/position", 1, "b") == [1, "b"]
    assert ask(predict, "/position", [2, "c"]) == [2, "c"]
    assert ask(predict, "/key", m1=1, m2={"x": 2}) == [1, {"x": 2}]
    assert ask(predict, "/method") == 5
    with pytest.raises(IndexError):
        ask(predict, "/position", 1, other=2)
    with pytest.raises(RayServeException, match="/nowhere does not exist in dags routes"):
        ask(predict, "/nowhere", 1)


def test_the_driver_may_stand_for_a_class_node_or_a_function_node(url: str) -> None:
    @qserve.deployment
    class Model:
        def __call__(self, value: int) -> int:
            return value + 100

    @qserve.deployment
    def negative(value: int) -> int:
        return -value

    handle = qserve.run(DAGDriver.bind(Model.bind(), http_adapter=json_request))
    assert ask(handle.predict, 1) == 101
    assert fetch(url, 2) == "102"

    with InputNode() as value:
        handle = qserve.run(DAGDriver.bind(negative.bind(value), http_adapter=json_request))
    assert ask(handle.predict, 1) == -1
    assert fetch(url, 2) == "-2"


def test_a_class_of_the_users_own_may_be_the_driver() -> None:
    @qserve.deployment
    class Driver:
        def __init__(self, dag: Any) -> None:
            self.dag = dag

        async def __call__(self, value: int) -> int:
            return await (await self.dag.remote(value))

        def in_sync(self, value: int) -> int:
            return qserve.get(self.dag.remote(value))

    with InputNode() as value:
        output = Adder.bind(2).add.bind(Adder.bind(1).add.bind(value))
    handle = qserve.run(Driver.bind(output))

    assert [ask(handle, 1), ask(handle.in_sync, 2)] == [4, 5]


def test_class_nodes_given_to_functions_arrive_as_handles() -> None:
    @qserve.deployment
    async def use(adder: Any, value: int) -> int:
        return await (await adder.add.remote(value))

    with InputNode() as value:
        output = use.bind(Adder.bind(5), value)

    assert ask(qserve.run(DAGDriver.bind(output)).predict, 1) == 6


def test_values_keep_their_type_on_the_way() -> None:
    @qserve.deployment
    class Pass:
        def forward(self, value: Any) -> Any:
            return value

    with InputNode() as value:
        output = Pass.bind().forward.bind(Pass.bind().forward.bind(value))
    predict = qserve.run(DAGDriver.bind(output)).predict

    for sent in (5, 0.3 * 2, "é", b"\0\xff", None, True, (1, (2,)), {1, 2}, {"a": [1]}, 2**80):
        got = ask(predict, sent)
        assert (got, type(got)) == (sent, type(sent))
    array = ask(predict, np.arange(6, dtype=np.uint8).reshape(2, 3))
    assert (array.dtype, array.shape) == (np.dtype(np.uint8), (2, 3))


# -- errors ----------------------------------------------------------------------------------------


def test_an_error_is_an_instance_of_its_own_type_and_shows_where_it_came_from() -> None:
    @qserve.deployment
    def divide(value: int) -> float:
        return 1 / value

    handle = qserve.run(divide.bind())

    with pytest.raises(ZeroDivisionError) as failure:
        ask(handle, 0)
    assert isinstance(failure.value, RayTaskError)
    assert "division by zero" in str(failure.value)
    assert "return 1 / value" in str(failure.value)
    assert ask(handle, 2) == 0.5


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((1,), {}, r"\(\) takes 0 positional arguments but 1 was given"),
        ((), {"key": 1}, r"\(\) got an unexpected keyword argument 'key'"),
    ],
)
def test_arguments_that_do_not_fit_are_pythons_own_type_error(
    args: tuple[int, ...], kwargs: dict[str, int], text: str
) -> None:
    @qserve.deployment
    def nothing() -> str:
        return "hello"

    handle = qserve.run(nothing.bind())

    with pytest.raises(TypeError, match=text):
        ask(handle, *args, **kwargs)


def test_errors_of_local_types_and_unpicklable_ones_arrive_as_task_errors() -> None:
    class OwnError(Exception):
        pass

    class Stubborn(Exception):
        def __reduce__(self) -> Any:
            raise TypeError("not me")

    @qserve.deployment
    def fail(stubborn: bool) -> None:
        raise (Stubborn if stubborn else OwnError)("of no use")

    handle = qserve.run(fail.bind())

    for stubborn, name in ((False, "OwnError"), (True, "Stubborn")):
        with pytest.raises(RayTaskError, match="of no use") as failure:
            ask(handle, stubborn)
        assert failure.value.remote_type.endswith(name)


def test_an_error_in_one_node_fails_only_its_request() -> None:
    @qserve.deployment
    def check(value: int) -> int:
        if value < 0:
            raise ValueError(f"{value} is negative")
        return value

    with InputNode() as value:
        output = Adder.bind(1).add.bind(check.bind(Adder.bind(0).add.bind(value)))
    handle = qserve.run(DAGDriver.bind(output))

    refs = [handle.predict.remote(value) for value in (1, -2, 3)]
    with pytest.raises(ValueError, match="-2 is negative"):
        qserve.get(refs[1])
    assert [qserve.get(refs[0]), qserve.get(refs[2])] == [2, 4]


def test_an_error_behind_a_handle_passes_through_the_caller() -> None:
    @qserve.deployment
    class Inner:
        def fail(self) -> None:
            raise KeyError("inner")

    @qserve.deployment
    class Driver:
        def __init__(self, inner: RayServeHandle) -> None:
            self.inner = inner

        async def through(self) -> None:
            await (await self.inner.fail.remote())

        async def caught(self) -> str:
            try:
                await (await self.inner.fail.remote())
            except KeyError as error:
                return type(error).__mro__[1].__name__
            return "no error"

    handle = qserve.run(Driver.bind(Inner.bind()))

    with pytest.raises(KeyError, match="inner"):
        ask(handle.through)
    assert ask(handle.caught)


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

    killed_at = time.monotonic()
    assert qserve.get(ref, timeout=5) != victim

    def all_there() -> bool:
        pids = set(qserve.get([handle.pid.remote() for _ in range(20)], timeout=5))
        assert victim not in pids
        return len(pids) == replicas

    wait_until(all_there, description=f"{replicas} replicas answer", timeout_s=2)
    assert time.monotonic() - killed_at < 2.5


def test_other_calls_in_a_killed_replica_are_not_lost_either(tmp_path: Path) -> None:
    @qserve.deployment
    class Model:
        async def __call__(self, number: int) -> int:
            await asyncio.sleep(0.2)
            return number

        def pid(self) -> int:
            return os.getpid()

    handle = qserve.run(Model.bind())
    victim = ask(handle.pid)
    refs = [handle.remote(number) for number in range(10)]

    os.kill(victim, signal.SIGKILL)

    assert qserve.get(refs, timeout=10) == list(range(10))


def test_a_call_that_kills_its_replica_each_time_fails_in_the_end() -> None:
    @qserve.deployment
    class Model:
        def poison(self) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        def fine(self) -> str:
            return "fine"

    handle = qserve.run(Model.bind())

    with pytest.raises(QserveException, match="died 3 times"):
        qserve.get(handle.poison.remote(), timeout=10)
    assert ask(handle.fine) == "fine"
