"""Replicas and their settings, batching, multiplexing and the command line."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from processes import Site, Started, wait_until

import qserve as serve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.exceptions import AppNotFound, QserveException
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
