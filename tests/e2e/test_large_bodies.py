"""Bodies and answers of HTTP that are too large for a message, through a whole installation."""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Form, UploadFile
from flask import Flask, request
from http_client import Client
from processes import Started, wait_until
from starlette.requests import Request
from starlette.responses import Response

import qserve
from qserve.calls.ref import current
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.http_adapters import json_request
from qserve.payloads.shm_folder import SHM

MIB = 1 << 20
DATA = os.urandom(3 * MIB + 7)
SUM = hashlib.sha256(DATA).hexdigest()


@qserve.deployment
class Plain:
    """Gives back what it gets, or its digest, or many bytes."""

    async def __call__(self, request: Request) -> Any:
        what = request.url.path.rpartition("/")[2]
        if what == "echo":
            return Response(await request.body(), headers={"x-of-app": "yes"}, media_type="image/png")
        if what == "make":
            return b"x" * int(request.query_params["size"])
        digest = hashlib.sha256()
        async for piece in request.stream():
            digest.update(piece)
        return digest.hexdigest()


api = FastAPI()


@qserve.deployment
@qserve.ingress(api)
class Api:
    @api.post("/upload")
    async def upload(self, file: UploadFile, title: str = Form()) -> dict[str, Any]:
        digest = hashlib.sha256(await file.read()).hexdigest()
        kind = type(file.file).__name__
        return {"title": title, "name": file.filename, "size": file.size, "digest": digest, "kind": kind}

    @api.post("/back")
    async def back(self, request: Request) -> Response:
        return Response(await request.body())


flask_app = Flask("pieces")


@flask_app.post("/digest")
def digest_of() -> str:
    return hashlib.sha256(request.get_data()).hexdigest()


@qserve.deployment
@qserve.ingress(flask_app)
class OnFlask:
    pass


@qserve.deployment
def first(request: Request) -> Request:
    return request


@qserve.deployment
class Second:
    async def __call__(self, request: Request) -> str:
        return hashlib.sha256(await request.body()).hexdigest()


@qserve.deployment
def length_of(value: Any) -> int:
    return len(value)


@pytest.fixture(scope="module")
def client(started: Started) -> Iterator[Client]:
    qserve.run(Plain.bind(), name="plain", route_prefix="/plain")
    qserve.run(Api.bind(), name="api", route_prefix="/api")
    qserve.run(OnFlask.bind(), name="flask", route_prefix="/flask")
    with InputNode() as value:
        chain = DAGDriver.bind(Second.bind().__call__.bind(first.bind(value)))
        counted = DAGDriver.bind(length_of.bind(value), http_adapter=json_request)
    qserve.run(chain, name="chain", route_prefix="/chain")
    qserve.run(counted, name="json", route_prefix="/json")
    yield Client(started.url)


def values() -> set[Path]:
    """All stored values of this installation."""
    store = current.plane().store  # type: ignore[attr-defined]
    return set((SHM / store.place.rpartition("/")[2] / "v").glob("*"))


def form(content: bytes) -> tuple[bytes, dict[str, str]]:
    part = b"--sep\r\nContent-Disposition: form-data; name="
    body = (
        part + b'"title"\r\n\r\na title\r\n' + part + b'"file"; filename="a.bin"\r\n\r\n' + content + b"\r\n--sep--\r\n"
    )
    return body, {"Content_Type": "multipart/form-data; boundary=sep"}


def test_a_large_body_is_read_in_pieces_and_sent_back_with_its_length(client: Client) -> None:
    assert client.post("/plain/digest", DATA).text == SUM
    answer = client.post("/plain/echo", DATA)
    assert answer.body == DATA
    assert answer.headers["content-length"] == str(len(DATA))
    assert (answer.headers["content-type"], answer.headers["x-of-app"]) == ("image/png", "yes")


def test_a_large_body_in_chunks_arrives_whole(client: Client) -> None:
    parts = (DATA[begin : begin + 100_000] for begin in range(0, len(DATA), 100_000))
    connection = http.client.HTTPConnection(*client.address, timeout=40)
    connection.request("POST", "/plain/digest", parts, {"Transfer-Encoding": "chunked"}, encode_chunked=True)
    assert connection.getresponse().read().decode() == SUM
    connection.close()


