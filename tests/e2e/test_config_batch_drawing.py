"""Replicas and their settings, batching, multiplexing, drawing, the command line and newer handles."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from processes import Site, Started, wait_until

import qserve as serve
from qserve.dag import InputNode, _dag_to_dot, plot
from qserve.drivers import DAGDriver
from qserve.exceptions import AppNotFound, BackPressureError, QserveException
from qserve.local.run import shutdown_local


@pytest.fixture
def _local() -> Iterator[None]:
    """Local applications end with the test; what the module started goes on."""
    yield
    shutdown_local()


def ask(handle: Any, *args: Any) -> Any:
    return serve.get(handle.remote(*args), timeout=20)


# -- replicas --------------------------------------------------------------------------------------


@serve.deployment
class Counted:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> tuple[int, int]:
        self.count += 1
        return os.getpid(), self.count


@pytest.mark.usefixtures("started")
def test_n_replicas_are_n_processes_that_share_the_calls_and_the_number_can_change() -> None:
    for wanted in (1, 3, 2):
        handle = serve.run(Counted.options(num_replicas=wanted, version="1").bind())
        seen: Counter[int] = Counter()

        def enough(handle: Any = handle, seen: Counter[int] = seen, wanted: int = wanted) -> bool:
            seen.update(pid for pid, _ in serve.get([handle.remote() for _ in range(20)], timeout=20))
            return len(seen) == wanted

        wait_until(enough, description=f"{wanted} replicas answer")
        assert os.getpid() not in seen


@pytest.mark.usefixtures("started")
def test_each_deployment_of_a_graph_has_its_own_number_of_replicas() -> None:
    @serve.deployment
    def pid(*ignored: Any) -> int:
        return os.getpid()

    @serve.deployment
    def both(one: int, two: int) -> tuple[int, int]:
        return one, two

    with InputNode() as value:
        one = pid.options(name="one", num_replicas=1).bind(value)
        two = pid.options(name="two", num_replicas=2).bind(value)
        handle = serve.run(DAGDriver.bind(both.bind(one, two)))

    def seen() -> bool:
        pairs = serve.get([handle.predict.remote(0) for _ in range(50)], timeout=20)
        return (len({one for one, _ in pairs}), len({two for _, two in pairs})) == (1, 2)

    wait_until(seen, description="one and two replicas")


def test_a_counter_goes_on_between_http_and_handle_calls(started: Started) -> None:
    handle = serve.run(Counted.bind())

    assert ask(handle)[1] == 1
    assert httpx.get(started.url).json()[1] == 2
    assert ask(handle)[1] == 3


@pytest.mark.usefixtures("started")
def test_reconfigure_may_be_async_and_runs_after_the_constructor() -> None:
    @serve.deployment(user_config={"threshold": 3})
    class Model:
        def __init__(self) -> None:
            self.seen = ["init"]

        async def reconfigure(self, config: dict[str, Any]) -> None:
            self.seen.append(config["threshold"])

        def __call__(self) -> list[Any]:
            return [*self.seen, os.getpid()]

    handle = serve.run(Model.bind())
    first = ask(handle)
    serve.run(Model.options(user_config={"threshold": 4}).bind())

    assert first[:-1] == ["init", 3]
    assert ask(handle) == ["init", 3, 4, first[-1]]


@pytest.mark.usefixtures("_local")
def test_a_user_config_that_is_no_json_is_refused() -> None:
    with pytest.raises((TypeError, ValueError)):
        serve.run(Counted.options(user_config={"bad": object()}).bind(), local=True)


@pytest.mark.usefixtures("_local")
def test_async_calls_run_at_the_same_time_up_to_max_concurrent_queries() -> None:
    @serve.deployment(max_concurrent_queries=3)
    class Busy:
        def __init__(self) -> None:
            self.now, self.most, self.gate = 0, 0, asyncio.Event()

        async def __call__(self) -> int:
            self.now += 1
            self.most = max(self.most, self.now)
            if self.now == 3:
                self.gate.set()
            await self.gate.wait()
            await asyncio.sleep(0)
            self.now -= 1
            return self.most

    handle = serve.run(Busy.bind(), local=True)

    assert max(serve.get([handle.remote() for _ in range(12)], timeout=10)) == 3


@pytest.mark.usefixtures("started")
def test_replicas_of_a_deployment_start_side_by_side(tmp_path: Path) -> None:
    @serve.deployment(num_replicas=2)
    class Meets:
        async def __init__(self) -> None:
            (tmp_path / str(os.getpid())).touch()
            while len(list(tmp_path.iterdir())) < 2:  # the one waits for the other
                await asyncio.sleep(0.005)

        def __call__(self) -> str:
            return "met"

    assert ask(serve.run(Meets.bind())) == "met"


@pytest.mark.usefixtures("started")
def test_what_does_not_finish_within_the_grace_period_of_a_deletion_fails(tmp_path: Path) -> None:
    began = tmp_path / "began"

    @serve.deployment(graceful_shutdown_timeout_s=0.1)
    async def endless() -> None:
        began.touch()
        await asyncio.Event().wait()

    handle = serve.run(endless.bind())
    ref = handle.remote()
    wait_until(began.exists, description="the call runs")

    serve.delete("default")

    with pytest.raises(QserveException, match="deleted before this call was finished"):
        serve.get(ref, timeout=20)
    with pytest.raises(AppNotFound):
        serve.get_app_handle()


# -- batching --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("started")
def test_twenty_concurrent_calls_run_in_fewer_batches() -> None:
    @serve.deployment
    class Model:
        def __init__(self) -> None:
            self.sizes: list[int] = []

        @serve.batch(max_batch_size=5, batch_wait_timeout_s=0.2)
        async def handle_batch(self, values: list[int], factors: list[int]) -> list[int]:
            self.sizes.append(len(values))
            return [value * factor for value, factor in zip(values, factors, strict=True)]

        async def __call__(self, value: int, factor: int = 2) -> int:
            return int(await self.handle_batch(value, factors=factor))

        def seen(self) -> list[int]:
            return self.sizes

    handle = serve.run(Model.bind())

    assert serve.get([handle.remote(number) for number in range(20)], timeout=20) == list(range(0, 40, 2))
    sizes = ask(handle.seen)
    assert sum(sizes) == 20
    assert len(sizes) < 20
    assert max(sizes) <= 5


@pytest.mark.usefixtures("_local")
def test_a_full_batch_does_not_wait_and_an_error_reaches_all_its_callers() -> None:
    @serve.deployment
    class Model:
        @serve.batch(max_batch_size=3, batch_wait_timeout_s=1000)
        async def __call__(self, values: list[Any]) -> list[Any]:
            if "bad" in values:
                raise ValueError("one of these is bad")
            return values[:-1] if "short" in values else values

    handle = serve.run(Model.bind(), local=True)

    assert serve.get([handle.remote(n) for n in range(3)], timeout=10) == [0, 1, 2]
    for refs in ([handle.remote(one) for one in (1, "bad", 2)], [handle.remote(one) for one in (1, "short", 2)]):
        for ref in refs:
            with pytest.raises(Exception, match=r"bad|results|length|short"):
                serve.get(ref, timeout=10)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"max_batch_size": 0}, ValueError),
        ({"max_batch_size": 1.1}, TypeError),
        ({"batch_wait_timeout_s": -0.1}, ValueError),
        ({"batch_wait_timeout_s": "a"}, TypeError),
    ],
)
def test_wrong_batch_options_are_refused(options: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        serve.batch(**options)


def test_batch_takes_whole_floats_no_wait_and_only_async_functions() -> None:
    for options in ({"max_batch_size": 1.0}, {"batch_wait_timeout_s": 0}, {"batch_wait_timeout_s": 0.0}):
        serve.batch(**options)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="async def"):

        @serve.batch
        def sync(values: list[int]) -> list[int]:
            return values


@pytest.mark.usefixtures("started")
def test_a_batched_generator_streams_to_each_of_its_callers() -> None:
    @serve.deployment
    class Model:
        @serve.batch(max_batch_size=2, batch_wait_timeout_s=5)
        async def count(self, stops: list[int]) -> AsyncIterator[list[Any]]:
            for number in range(max(stops)):
                yield [number if number < stop else StopIteration for stop in stops]

        async def up(self, stop: int) -> AsyncIterator[int]:
            async for number in self.count(stop):
                yield number

    handle = serve.run(Model.bind())
    first = handle.options(stream=True).up.remote(2)
    second = handle.options(stream=True).up.remote(4)

    assert list(second) == [0, 1, 2, 3]
    assert list(first) == [0, 1]


# -- multiplexing ----------------------------------------------------------------------------------


@serve.deployment
class Many:
    def __init__(self) -> None:
        self.loaded: list[str] = []

    @serve.multiplexed(max_num_models_per_replica=2)
    async def model(self, model_id: str) -> str:
        self.loaded.append(model_id)
        return f"model {model_id}"

    async def __call__(self, request: Any = None) -> list[Any]:
        return [await self.model(serve.get_multiplexed_model_id()), len(self.loaded)]


@pytest.mark.parametrize("header", ["serve_multiplexed_model_id", "serve-multiplexed-model-id"])
def test_the_model_is_named_by_a_header_or_by_an_option_of_the_handle(started: Started, header: str) -> None:
    handle = serve.run(Many.bind())

    assert httpx.get(started.url, headers={header: "a"}).json() == ["model a", 1]
    assert httpx.get(started.url, headers={"serve_multiplexed_model_id": "a", "x_other": "1"}).json() == ["model a", 1]
    assert ask(handle.options(multiplexed_model_id="a")) == ["model a", 1]
    assert ask(handle.options(multiplexed_model_id="b")) == ["model b", 2]


@pytest.mark.usefixtures("_local")
def test_the_least_recently_used_model_is_loaded_again_when_there_is_no_room() -> None:
    handle = serve.run(Many.bind(), local=True)

    loads = [ask(handle.options(multiplexed_model_id=one))[1] for one in "abacab"]

    assert loads == [1, 2, 2, 3, 3, 4]


@pytest.mark.usefixtures("_local")
def test_the_model_id_is_not_passed_on_by_itself() -> None:
    @serve.deployment
    def which() -> str:
        return serve.get_multiplexed_model_id()

    @serve.deployment
    class Front:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        async def __call__(self) -> list[str]:
            own = serve.get_multiplexed_model_id()
            given = self.inner.options(multiplexed_model_id=own)
            return [own, await (await self.inner.remote()), await (await given.remote())]

    handle = serve.run(Front.bind(which.bind()), local=True)

    assert ask(handle.options(multiplexed_model_id="m")) == ["m", "", "m"]


# -- drawing ---------------------------------------------------------------------------------------


@serve.deployment
class Model:
    def __init__(self, weight: int = 1, other: Any = None) -> None:
        self.weight = weight

    def forward(self, value: int) -> int:
        return value * self.weight


@serve.deployment
def combine(*values: Any, **named: Any) -> Any:
    return values


def edges_of(node: Any) -> list[str]:
    lines = _dag_to_dot(node).to_string().splitlines()
    assert (lines[0], lines[1], lines[-1]) == ("digraph G {", "rankdir=LR;", "}")
    return [line.rstrip(";") for line in lines[2:-1]]


def test_a_drawing_names_nodes_by_class_method_and_number_in_order_of_the_first_visit() -> None:
    with InputNode() as given:
        one, two = Model.bind(1).forward.bind(given[0]), Model.bind(2).forward.bind(given[1])
        served = DAGDriver.bind(combine.bind(one, two, kwargs_output=given[2]))

    assert edges_of(served) == [
        "combine -> DAGDriver",
        "forward -> combine",
        "INPUT_ATTRIBUTE_NODE -> forward",
        "INPUT_NODE -> INPUT_ATTRIBUTE_NODE",
        "Model -> forward",
        "forward_1 -> combine",
        "INPUT_ATTRIBUTE_NODE_1 -> forward_1",
        "INPUT_NODE -> INPUT_ATTRIBUTE_NODE_1",
        "Model_1 -> forward_1",
        "INPUT_ATTRIBUTE_NODE_2 -> combine",
        "INPUT_NODE -> INPUT_ATTRIBUTE_NODE_2",
    ]


def test_nodes_nested_in_dicts_are_drawn_and_what_is_not_needed_is_not() -> None:
    Model.bind(9).forward.bind(1)

    assert edges_of(Model.bind(1, other={"nested": [Model.bind(2)]})) == ["Model_1 -> Model"]


def test_an_edge_used_twice_is_drawn_once_and_a_single_node_as_itself() -> None:
    with InputNode() as given:
        twice = combine.bind(given, given)

    assert edges_of(twice) == ["INPUT_NODE -> combine"]
    assert edges_of(Model.options(name="mine").bind()) == ["mine"]


def test_a_plot_without_its_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pydot", None)

    with pytest.raises(ImportError, match="pydot"):
        plot(combine.bind(1), str(tmp_path / "graph.png"))


# -- the command line ------------------------------------------------------------------------------

CALM = """
import qserve as serve

