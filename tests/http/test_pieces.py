"""Bodies that are in the payload store: as files, piece by piece, and as forms."""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI, File, Form, UploadFile
from hypothesis import given, settings
from hypothesis import strategies as st
from python_multipart.exceptions import MultipartParseError
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request

from qserve.http.message import HttpMessage
from qserve.http.pieces import PIECE_BYTES, FormParser, as_file, pieces
from qserve.http.request import from_starlette, to_starlette
from qserve.web.asgi import Exchange
from qserve.web.wsgi import WsgiAdapter

BOUNDARY = b"sep"
TYPE = b"multipart/form-data; boundary=sep"
LONG = bytes(range(256)) * 4096  # four pieces


def part(head: bytes, content: bytes) -> bytes:
    return b"--sep\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + content + b"\r\n"


FORM = part(b'name="title"', b"a text") + part(b'name="file"; filename="x.bin"', LONG) + b"--sep--\r\n"


def message(body: bytes, content_type: bytes = TYPE) -> HttpMessage:
    headers = ((b"content-type", content_type), (b"content-length", b"%d" % len(body)))
    return HttpMessage("POST", "http", "/", "", b"", headers, None, None, memoryview(body))


def request(body: bytes, content_type: bytes = TYPE) -> Request:
    return to_starlette(message(body, content_type))


async def answer(app: Any, body: bytes, content_type: bytes = TYPE) -> bytes:
    response = await Exchange(app, {}).answer(request(body, content_type))
    return bytes(response.body)


def test_a_request_reads_its_body_whole_in_pieces_or_as_json() -> None:
    async def read() -> None:
        assert await request(LONG).body() == LONG
        taken = [piece async for piece in request(LONG).stream()]
        assert b"".join(taken) == LONG and [len(piece) for piece in taken] == [*[PIECE_BYTES] * 4, 0]
        assert all(isinstance(piece, bytes) for piece in taken)
        assert await request(b"[1, 2]").json() == [1, 2]
        one = request(LONG)
        assert await one.body() is await one.body()

    asyncio.run(read())


def test_a_body_that_was_streamed_cannot_be_read_again() -> None:
    async def read() -> None:
        one = request(LONG)
        assert [piece async for piece in one.stream()]
        with pytest.raises(RuntimeError, match="consumed"):
            await one.body()

    asyncio.run(read())


def test_a_request_is_sent_on_with_its_body() -> None:
    assert from_starlette(request(LONG)).body == LONG


def test_a_file_of_a_form_is_a_part_of_the_body_and_not_a_copy() -> None:
    async def read() -> None:
        body = bytearray(FORM)
        form = await to_starlette(message(body)).form()  # type: ignore[arg-type]
        file = form["file"]
        assert form["title"] == "a text" and not isinstance(file, str) and file.size == len(LONG)
        at = body.index(LONG)
        body[at : at + 4] = b"seen"
        assert await file.read(4) == b"seen"
        await form.close()
        assert file.file.closed

    asyncio.run(read())


def test_fastapi_gives_files_and_fields_of_a_stored_form() -> None:
    app = FastAPI()

    @app.post("/")
    async def post(file: UploadFile, title: str = Form()) -> dict[str, Any]:
        return {"title": title, "name": file.filename, "size": file.size, "same": await file.read() == LONG}

    assert asyncio.run(answer(app, FORM)) == b'{"title":"a text","name":"x.bin","size":1048576,"same":true}'


def test_fastapi_gives_the_bytes_of_a_stored_form() -> None:
    app = FastAPI()

    @app.post("/")
    def post(file: bytes = File()) -> bool:
        return file == LONG

    assert asyncio.run(answer(app, FORM)) == b"true"


