"""Results that come as items, by handle and over HTTP, through real processes."""

from __future__ import annotations

import asyncio
import http.client
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from http_client import Client
from processes import wait_until
from starlette.requests import Request
from starlette.responses import StreamingResponse

import qserve

pytestmark = pytest.mark.usefixtures("started")


@qserve.deployment
class Source:
    def __init__(self) -> None:
        self.closed = False

    def count(self, stop: int) -> Iterator[int]:
        yield from range(stop)

    async def count_async(self, stop: int) -> AsyncIterator[dict[str, int]]:
        for number in range(stop):
            yield {"n": number}

    async def __call__(self, request: Any) -> StreamingResponse:
        async def body() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"x" * 1000
                    await asyncio.sleep(0)
            finally:
                self.closed = True

        return StreamingResponse(body(), status_code=418, headers={"x-kind": "tea"})

    def is_closed(self) -> bool:
        return self.closed


@pytest.fixture
def source() -> Any:
    qserve.run(Source.bind())
    return qserve.get_app_handle()


def test_items_of_an_async_generator_can_be_awaited(source: Any) -> None:
    async def gather() -> list[Any]:
        return [item["n"] async for item in source.options(stream=True).count_async.remote(50)]

    assert asyncio.run(gather()) == list(range(50))


def test_a_stream_can_be_neither_awaited_nor_passed_on(source: Any) -> None:
    stream = source.options(stream=True).count.remote(3)

    async def wait() -> None:
        await stream

    with pytest.raises(TypeError, match="cannot be awaited"):
        asyncio.run(wait())
    with pytest.raises(Exception, match="cannot be passed to downstream"):
        source.count.remote(stream)


def test_a_streaming_response_keeps_status_and_headers_and_stops_when_the_client_leaves(
    source: Any, client: Client
) -> None:
    connection = http.client.HTTPConnection(*client.address, timeout=10)
    connection.request("GET", "/")
    response = connection.getresponse()
    assert (response.status, response.headers["x-kind"]) == (418, "tea")
    assert response.read(2000) == b"x" * 2000

    assert connection.sock is not None
    connection.sock.shutdown(socket.SHUT_RDWR)
    response.close()
    connection.close()

    wait_until(lambda: source.is_closed.remote().result(timeout_s=60), description="the body's generator is closed")


def test_a_stream_of_which_only_the_head_is_wanted_is_stopped(source: Any, client: Client) -> None:
    answer = client.send("HEAD")
    assert (answer.status, answer.headers["x-kind"], answer.body) == (418, "tea", b"")

    wait_until(lambda: source.is_closed.remote().result(timeout_s=60), description="the body's generator is closed")


def test_a_streaming_response_arrives_piece_by_piece_before_it_has_ended(client: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    @qserve.deployment
    class Stream:
        async def words(self) -> AsyncIterator[str]:
            yield "first "
            while not gate.exists():
                await asyncio.sleep(0.005)
            yield "second"

        def __call__(self, request: Request) -> StreamingResponse:
            return StreamingResponse(self.words(), media_type="text/plain", status_code=202)

    qserve.run(Stream.bind())

    with httpx.stream("GET", client.url, timeout=20) as answer:
        pieces = answer.iter_text()
        assert (answer.status_code, next(pieces)) == (202, "first ")
        gate.touch()
        assert "".join(pieces) == "second"


def test_a_generator_answers_http_as_text(client: Client) -> None:
    @qserve.deployment
    def lines() -> Iterator[str]:
        yield "one\n"
        yield "two\n"

    qserve.run(lines.bind())

    answer = client.get()

    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.body == b"one\ntwo\n"


def test_a_batched_generator_streams_to_each_of_its_callers() -> None:
    @qserve.deployment
    class Model:
        @qserve.batch(max_batch_size=2, batch_wait_timeout_s=5)
        async def count(self, stops: list[int]) -> AsyncIterator[list[Any]]:
            for number in range(max(stops)):
                yield [number if number < stop else StopIteration for stop in stops]

        async def up(self, stop: int) -> AsyncIterator[int]:
            async for number in self.count(stop):
                yield number

    handle = qserve.run(Model.bind())
    first = handle.options(stream=True).up.remote(2)
    second = handle.options(stream=True).up.remote(4)

    assert list(second) == [0, 1, 2, 3]
    assert list(first) == [0, 1]
