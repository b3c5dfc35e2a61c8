"""Results that come as items, by handle and over HTTP, through real processes."""

from __future__ import annotations

import asyncio
import http.client
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from processes import Started, wait_until
from starlette.responses import StreamingResponse

import qserve
from qserve.exceptions import TaskError


@pytest.fixture(autouse=True)
def url(started: Started) -> str:
    """Where the gateway answers, which runs for all tests here."""
    return started.url


@qserve.deployment
class Source:
    def __init__(self) -> None:
        self.made = 0
        self.closed = False

    def count(self, stop: int) -> Iterator[int]:
        yield from range(stop)

    async def count_async(self, stop: int) -> AsyncIterator[dict[str, int]]:
        for number in range(stop):
            yield {"n": number}

    async def endless(self) -> AsyncIterator[int]:
        try:
            while True:
                self.made += 1
                yield self.made
        finally:
            self.closed = True

    def broken(self) -> Iterator[int]:
        yield 1
        raise KeyError("no more")

    def plain(self) -> int:
        return 1

    async def __call__(self, request: Any) -> StreamingResponse:
        async def body() -> AsyncIterator[bytes]:
            try:
                while True:
                    self.made += 1
                    yield b"x" * 1000
                    await asyncio.sleep(0)
            finally:
                self.closed = True

        return StreamingResponse(body(), status_code=418, headers={"x-kind": "tea"})

    def state(self) -> tuple[int, bool]:
        return self.made, self.closed


@pytest.fixture
def source() -> Any:
    qserve.run(Source.bind())
    return qserve.get_app_handle()


@pytest.mark.parametrize("count", [0, 1, 100])
def test_items_of_a_generator_arrive_in_order(source: Any, count: int) -> None:
    assert list(source.options(stream=True).count.remote(count)) == list(range(count))


def test_items_of_an_async_generator_can_be_awaited(source: Any) -> None:
    async def gather() -> list[Any]:
        return [item["n"] async for item in source.options(stream=True).count_async.remote(50)]

    assert asyncio.run(gather()) == list(range(50))


def test_one_deployment_reads_the_stream_of_another() -> None:
    @qserve.deployment
    class Reader:
        def __init__(self, source: Any) -> None:
            self.source = source

        async def __call__(self, stop: int) -> int:
            return sum([item async for item in self.source.options(stream=True).count.remote(stop)])

    handle = qserve.run(Reader.bind(Source.bind()))

    assert qserve.get(handle.remote(100), timeout=10) == 4950


def test_an_error_after_some_items_reaches_the_reader_after_them(source: Any) -> None:
    stream = source.options(stream=True).broken.remote()

    assert next(stream) == 1
    with pytest.raises(KeyError, match="no more"):
        next(stream)


def test_a_generator_called_without_stream_names_the_fix(source: Any) -> None:
    with pytest.raises(TypeError, match=r"You must use `handle.options\(stream=True\)`"):
        source.count.remote(3).result(timeout_s=10)


def test_a_plain_method_called_with_stream_is_refused(source: Any) -> None:
    with pytest.raises(TaskError, match="did not return a generator"):
        list(source.options(stream=True).plain.remote())


def test_a_stream_can_be_neither_awaited_nor_passed_on(source: Any) -> None:
    stream = source.options(stream=True).count.remote(3)

    async def wait() -> None:
        await stream

    with pytest.raises(TypeError, match="cannot be awaited"):
        asyncio.run(wait())
    with pytest.raises(Exception, match="cannot be passed to downstream"):
        source.count.remote(stream)


def test_a_producer_waits_for_a_reader_that_takes_nothing(source: Any) -> None:
    stream = source.options(stream=True).endless.remote()
    assert next(stream) == 1

    made = wait_until(
        lambda: (made := source.state.remote().result(timeout_s=10)[0]) >= 16 and made,
        description="the window is full",
    )

    assert made <= 20
    assert [next(stream) for _ in range(40)] == list(range(2, 42))


def test_dropping_a_stream_stops_its_producer(source: Any) -> None:
    stream = source.options(stream=True).endless.remote()
    next(stream)

    del stream

    wait_until(lambda: source.state.remote().result(timeout_s=10)[1], description="the generator is closed")


def test_a_streaming_response_keeps_status_and_headers_and_stops_when_the_client_leaves(source: Any, url: str) -> None:
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=10)
    connection.request("GET", "/")
    response = connection.getresponse()
    assert (response.status, response.headers["x-kind"]) == (418, "tea")
    assert response.read(2000) == b"x" * 2000

    assert connection.sock is not None
    connection.sock.shutdown(socket.SHUT_RDWR)
    response.close()
    connection.close()

    wait_until(lambda: source.state.remote().result(timeout_s=10)[1], description="the body's generator is closed")


def test_a_stream_of_which_only_the_head_is_wanted_is_stopped(source: Any, url: str) -> None:
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=10)
    connection.request("HEAD", "/")
    response = connection.getresponse()
    assert (response.status, response.headers["x-kind"], response.read()) == (418, "tea", b"")
    connection.close()

    wait_until(lambda: source.state.remote().result(timeout_s=10)[1], description="the body's generator is closed")


def test_a_generator_answers_http_as_text(url: str) -> None:
    @qserve.deployment
    def lines() -> Iterator[str]:
        yield "one\n"
        yield "two\n"

    qserve.run(lines.bind())
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=10)
    connection.request("GET", "/")

    response = connection.getresponse()

    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.read() == b"one\ntwo\n"
    connection.close()