def test_an_uploaded_file_of_fastapi_is_a_part_of_the_body(client: Client) -> None:
    body, headers = form(DATA)
    assert client.post("/api/upload", body, **headers).json == {
        "title": "a title", "name": "a.bin", "size": len(DATA), "digest": SUM, "kind": "BufferedReader",
    }  # fmt: skip
    assert client.post("/api/back", DATA).body == DATA


def test_flask_reads_a_large_body(client: Client) -> None:
    assert client.post("/flask/digest", DATA).text == SUM


def test_a_request_with_a_large_body_passes_from_step_to_step(client: Client) -> None:
    assert client.post("/chain", DATA).json == SUM


def test_large_json_reaches_a_graph_and_is_refused_over_its_own_limit(client: Client) -> None:
    text = "x" * (2 * MIB)
    assert client.post("/json", text).json == len(text)
    refused = client.post("/json", b'"' + b"x" * (10 * MIB) + b'"')
    assert (refused.status, refused.code) == (413, "body_too_large")
    assert "QSERVE_MAX_JSON_BYTES" in refused.error["message"]


def test_a_body_over_the_limit_is_413_and_names_the_setting(client: Client) -> None:
    with socket.create_connection(client.address) as connection:
        connection.sendall(b"POST /plain HTTP/1.1\r\nHost: x\r\nContent-Length: 104857601\r\n\r\n")
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 413") and b"104857600 bytes, the limit set by QSERVE_MAX_BODY_BYTES" in answer


@pytest.mark.parametrize("headers", [{"Prefer": "respond-async"}, {"Idempotency_Key": "large"}])
def test_a_kept_large_answer_is_fetched_any_number_of_times(client: Client, headers: dict[str, str]) -> None:
    posted = client.post("/plain/echo", DATA, **headers)
    place = f"/-/requests/{posted.headers['x-qserve-request-id']}"
    wait_until(lambda: client.get(place).status == 200, description="its result is there")
    for _ in range(3):
        assert client.get(place).body == DATA
    head = client.send("HEAD", place)
    assert (head.body, head.headers["content-length"]) == (b"", str(len(DATA)))
    again = client.post("/plain/echo", DATA, **headers)
    assert again.status == (202 if "Prefer" in headers else 200)


def test_a_kept_large_answer_is_read_from_python(client: Client) -> None:
    posted = client.post("/plain/echo", DATA, Prefer="respond-async")
    ref: Any = qserve.get_ref(posted.headers["x-qserve-request-id"])
    assert ref.result(timeout_s=30).body == DATA


def test_head_of_a_large_answer_has_its_length_and_no_body(client: Client) -> None:
    head = client.send("HEAD", "/plain/make?size=1000000")
    assert (head.headers["content-length"], head.body) == ("1000000", b"")


def test_a_connection_is_used_again_after_large_bodies_and_answers(client: Client) -> None:
    connection = http.client.HTTPConnection(*client.address, timeout=40)
    for size in (10, 5 * MIB, 70_000, 10, 3 * MIB):
        connection.request("POST", "/plain/echo", DATA[:1] * size)
        assert len(connection.getresponse().read()) == size
    connection.close()


@pytest.mark.row("F71")
def test_clients_that_leave_in_the_middle_leave_nothing_behind(client: Client) -> None:
    before = values()
    head = b"POST /plain/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\n"
    uploads = [socket.create_connection(client.address) for _ in range(5)]
    for upload in uploads:
        upload.sendall(head + b"x" * MIB)
    downloads = [socket.create_connection(client.address) for _ in range(5)]
    for download in downloads:
        download.sendall(b"GET /plain/make?size=50000000 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert download.recv(1000)
    for connection in (*uploads, *downloads):
        connection.close()
    wait_until(lambda: values() <= before, description="what they sent and did not receive is gone", timeout_s=25)
    assert client.post("/plain/digest", DATA).text == SUM