def test_a_middleware_sees_the_pieces_and_the_file_is_still_a_part_of_the_body() -> None:
    app, seen = FastAPI(), []

    async def look(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    app.add_middleware(BaseHTTPMiddleware, dispatch=look)

    @app.post("/")
    async def post(file: UploadFile) -> bool:
        seen.append(type(file.file))
        return await file.read() == LONG

    assert asyncio.run(answer(app, FORM)) == b"true"
    assert seen == [io.BufferedReader]


def test_a_middleware_may_change_the_body() -> None:
    app = FastAPI()

    @app.post("/")
    async def post(file: UploadFile) -> int:
        return (await file.read()).count(b"\xff")

    class Changed:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def changed() -> Any:
                found = await receive()
                return {**found, "body": found["body"].replace(b"\xff", b"\xfe")} if "body" in found else found

            await self.app(scope, changed, send)

    assert asyncio.run(answer(Changed(app), FORM)) == b"0"


def test_a_wsgi_application_reads_a_stored_body_as_a_file() -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("content-length", "2")])
        file = environ["wsgi.input"]
        first, rest = file.read(3), file.read()
        assert int(environ["CONTENT_LENGTH"]) == len(LONG) and first + rest == LONG
        return [b"ok"]

    assert asyncio.run(answer(WsgiAdapter(app), LONG, b"application/octet-stream")) == b"ok"


def test_a_stored_file_can_be_searched_and_cannot_be_written_to() -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("a", "one")
    file = as_file(memoryview(archive.getvalue()))
    assert zipfile.ZipFile(file).read("a") == b"one"
    assert (file.seek(-1, io.SEEK_END), file.read(), file.read()) == (len(archive.getvalue()) - 1, b"\0", b"")
    with pytest.raises(io.UnsupportedOperation):
        file.write(b"x")


# -- as starlette's parser -------------------------------------------------------------------------

BIG = 70_000
CONTENTS = st.lists(
    st.sampled_from(
        [b"", b"x", b"-", b"--se", b"--sep", b"\r\n", b"\r\n--sep", b"\r\n--sepx", b"\r\n--sep--", b"y" * BIG]
    ),
    max_size=5,
).map(b"".join)
HEADS = st.sampled_from([b'name="f"; filename="f"', b'name="t"', b'name="g"; filename=""', b"nothing"])
BODIES = st.tuples(
    st.lists(st.tuples(HEADS, CONTENTS), max_size=4), st.sampled_from([b"--sep--\r\n", b"--sep--", b"", b"--sep"])
).map(lambda made: b"".join(part(*one) for one in made[0]) + made[1])


async def _stream(body: bytes) -> AsyncIterator[bytes]:
    for begin in range(0, len(body), 1000):
        yield body[begin : begin + 1000]


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for piece in pieces(memoryview(body)):
        yield piece


def parsed(parser: type[MultiPartParser], stream: Any) -> Any:
    async def parse() -> Any:
        one = parser(Headers({"content-type": TYPE.decode()}), stream)
        try:
            form = await one.parse()
        except MultiPartException as error:
            return error.message
        except MultipartParseError:  # starlette passes it on where its library is old; it says where in a piece it was
            return "malformed"
        found = [
            (name, value if isinstance(value, str) else (value.filename, value.size, await value.read()))
            for name, value in form.multi_items()
        ]
        for file in one._files_to_close_on_error:  # starlette leaves those of parts without an end open
            file.close()
        return found

    return asyncio.run(parse())


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(BODIES)
def test_every_form_is_read_as_starlette_reads_it(body: bytes) -> None:
    assert parsed(FormParser, _pieces(body)) == parsed(MultiPartParser, _stream(body))


def test_a_form_that_repeats_its_boundary_without_end_takes_no_memory() -> None:
    body = FORM + b"--sep" * 1_000_000
    assert parsed(FormParser, _pieces(body)) == parsed(MultiPartParser, _stream(body))


@pytest.mark.slow
def test_a_boundary_across_two_pieces_is_found() -> None:
    for shift in range(-8, 9):
        content = b"x" * (PIECE_BYTES + shift - len(part(b'name="f"; filename="f"', b"")))
        body = part(b'name="f"; filename="f"', content) + part(b'name="g"; filename="g"', LONG) + b"--sep--"
        assert parsed(FormParser, _pieces(body)) == parsed(MultiPartParser, _stream(body))
