"""What programs of Ray use beside ``serve``: ``wait``, ``cancel``, ``put``, ``execute``, and several runs at once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from rendezvous import arrive, await_arrival
from serving import ServeRun

import qserve as serve
from qserve.calls.ref import current
from qserve.dag import InputNode
from qserve.exceptions import QserveException, RequestCancelled
from qserve.local.plane import LocalPlane


@serve.deployment
class Gate:
    """Answers with its argument once a file of that name is there."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    async def __call__(self, name: str) -> str:
        await asyncio.to_thread(await_arrival, self.folder, name)
        return name


def test_wait_returns_what_has_ended_and_what_has_not(serve_run: ServeRun, tmp_path: Path) -> None:
    handle = serve_run(Gate.bind(str(tmp_path)))
    refs = [handle.remote(name) for name in ("a", "b", "c")]
    arrive(str(tmp_path), "b")

    assert serve.wait(refs, timeout=60) == ([refs[1]], [refs[0], refs[2]])
    assert serve.wait(refs, num_returns=2, timeout=0) == ([refs[1]], [refs[0], refs[2]])
    arrive(str(tmp_path), "a")
    arrive(str(tmp_path), "c")
    assert serve.wait(refs, num_returns=3, timeout=60) == (refs, [])


@pytest.mark.parametrize("number", [0, 2])
def test_wait_refuses_a_number_that_cannot_end(run_here: ServeRun, number: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_returns must be between 1 and 1"):
        serve.wait([serve.put(1)], num_returns=number)


def test_wait_refuses_what_is_no_call() -> None:
    with pytest.raises(TypeError, match="qserve.wait takes what `handle.method.remote"):
        serve.wait([1])  # type: ignore[list-item]


def test_wait_does_not_block_an_event_loop() -> None:
    async def main() -> None:
        serve.wait([serve.put(1)])

    with pytest.raises(RuntimeError, match="await asyncio.wait"):
        asyncio.run(main())


def test_cancel_ends_a_call(serve_run: ServeRun, tmp_path: Path) -> None:
    ref = serve_run(Gate.bind(str(tmp_path))).remote("never")

    serve.cancel(ref, force=True)

    with pytest.raises(RequestCancelled):
        serve.get(ref, timeout=60)


def test_cancel_refuses_what_is_no_call() -> None:
    with pytest.raises(TypeError, match="qserve.cancel takes what `handle.method.remote"):
        serve.cancel("x")  # type: ignore[arg-type]


def test_what_is_put_can_be_had_and_passed_on(run_here: ServeRun, tmp_path: Path) -> None:
    arrive(str(tmp_path), "a")
    ref = serve.put("a")

    assert serve.get(ref) == "a"
    assert serve.get(run_here(Gate.bind(str(tmp_path))).remote(ref), timeout=60) == "a"


def test_there_is_no_object_store(run_here: ServeRun) -> None:
    async def main(handle: Any) -> None:
        await handle.remote("a")._to_object_ref()

    @serve.deployment
    def echo(value: str) -> str:
        return value

    run_here(echo.bind())
    with pytest.raises(AttributeError, match="pass the response itself"):
        asyncio.run(main(serve.get_app_handle()))


def test_a_node_is_executed_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(current, "installed", None)  # other tests of this process may serve applications
    monkeypatch.setattr("qserve.api._cluster", None)

    @serve.deployment
    class Combine:
        def __init__(self) -> None:
            self.calls = 0

        def both(self, number: int, how: str) -> tuple[int, str, int]:
            self.calls += 1
            return number, how, self.calls

    with InputNode() as given:
        node = Combine.bind().both.bind(given[0], given[1])

    assert serve.get(node.execute(1, "max")) == (1, "max", 1)
    assert serve.get(node.execute(2, "min")) == (2, "min", 2)
    assert serve.is_initialized()
    serve.shutdown()
    assert serve.get(node.execute(3, "max")) == (3, "max", 1)
    serve.shutdown()
    assert not serve.is_initialized()


def test_a_node_is_not_executed_beside_applications_that_are_served(serve_run: ServeRun, tmp_path: Path) -> None:
    handle = serve_run(Gate.bind(str(tmp_path)))
    arrive(str(tmp_path), "a")
    node = Gate.bind(str(tmp_path))

    if isinstance(current.installed, LocalPlane):
        assert serve.get(node.execute("a"), timeout=60) == "a"
    else:
        with pytest.raises(QserveException, match="call the handle that serve.run"):
            node.execute("a")
    assert serve.get(handle.remote("a"), timeout=60) == "a"


def test_several_applications_are_run_one_after_the_other(run_here: ServeRun, tmp_path: Path) -> None:
    arrive(str(tmp_path), "a")
    targets = [serve.RunTarget(Gate.bind(str(tmp_path)), name=name, route_prefix=f"/{name}") for name in ("one", "two")]

    one, two = serve.run_many(targets, local=True)

    assert [serve.get(handle.remote("a"), timeout=60) for handle in (one, two)] == ["a", "a"]
