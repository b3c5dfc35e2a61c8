"""What running code learns when its HTTP client leaves, its deadline passes or its job is deleted; and what goes on."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from http.client import IncompleteRead
from pathlib import Path
from typing import Any

import flask
import pytest
from fastapi import FastAPI
from http_client import Client
from processes import wait_until
from rendezvous import arrive, await_arrival, has_arrived
from starlette.requests import Request
from starlette.responses import StreamingResponse

import qserve

pytestmark = pytest.mark.usefixtures("started")
FOR_EVER_S = 3600.0


async def work(folder: str) -> None:
    """Run until somebody says that it may end, or is not interested any more."""
    arrive(folder, "began")
    try:
        while not has_arrived(folder, "may end"):
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        arrive(folder, "told")
        raise
    arrive(folder, "ended")


def poll(folder: str) -> None:
    """The same in a thread."""
    arrive(folder, "began")
    request = qserve.get_request_context()
    while not request.cancelled:
        time.sleep(0.01)
    arrive(folder, "told")


async def parts(folder: str) -> AsyncIterator[str]:
    yield "one"
    await work(folder)
    yield "two"


def many(folder: str) -> Iterator[str]:
    """More than may be on its way to a reader."""
    arrive(folder, "began")
    try:
        while not has_arrived(folder, "may end"):
            yield "x"
    except GeneratorExit:
        arrive(folder, "told")
        raise
    arrive(folder, "ended")


def plain(folder: str) -> Any:
    @qserve.deployment
    class Plain:
        async def __call__(self, request: Request) -> Any:
            how = request.query_params.get("how", "")
            if how == "watches":
                await asyncio.shield(self.watch(request))
            if how == "polls":
                await asyncio.to_thread(poll, folder)
            if how == "streams":
                return StreamingResponse(parts(folder))
            if how == "yields":
                return parts(folder)
            if how == "floods":
                return many(folder)
            await work(folder)
            return "done"

        async def watch(self, request: Request) -> None:
            arrive(folder, "began")
            while not await request.is_disconnected():
                await asyncio.sleep(0.01)
            assert (await request.receive())["type"] == "http.disconnect"
            arrive(folder, "told")

    return Plain


def fastapi_app(folder: str) -> Any:
    app = FastAPI()

    @qserve.deployment
    @qserve.ingress(app)
    class Api:
        @app.get("/")
        async def root(self, how: str = "") -> Any:
            if how == "streams":
                return StreamingResponse(parts(folder))
            await work(folder)
            return None

        @app.get("/sync")
        def sync(self) -> None:
            poll(folder)

    return Api


def flask_app(folder: str) -> Any:
    app = flask.Flask("app")

    @app.get("/")
    def root() -> str:
        poll(folder)
        return ""

    @qserve.deployment
    @qserve.ingress(app)
    class Web:
        pass

    return Web


def leave_when_it_runs(client: Client, folder: str, path: str, **headers: str) -> None:
    """Ask for a path, and close the connection once user code runs."""
    with closing(socket.create_connection(client.address)) as connection:
        lines = [f"GET {path} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in headers.items())]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        await_arrival(folder, "began")


@pytest.mark.parametrize(
    ("make", "path"),
    [
        *((plain, f"/?how={how}") for how in ("", "polls", "watches", "streams", "floods")),
        (fastapi_app, "/sync"),
        # tests/local/test_cancellation.py has code of every kind
        pytest.param(plain, "/?how=yields", marks=pytest.mark.long),
        pytest.param(fastapi_app, "/", marks=pytest.mark.long),
        pytest.param(fastapi_app, "/?how=streams", marks=pytest.mark.long),
        (flask_app, "/"),
    ],
)
def test_code_is_told_that_its_client_has_left(client: Client, tmp_path: Path, make: Any, path: str) -> None:
    qserve.run(make(str(tmp_path)).bind())

    leave_when_it_runs(client, str(tmp_path), path)

    await_arrival(str(tmp_path), "told")


@pytest.mark.parametrize("path", ["/", "/?how=polls", "/?how=streams"])
def test_code_is_told_of_its_deadline(client: Client, tmp_path: Path, path: str) -> None:
    qserve.run(plain(str(tmp_path)).bind())

    if "streams" in path:
        with pytest.raises(IncompleteRead):
            client.send("GET", path, X_Request_Timeout_Seconds="1")
    else:
        assert client.send("GET", path, X_Request_Timeout_Seconds="1").status == 504

    await_arrival(str(tmp_path), "told")


def test_code_is_told_that_its_job_was_deleted(client: Client, tmp_path: Path) -> None:
    qserve.run(plain(str(tmp_path)).bind())
    place = client.send("GET", "/", Prefer="respond-async").headers["location"]
    await_arrival(str(tmp_path), "began")

    assert client.send("DELETE", place).status == 204

    await_arrival(str(tmp_path), "told")
    assert client.send("GET", place).code == "cancelled"


@pytest.mark.parametrize(
    ("keeps", "path", "headers"),
    [
        (False, "/", {"Prefer": "respond-async, wait=20"}),
        (True, "/?how=streams", {}),
        # the same two causes with other code
        pytest.param(False, "/", {"Idempotency-Key": "one"}, marks=pytest.mark.long),
        pytest.param(True, "/", {}, marks=pytest.mark.long),
        pytest.param(True, "/?how=floods", {}, marks=pytest.mark.long),
    ],
)
def test_code_goes_on_when_its_client_leaves(
    client: Client, tmp_path: Path, keeps: bool, path: str, headers: dict[str, str]
) -> None:
    qserve.run(plain(str(tmp_path)).options(cancel_on_disconnect=not keeps).bind())
    leave_when_it_runs(client, str(tmp_path), path, **headers)

    # its client's leaving is noticed and handled before that of the second
    other = tmp_path / "other"
    other.mkdir()
    qserve.run(plain(str(other)).bind(), name="other", route_prefix="/other")
    leave_when_it_runs(client, str(other), "/other")
    await_arrival(str(other), "told")
    qserve.delete("other")
    arrive(str(tmp_path), "may end")

    await_arrival(str(tmp_path), "ended")
    assert not has_arrived(str(tmp_path), "told")
    wait_until(lambda: client.send("GET", "/-/routes").json == {"/": "Plain"}, description="the other one is gone")