@serve.deployment
class MostBasicIngress:
    def __init__(self, name):
        self.name = name

    async def __call__(self, request):
        return f"{self.name} is {request.query_params.get('colour', 'green')}!"

molly = MostBasicIngress.bind("Molly")
"""


@pytest.mark.parametrize("target", ["package.calm.molly", "package.calm:molly"])
def test_run_takes_both_forms_of_a_target_serves_bound_arguments_and_ends_with_ctrl_c(site: Site, target: str) -> None:
    (site.folder / "package").mkdir()
    folder = site.write("package/calm.py", CALM)
    serving = site.run(target, cwd=folder)
    assert httpx.get(serving.url).text == "Molly is green!"

    serving.process.press_ctrl_c()

    assert serving.process.wait() in (0, 130)
    with pytest.raises(httpx.ConnectError):
        httpx.get(serving.url)


def test_graph_and_status_show_what_there_is(site: Site) -> None:
    folder = site.write("calm.py", CALM)
    drawn = site.qserve("graph", "calm:molly", cwd=folder)
    assert drawn.wait() == 0, drawn.output
    assert "MostBasicIngress" in drawn.stdout

    broker = site.broker()
    serving = site.run("calm:molly", "--broker", broker, cwd=folder)
    told = site.qserve("status", "--broker", broker, "--json")
    assert told.wait() == 0, told.output
    application = json.loads(told.stdout)["applications"]["default"]
    assert application["status"] == "RUNNING"
    assert application["deployments"]["MostBasicIngress"]["status"] == "HEALTHY"
    plain = site.qserve("status", "--broker", broker)
    assert plain.wait() == 0, plain.output
    assert "RUNNING" in plain.stdout and "HEALTHY" in plain.stdout
    assert serving.process.exit_code() is None


# -- newer handles ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("_local")
def test_one_await_gives_the_value_with_newer_handles() -> None:
    @serve.deployment
    class Front:
        def __init__(self, model: Any) -> None:
            self.model = model.options(use_new_handle_api=True)

        async def __call__(self, value: int) -> list[Any]:
            doubled = self.model.forward.remote(value)
            again = self.model.forward.remote(doubled)
            return [await doubled, await again]

    handle = serve.run(Front.bind(Model.bind(2)), local=True).options(use_new_handle_api=True)

    assert handle.remote(3).result(timeout_s=10) == [6, 12]


@pytest.mark.usefixtures("_local")
def test_calls_beyond_the_queue_raise_back_pressure_errors() -> None:
    gate = threading.Event()
    began = threading.Event()

    @serve.deployment(max_ongoing_requests=1, max_queued_requests=1)
    async def narrow() -> str:
        began.set()
        await asyncio.to_thread(gate.wait, 10)
        return "done"

    handle = serve.run(narrow.bind(), local=True)
    first = handle.remote()
    assert began.wait(10)
    second = handle.remote()

    with pytest.raises(BackPressureError):
        serve.get(handle.remote(), timeout=10)
    gate.set()
    assert serve.get([first, second], timeout=10) == ["done", "done"]


@pytest.mark.usefixtures("_local")
def test_generators_are_iterated_by_for_and_async_for() -> None:
    @serve.deployment
    class Source:
        def up(self, stop: int) -> Iterator[int]:
            yield from range(stop)

        async def up_async(self, stop: int) -> AsyncIterator[int]:
            for number in range(stop):
                yield number

    handle = serve.run(Source.bind(), local=True).options(stream=True)

    async def gather() -> list[int]:
        return [item async for item in handle.up.remote(3)]

    assert list(handle.up_async.remote(3)) == asyncio.run(gather()) == [0, 1, 2]
    with pytest.raises(TypeError, match=r"options\(stream=True\)"):
        serve.get(handle.options(stream=False).up.remote(3), timeout=10)
