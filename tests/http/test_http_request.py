"""HTTP requests as data, as starlette requests, and on their way between replicas."""

from __future__ import annotations

import asyncio
import weakref
from typing import Any

import pytest
from starlette.requests import Request

from qserve.exceptions import PayloadError
from qserve.http.message import HttpMessage
from qserve.http.request import InvalidJSON, from_starlette
from qserve.wire.codec import Codec

CODEC = Codec()


def a_message(**changes: Any) -> HttpMessage:
    fields: dict[str, Any] = {
        "method": "POST",
        "scheme": "http",
        "path": "/app/items",
        "root_path": "/app",
        "query_string": b"k=v&k2=v%20w",
        "headers": ((b"host", b"example.org"), (b"content-type", b"application/json")),
        "client": ("10.0.0.1", 4321),
        "server": ("127.0.0.1", 8000),
        "body": b'{"a": 1}',
        "path_params": {"rest": "a/b.txt"},
    }
    return HttpMessage(**{**fields, **changes})


def arrived(message: Any) -> Any:
    return CODEC.decode(CODEC.encode(message))


def test_what_the_gateway_sends_arrives_as_a_starlette_request() -> None:
    request = arrived(a_message())

    assert type(request) is Request
    assert request.method == "POST"
    assert request.headers["content-type"] == "application/json"
    assert dict(request.query_params) == {"k": "v", "k2": "v w"}
    assert request.client is not None
    assert (request.client.host, request.client.port) == ("10.0.0.1", 4321)
    assert str(request.url) == "http://example.org/app/items?k=v&k2=v%20w"
    assert request.scope["root_path"] == "/app"


def test_the_body_can_be_read_as_bytes_and_as_json_again_and_again() -> None:
    async def read(request: Request) -> list[Any]:
        return [await request.json(), await request.body(), await request.json()]

    assert asyncio.run(read(arrived(a_message()))) == [{"a": 1}, b'{"a": 1}', {"a": 1}]


def test_a_form_can_be_read() -> None:
    headers = ((b"content-type", b"application/x-www-form-urlencoded"),)
    request = arrived(a_message(headers=headers, body=b"name=Ada&age=36"))

    async def read() -> dict[str, Any]:
        return dict(await request.form())

    assert asyncio.run(read()) == {"name": "Ada", "age": "36"}


def test_a_request_whose_body_was_read_is_not_taken_for_disconnected() -> None:
    request = arrived(a_message(body=b"x"))

    async def read() -> tuple[bytes, bool]:
        return await request.body(), await request.is_disconnected()

    assert asyncio.run(read()) == (b"x", False)


@pytest.mark.parametrize("read_first", [False, True])
def test_a_request_travels_on_any_number_of_times(read_first: bool) -> None:
    request = arrived(a_message())
    for _ in range(3):
        if read_first:
            asyncio.run(request.body())
        request = arrived(request)

    assert asyncio.run(request.body()) == b'{"a": 1}'
    assert request.path_params == {"rest": "a/b.txt"}
    assert from_starlette(request) == a_message()


def test_changes_of_the_scope_travel_with_the_request() -> None:
    request = arrived(a_message())
    mounted = Request({**request.scope, "root_path": "/app/items"}, request.receive)

    assert arrived(mounted).scope["root_path"] == "/app/items"


def test_a_request_without_addresses_travels() -> None:
    request = arrived(a_message(client=None, server=None))
    assert request.client is None
    assert arrived(request).client is None


def foreign_request(receive: Any) -> Request:
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    return Request(scope, receive)


def test_a_request_from_elsewhere_travels_when_its_body_is_there() -> None:
    async def receive() -> Any:
        return {"type": "http.request", "body": b"here", "more_body": False}

    assert asyncio.run(arrived(foreign_request(receive)).body()) == b"here"


def test_a_request_whose_body_is_still_on_its_way_is_refused_with_a_hint() -> None:
    async def receive() -> Any:
        await asyncio.sleep(3600)

    async def send_on() -> None:
        CODEC.encode(foreign_request(receive))

    with pytest.raises(PayloadError, match=r"await request\.body\(\)"):
        asyncio.run(send_on())


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    ("body", "said"), [(b" \n", "it is empty"), (b"\xff\xfe", "Expecting"), (b"\xc2\xa0", "Expecting")]
)
def test_a_body_is_called_empty_only_if_it_is(body: bytes, said: str) -> None:
    with pytest.raises(InvalidJSON, match=said):
        asyncio.run(arrived(a_message(body=body)).json())


@pytest.mark.parametrize("body", [b"[1]", b"[1", b"\xff"])
def test_a_request_is_freed_with_its_last_reference_whatever_was_read_of_it(body: bytes) -> None:
    async def read() -> weakref.ref[Request]:
        request = arrived(a_message(body=body))
        try:
            await request.json()
        except InvalidJSON:
            assert body != b"[1]"
        await request.form()
        await request.body()
        return weakref.ref(request)

    assert asyncio.run(read())() is None


def test_the_json_of_a_request_that_nobody_else_refers_to_can_be_read() -> None:
    async def read() -> Any:
        return await arrived(a_message()).json()

    assert asyncio.run(read()) == {"a": 1}
