"""``serve.run``, its life cycle, and handles, as programs for Ray Serve use them."""

from __future__ import annotations

import asyncio
import inspect
import json
import pickle
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest
from processes import Site, Started, free_port, is_open

import qserve as serve
from qserve import api
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.handle import (
    DeploymentHandle,
    RayServeDAGHandle,
    RayServeDeploymentHandle,
    RayServeHandle,
    RayServeSyncHandle,
)
from qserve.http_adapters import json_request
from qserve.local.run import shutdown_local
from qserve.machine.local_cluster import LocalCluster

if TYPE_CHECKING:  # by now the name may mean another folder's conftest
    from conftest import Started


@pytest.fixture(autouse=True)
def end_what_ran() -> Iterator[None]:
    """All that a test serves in this process ends with it."""
    yield
    shutdown_local()


def served(node: Any, **options: Any) -> RayServeSyncHandle:
    return serve.run(node, local=True, **options)


def ask(call: Any, *args: Any, **kwargs: Any) -> Any:
    return serve.get(call.remote(*args, **kwargs), timeout=10)


def fetch(url: str, body: Any = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(url, data=data, timeout=10) as response:
        return response.read().decode()


@serve.deployment
class Model:
    def __init__(self, weight: int = 1) -> None:
        self.weight = weight

    def compute(self, value: Any = 1) -> Any:
        return value * self.weight

    async def compute_async(self, value: Any = 1) -> Any:
        return value * self.weight


@serve.deployment
class Echo:
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return [list(args), kwargs]

    def method_a(self) -> str:
        return "a"


@serve.deployment
def hello(inp: str = "nobody") -> str:
    return f"hello {inp}"


# -- run -------------------------------------------------------------------------------------------


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
    handle = served(hello.bind(), **options)

    assert isinstance(handle, RayServeSyncHandle)
    assert ask(handle, "you") == "hello you"


@pytest.mark.parametrize("prefix", ["hello", "/hello/", "/{hello}"])
def test_a_route_prefix_of_run_is_checked_like_an_option(prefix: str) -> None:
    with pytest.raises(ValueError, match="route_prefix"):
        served(hello.bind(), route_prefix=prefix)


def test_a_function_may_be_bound_to_arguments_and_to_the_input(started: Started) -> None:
    for node, answer in ((hello.bind("bound"), "hello bound"), (hello.bind(_whole()), "hello given")):
        assert ask(served(node), "given") == answer
        assert ask(serve.run(node), "given") == answer
    serve.run(hello.bind(inp="over HTTP"))

    assert fetch(started.url) == "hello over HTTP"


def test_http_is_on_port_8000_of_this_machine_unless_said_otherwise() -> None:
    address = inspect.signature(LocalCluster).parameters

    assert (address["host"].default, address["port"].default) == ("127.0.0.1", 8000)


@pytest.mark.parametrize(
    ("args", "options", "address"),
    [
        ((), {}, (None, None)),
        ((), {"detached": True}, (None, None)),
        ((), {"detached": True, "http_options": {"host": "0.0.0.0", "port": 8001}}, ("0.0.0.0", 8001)),
        ((True, {"port": 8001, "location": "HeadOnly"}), {}, (None, 8001)),
        ((), {"http_options": SimpleNamespace(host="0.0.0.0", port=8001), "proxy_location": None}, ("0.0.0.0", 8001)),
        ((), {"http_options": {"port": 8001}, "port": 8002, "dedicated_cpu": False}, (None, 8002)),
    ],
)
def test_start_takes_the_options_of_ray_serve(
    monkeypatch: pytest.MonkeyPatch, args: tuple[Any, ...], options: dict[str, Any], address: tuple[Any, Any]
) -> None:
    asked: list[tuple[Any, Any]] = []
    monkeypatch.setattr(api, "_cluster", None)

    def ensure_cluster(host: Any, port: Any) -> SimpleNamespace:
        asked.append((host, port))
        return SimpleNamespace()

    monkeypatch.setattr(api, "_ensure_cluster", ensure_cluster)
    monkeypatch.setattr(api, "_wait_for_gateways", lambda cluster, change: None)

    serve.start(*args, **options)

    assert asked == [address]


def test_a_later_start_keeps_what_runs_where_it_runs(started: Started) -> None:
    serve.run(hello.bind("again"))

    serve.start()
    serve.start(detached=True)
    serve.start(detached=True, http_options={"host": "127.0.0.1", "port": 1})

    assert fetch(started.url) == "hello again"


def test_a_route_prefix_of_run_wins_over_the_deployments(started: Started) -> None:
    app = DAGDriver.options(route_prefix="/first").bind(Model.bind(3).compute.bind(_whole()), http_adapter=json_request)
    serve.run(app)
    assert fetch(f"{started.url}/first", 2) == "6"

    handle = serve.run(app, route_prefix="/second", _blocking=True)

    assert fetch(f"{started.url}/second", 2) == "6"
    assert json.loads(fetch(f"{started.url}/-/routes")) == {"/second": "DAGDriver"}
    assert ask(handle.predict, 2) == 6


def _whole() -> InputNode:
    with InputNode() as inp:
        return inp


SCRIPT = """
import sys
import urllib.request

import qserve as serve
from qserve.handle import RayServeHandle, RayServeSyncHandle

port = int(sys.argv[1])
serve.start(detached=True, http_options={"host": "127.0.0.1", "port": port})
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

print(serve.get(serve.run(Child.bind(), port=port).remote(), timeout=10))
"""


def test_a_script_may_start_run_shut_down_and_run_again(site: Site) -> None:
    port = free_port()
    (site.folder / "script.py").write_text(SCRIPT)

    process = site.start([sys.executable, "script.py", str(port)], cwd=site.folder)

    assert process.wait() == 0, process.output
    assert process.stdout == "hello you\nrefused\nanother child\n"
    assert process.stderr == ""
    site.wait_empty()
    assert not is_open(port)


# -- handles ---------------------------------------------------------------------------------------


def test_options_of_a_handle_leave_it_as_it_was() -> None:
    handle = served(Echo.bind())

    other = handle.options(method_name="method_a")

    assert (other == handle, other == handle.method_a) == (False, True)
    assert [ask(other), ask(handle)] == ["a", [[], {}]]


def test_refs_are_awaited_in_a_program_of_its_own_loop() -> None:
    handle = served(hello.bind())

    async def main() -> list[str]:
        first = handle.remote("a")
        both = await asyncio.gather(handle.remote("b"), handle.remote(first))
        return [await first, await asyncio.wait_for(handle.remote("c"), 10), *both]

    assert asyncio.run(main()) == ["hello a", "hello c", "hello b", "hello hello a"]


@serve.deployment
class Driver:
    def __init__(self, m1: RayServeHandle, m2: RayServeHandle) -> None:
        self.m1, self.m2 = m1, m2

    async def in_one_expression(self) -> int:
        return await (await self.m1.compute.remote(2))

    async def gathered_calls(self) -> list[int]:
        refs = await asyncio.gather(*[self.m1.compute.remote(n) for n in range(3)])
        return await asyncio.gather(*refs)

    async def gathered_refs(self) -> list[int]:
        return await asyncio.gather(await self.m1.compute.remote(1), await self.m2.compute.remote(1))

    async def chained(self) -> int:
        return await (await self.m2.compute.remote(self.m1.compute.remote(5)))

    async def chained_by_ref(self) -> int:
        ref = await self.m1.compute_async.remote(5)
        return await (await self.m2.compute.remote(value=ref))

    async def awaited_twice_and_never(self) -> list[int]:
        self.m1.compute.remote(0)
        call = self.m1.compute.remote(3)
        first, second = await call, await call
        return [await first, await first, await second]

    def got_in_sync(self) -> int:
        return sum(serve.get([self.m1.compute.remote(1), self.m2.compute.remote(1)]))

    async def got_in_async(self) -> int:
        return serve.get(await self.m1.compute.remote(4)) + sum(serve.get([self.m2.compute.remote(1)]))

    async def as_a_task(self) -> int:
        task = asyncio.create_task(self.in_one_expression())
        return await asyncio.wait_for(task, 10) + await asyncio.wait_for(await self.m1.compute.remote(1), 10)


def test_the_awaits_that_programs_write_inside_a_deployment() -> None:
    handle = served(Driver.bind(Model.bind(2), Model.bind(3)))
    expected = {
        "in_one_expression": 4,
        "gathered_calls": [0, 2, 4],
        "gathered_refs": [2, 3],
        "chained": 30,
        "chained_by_ref": 30,
        "awaited_twice_and_never": [6, 6, 6],
        "got_in_sync": 5,
        "got_in_async": 11,
        "as_a_task": 6,
    }

    assert {name: ask(getattr(handle, name)) for name in expected} == expected


def test_constructors_may_call_the_handles_that_they_get() -> None:
    @serve.deployment
    class InSync:
        def __init__(self, model: RayServeHandle) -> None:
            self.value = serve.get(model.compute.remote(5))

        def __call__(self) -> int:
            return self.value

    @serve.deployment
    class InAsync:
        async def __init__(self, first: RayServeHandle, model: RayServeHandle) -> None:
            self.value = await (await model.compute.remote(await (await first.remote())))

        def __call__(self) -> int:
            return self.value

    assert ask(served(InAsync.bind(InSync.bind(Model.bind(2)), Model.bind(3)))) == 30


def test_a_handle_is_pickled_with_its_options_and_by_cloudpickle() -> None:
    handle = served(Echo.bind()).options(method_name="method_a")

    for copy in (pickle.loads(pickle.dumps(handle)), cloudpickle.loads(cloudpickle.dumps([handle]))[0]):
        assert (copy, hash(copy), ask(copy)) == (handle, hash(handle), "a")


def test_a_handle_is_kept_in_a_file_and_used_by_another_process(site: Site, started: Started) -> None:
    handle = serve.run(Model.bind(7), name="kept", route_prefix=None)
    kept = site.folder / "handle"
    kept.write_bytes(pickle.dumps(handle.compute))
    source = "import pickle, qserve, sys; print(qserve.get(pickle.load(open(sys.argv[1], 'rb')).remote(6), timeout=10))"
    settings = api._client().settings.to_env()

    process = site.start([sys.executable, "-c", source, str(kept)], cwd=Path(kept).parent, env=settings)

    assert process.wait() == 0, process.output
    assert process.stdout == "42\n"
    serve.delete("kept")


def test_asking_for_a_handle_a_hundred_times_gives_one() -> None:
    served(Echo.bind())

    assert len({serve.get_app_handle("default") for _ in range(100)}) == 1
    assert len({serve.get_deployment_handle("Echo") for _ in range(100)}) == 1
    assert serve.get_app_handle("default") == serve.get_deployment_handle("Echo")


def test_the_names_of_handles_in_annotations_are_only_names() -> None:
    @serve.deployment
    class Annotated:
        def __init__(
            self,
            one: RayServeHandle,
            two: RayServeSyncHandle,
            three: RayServeDeploymentHandle,
            four: RayServeDAGHandle,
            five: Any,
        ) -> None:
            self.all = [one, two, three, four, five]

        async def __call__(self) -> list[int]:
            return [await (await handle.compute.remote(1)) for handle in self.all]

    assert ask(served(Annotated.bind(*[Model.bind(n) for n in range(5)]))) == [0, 1, 2, 3, 4]


def test_a_handle_shows_its_target() -> None:
    handle = served(Model.bind())

    assert repr(RayServeDeploymentHandle("Model")) == "RayServeDeploymentHandle(deployment='Model')"
    assert repr(handle) == "RayServeSyncHandle(deployment='Model')"
    assert "deployment='Model'" in repr(handle.compute)
    assert repr(DeploymentHandle("Model")) == "DeploymentHandle(deployment='Model')"
