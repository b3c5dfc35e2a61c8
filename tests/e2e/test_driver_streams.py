"""Graphs whose last step is a generator: over HTTP their items are sent as they come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from http_client import Client
from processes import wait_until
from pydantic import BaseModel

import qserve as serve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.http_adapters import json_request

pytestmark = pytest.mark.usefixtures("started")


class Row(BaseModel):
    n: int


@serve.deployment
def double(value: int) -> int:
    return 2 * value


@serve.deployment
class Lines:
    def texts(self, end: int) -> Iterator[str]:
        for number in range(end):
            yield f"{number},"

    async def rows(self, end: int) -> AsyncIterator[Row]:
        for number in range(end):
            yield Row(n=number)

    def breaks(self, after: int) -> Iterator[str]:
        for number in range(after):
            yield f"{number},"
        raise ValueError("broken")

    def returns(self, end: int) -> Any:
        return self.texts(end)

    def __call__(self, end: int) -> Iterator[str]:
        yield from self.texts(end)


async def number_of(value: int) -> int:
    """An adapter of one's own: the input is in the query."""
    return value


@pytest.fixture(scope="module")
def url(started: Any) -> Iterator[str]:
    lines = Lines.bind()
    with InputNode() as inp:
        number = double.bind(inp)
        graphs = {
            "/texts": lines.texts.bind(number),
            "/rows": lines.rows.bind(number),
            "/breaks": lines.breaks.bind(number),
            "/returns": lines.returns.bind(number),
            "/middle": double.bind(lines.texts.bind(inp)),
        }
        serve.run(DAGDriver.bind(graphs, http_adapter=json_request), name="graphs", route_prefix="/graphs")
        serve.run(
            DAGDriver.bind({"/rows": lines.rows.bind(number), "/texts": lines.texts.bind(number)}, number_of),
            name="adapted",
            route_prefix="/adapted",
        )
    yield f"{started.url}/graphs"
    serve.delete("graphs")
    serve.delete("adapted")


@pytest.fixture
def client(url: str) -> Client:
    return Client(url.removesuffix("/graphs"))


TEXT = "".join(f"{n}," for n in range(6)).encode()
LINES = b"".join(b'{"n":%d}\n' % n for n in range(6))


def test_texts_are_sent_as_text_and_other_items_as_lines_of_json(client: Client) -> None:
    texts, rows = (client.send("POST", f"/graphs/{name}", 3) for name in ("texts", "rows"))
    assert (texts.status, texts.body, texts.headers["content-type"]) == (200, TEXT, "text/plain; charset=utf-8")
    assert (rows.status, rows.body, rows.headers["content-type"]) == (200, LINES, "application/x-ndjson")
    assert "transfer-encoding" in rows.headers
    assert client.send("POST", "/graphs/texts", 0).body == b""


def test_an_adapter_of_ones_own_leads_to_the_same(client: Client) -> None:
    texts, rows = (client.send("POST", f"/adapted/{name}?value=3") for name in ("texts", "rows"))
    assert (texts.status, texts.body) == (200, TEXT)
    assert (rows.status, rows.body, rows.headers["content-type"]) == (200, LINES, "application/x-ndjson")
    assert client.send("POST", "/adapted/rows?value=x").status == 422


def test_a_generator_that_a_step_returns_or_a_job_has_comes_whole(client: Client) -> None:
    returned = client.send("POST", "/graphs/returns", 3)
    assert (returned.status, returned.body, returned.headers["content-length"]) == (200, TEXT, str(len(TEXT)))

    place = client.send("POST", "/graphs/rows", 3, Prefer="respond-async").headers["location"]
    later = client.send("GET", place, Prefer="wait=20")
    assert (later.status, later.body, later.headers["content-type"]) == (200, LINES, "application/x-ndjson")


def test_what_fails_before_the_first_item_is_an_error_and_later_the_response_is_cut_off(client: Client) -> None:
    answer = client.send("POST", "/graphs/breaks", 0)
    assert (answer.status, answer.error["message"]) == (500, "ValueError: broken")
    with pytest.raises(Exception, match="(?i)incomplete|closed|chunk"):
        client.send("POST", "/graphs/breaks", 1)


def test_a_generator_in_the_middle_of_a_graph_is_refused_with_what_to_do(client: Client) -> None:
    answer = client.send("POST", "/graphs/middle", 3)
    assert answer.status == 500
    assert "returned a generator" in answer.error["message"]


def test_items_arrive_before_the_last_one_is_made(client: Client, started: Any, tmp_path: Path) -> None:
    gate, closed = str(tmp_path / "gate"), str(tmp_path / "closed")

    @serve.deployment
    class Slow:
        async def __call__(self, value: int) -> AsyncIterator[dict[str, int]]:
            try:
                yield {"n": value}
                while not Path(gate).exists():
                    await asyncio.sleep(0.005)
                yield {"n": value + 1}
            finally:
                Path(closed).touch()

    with InputNode() as inp:
        graph = DAGDriver.bind(Slow.bind().__call__.bind(inp), http_adapter=json_request)
        serve.run(graph, name="slow", route_prefix="/slow")
    with httpx.stream("POST", f"{started.url}/slow", json=1, timeout=30) as response:
        assert json.loads(next(response.iter_lines())) == {"n": 1}
    wait_until(Path(closed).exists, description="its generator is closed when the client has left")

    with httpx.stream("POST", f"{started.url}/slow", json=1, timeout=30) as response:
        lines = response.iter_lines()
        assert json.loads(next(lines)) == {"n": 1}
        Path(gate).touch()
        assert json.loads(next(lines)) == {"n": 2}
    serve.delete("slow")


def test_a_client_that_leaves_stops_the_last_step_behind_an_adapter_as_well(started: Any, tmp_path: Path) -> None:
    closed = str(tmp_path / "closed")

    @serve.deployment
    class Endless:
        async def items(self, value: int) -> AsyncIterator[str]:
            try:
                while True:
                    yield "x"
                    await asyncio.sleep(0.01)
            finally:
                Path(closed).touch()

    with InputNode() as inp:
        serve.run(DAGDriver.bind(Endless.bind().items.bind(inp), number_of), name="endless", route_prefix="/endless")
    with httpx.stream("POST", f"{started.url}/endless?value=1", timeout=30) as response:
        assert next(response.iter_text()).startswith("x")
    wait_until(Path(closed).exists, description="its generator is closed")
    serve.delete("endless")


def test_the_page_of_the_api_says_what_the_items_are(client: Client) -> None:
    paths = client.get("/-/openapi.json").json["paths"]
    content = {
        path.rpartition("/")[2]: operations["post"]["responses"]["200"]["content"]
        for path, operations in paths.items()
        if path.startswith("/graphs")
    }
    assert content["texts"] == {"text/plain": {"schema": {"type": "string"}}}
    (lines,) = content["rows"]
    assert (lines, content["returns"]) == ("application/x-ndjson", {"application/json": {}})


def test_by_handle_the_items_of_a_graph_of_several_steps_are_iterated(url: str) -> None:
    handle = serve.get_app_handle("graphs").options(stream=True)
    assert "".join(handle.predict_with_route.remote("/texts", 3)).encode() == TEXT
