"""Requests are freed by reference count: with the garbage collector off, nothing of them stays behind.

Every Python process of one installation loads a probe. One signal switches its collector off, another makes it report
what only the collector could have freed, and which requests are still alive.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import flask
import pytest
from fastapi import BackgroundTasks, FastAPI, File, UploadFile
from http_client import Client
from processes import Started, wait_until
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

import qserve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.http_adapters import json_request

REQUESTS = 20
START, REPORT = signal.SIGRTMIN + 3, signal.SIGRTMIN + 4
OF_REQUESTS = ("Request", "ConnectedRequest", "OneWrite", "HttpMessage", "Exchange", "Submission", "UploadFile")
"""Classes whose objects belong to one request."""

PROBE = """
import collections, gc, json, os, signal
from pathlib import Path

FOLDER = Path(os.environ["GARBAGE_PROBE"])

def count(objects):
    return collections.Counter(type(one).__qualname__ for one in objects)

def say(what, text):
    (FOLDER / f"{os.getpid()}.{what}~").write_text(text)
    (FOLDER / f"{os.getpid()}.{what}~").rename(FOLDER / f"{os.getpid()}.{what}")

def start(*_):
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.garbage.clear()
    say("started", "")

def report(*_):
    gc.collect()
    garbage = count(gc.garbage)
    dead = {id(one) for one in gc.garbage}
    alive = count(one for one in gc.get_objects() if id(one) not in dead)
    gc.garbage.clear()
    gc.set_debug(0)
    gc.enable()
    gc.collect()
    say("report", json.dumps({"garbage": garbage, "alive": alive}))

signal.signal(signal.SIGRTMIN + 3, start)
signal.signal(signal.SIGRTMIN + 4, report)
os.register_at_fork(after_in_child=lambda: say("pid", ""))
say("pid", "")
"""


class Probe:
    """Counts garbage in all processes of an installation at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _signal_all(self, number: int, answer: str) -> dict[int, str]:
        for old in self._folder.glob(f"*.{answer}"):
            old.unlink()
        pids = {int(path.stem) for path in self._folder.glob("*.pid") if self._is_ours(int(path.stem))}
        for pid in pids:
            os.kill(pid, number)
        files = {pid: self._folder / f"{pid}.{answer}" for pid in pids}
        wait_until(
            lambda: all(path.exists() or not self._is_ours(pid) for pid, path in files.items()),
            description=f"all processes have {answer}",
        )
        return {pid: path.read_text() for pid, path in files.items() if path.exists()}

    def _is_ours(self, pid: int) -> bool:
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False
        return f"GARBAGE_PROBE={self._folder}".encode() in variables

    def start(self) -> None:
        """Switch the collector off everywhere."""
        self._signal_all(START, "started")

    def reports(self) -> list[dict[str, Any]]:
        """What became garbage since ``start``, and what is alive, in each process."""
        return [json.loads(text) for text in self._signal_all(REPORT, "report").values()]


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probe]:
    """The probe; requested before ``started``, whose processes then load it."""
    code, folder = tmp_path_factory.mktemp("code"), tmp_path_factory.mktemp("probe")
    (code / "sitecustomize.py").write_text(PROBE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(code))
        patch.setenv("GARBAGE_PROBE", str(folder))
        yield Probe(folder)


api = FastAPI()


class Item(BaseModel):
    """A body with one field."""

    size: int


@qserve.deployment(name="Api")
@qserve.ingress(api)
class Api:
    """Routes of FastAPI, of the kinds that keep a request in different places."""

    def __init__(self, measure: Any) -> None:
        self.measure = measure

    @api.post("/api/model")
    async def model(self, item: Item) -> int:
        """A body that is checked."""
        return item.size

    @api.post("/api/thread")
    def thread(self, item: Item) -> int:
        """A route that runs in a thread."""
        return item.size

    @api.post("/api/raw")
    async def raw(self, request: Request) -> int:
        """The request itself."""
        return len(await request.body())

    @api.post("/api/upload")
    async def upload(self, file: UploadFile) -> int:
        """A file in a form."""
        return len(await file.read())

    @api.post("/api/stream")
    async def stream(self) -> StreamingResponse:
        """A body that comes in parts."""

        async def parts() -> Any:
            yield "a"
            yield "b"

        return StreamingResponse(parts())

    @api.post("/api/raise")
    async def fail(self) -> None:
        """A failure."""
        raise LookupError("of the test")

    @api.post("/api/early")
    async def fail_early(self) -> StreamingResponse:
        """A failure before the first part of a stream."""

        async def parts() -> Any:
            raise LookupError("of the test")
            yield

        return StreamingResponse(parts())

    @api.post("/api/split")
    async def split(self) -> Response:
        """A header that HTTP cannot send."""
        return Response("a", headers={"x-a": "b\r\nc"})

    @api.post("/api/below")
    async def below(self) -> Any:
        """A reference."""
        return self.measure.remote(None)

    @api.post("/api/tasks")
    async def tasks(self, tasks: BackgroundTasks) -> str:
        """A failure after the response."""

        def fail() -> None:
            raise LookupError("of the test")

        tasks.add_task(fail)
        return "a"

    @api.post("/api/late")
    async def fail_late(self) -> StreamingResponse:
        """A failure in the middle of a stream."""

        async def parts() -> Any:
            yield "a"
            raise LookupError("of the test")

        return StreamingResponse(parts())


site = flask.Flask(__name__)


@qserve.deployment(name="Site")
@qserve.ingress(site)
class Site:
    """Views of Flask."""

    @site.post("/body")
    def body(self) -> str:
        """The length of the body."""
        return str(len(flask.request.get_data()))

    @site.post("/fail")
    def fail(self) -> str:
        """A failure."""
        raise LookupError("of the test")

    @site.post("/parts")
    def parts(self) -> Any:
        """A body that comes in parts."""
        return (part for part in ("a", "b"))


async def bare_asgi(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application that sends its body in parts, or fails."""
    if scope["type"] != "http":
        return
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"].endswith("fail"):
        raise LookupError("of the test")
    await send({"type": "http.response.body", "body": b"a", "more_body": True})
    await send({"type": "http.response.body", "body": b"b"})


def bare_wsgi(environ: dict[str, Any], start_response: Any) -> Any:
    """A WSGI application that sends its body in parts, or fails."""
    environ["wsgi.input"].read()
    if environ["PATH_INFO"].endswith("fail"):
        raise LookupError("of the test")
    start_response("200 OK", [])
    return [b"a", b"b"]


@qserve.deployment(name="Measure")
class Measure:
    """A deployment that other deployments call."""

    async def __call__(self, request: Request | None) -> int:
        """The length of the body."""
        return len(await request.body()) if request is not None else 0


@qserve.deployment(name="Plain")
class Plain:
    """A deployment that is called with the request."""

    def __init__(self, measure: Any) -> None:
        self.measure = measure

    async def __call__(self, request: Request) -> Any:
        """What the path says."""
        name = request.url.path.rpartition("/")[2]
        return await getattr(self, name)(request)

    async def body(self, request: Request) -> Any:
        """The length of the body."""
        return len(await request.body())

    async def relay(self, request: Request) -> Any:
        """What another deployment says of the request."""
        return await (await self.measure.remote(request))

    async def json(self, request: Request) -> Any:
        """The parsed body."""
        return await request.json()

    async def form(self, request: Request) -> Any:
        """The name of a file in a form."""
        return (await request.form())["file"].filename  # type: ignore[union-attr]

    async def stream(self, request: Request) -> Any:
        """A body that comes in parts."""

        async def parts() -> Any:
            yield "a"
            yield "b"

        return StreamingResponse(parts())

    async def endless(self, request: Request) -> Any:
        """A stream that its client leaves."""

        async def parts() -> Any:
            while True:
                yield "a" * 10_000

        return StreamingResponse(parts())

    async def fail(self, request: Request) -> Any:
        """A failure."""
        raise LookupError("of the test")


@qserve.deployment(name="sync")
def sync(request: Request) -> Any:
    """Plain code: runs in a thread while it is slow, on the loop while it is fast."""
    name = request.url.path.rpartition("/")[2]
    if name.startswith("slow"):
        time.sleep(0.01)
    if name.endswith("fail"):
        raise LookupError("of the test")
    return (part for part in "ab") if name == "parts" else name


@qserve.deployment(name="step")
def step(value: Any) -> Any:
    """A graph's only step."""
    if value == "fail":
        raise LookupError("of the test")
    return value


async def from_request(request: Request) -> Any:
    """An adapter that takes the request."""
    return (await request.json())["size"]


def from_model(item: Item, verbose: bool = False) -> Any:
    """An adapter whose parameters are checked."""
    return item.size


async def from_upload(file: UploadFile) -> Any:
    """An adapter that takes a file."""
    return len(await file.read())


def from_file(file: Annotated[bytes, File()]) -> Any:
    """An adapter that takes a file's content."""
    return len(file)


def graph(adapter: Any) -> Any:
    with InputNode() as value:
        return DAGDriver.bind(step.bind(value), http_adapter=adapter)


APPLICATIONS: dict[str, Callable[[], Any]] = {
    "plain": lambda: Plain.bind(Measure.bind()),
    "api-root": lambda: Api.bind(Measure.bind()),
    "site": lambda: Site.bind(),
    "sync": lambda: sync.bind(),
    "asgi": lambda: qserve.deployment(qserve.ingress(bare_asgi)()).bind(),
    "wsgi": lambda: qserve.deployment(qserve.ingress(bare_wsgi)()).bind(),
    "graph/json": lambda: graph(json_request),
    "graph/request": lambda: graph(from_request),
    "graph/model": lambda: graph(from_model),
    "graph/class": lambda: graph(Item),
    "graph/upload": lambda: graph(from_upload),
    "graph/file": lambda: graph(from_file),
}
"""Each is deployed when the first test asks it: every process there is reports in every test."""


@pytest.fixture(scope="module")
def deployed(probe: Probe, started: Started) -> set[str]:
    """The applications that are deployed."""
    return set()


@pytest.fixture
def client(deployed: set[str], started: Started, path: str) -> Client:
    """A client of the gateway, which serves the application of this test's path."""
    for prefix in [one for one in APPLICATIONS if path.startswith(f"/{one}/") or path == f"/{one}"]:
        if prefix not in deployed:
            qserve.run(APPLICATIONS[prefix](), name=prefix.replace("/", "-"), route_prefix=f"/{prefix}")
            deployed.add(prefix)
    return Client(started.url)


BODY = b'{"size": 7, "padding": "' + b"x" * 50_000 + b'"}'
FORM = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nhello\r\n--b--\r\n'
JSON = {"Content_Type": "application/json"}
MULTIPART = {"Content_Type": "multipart/form-data; boundary=b"}


def check_garbage(probe: Probe, ask: Callable[[], Any], most: int = 3) -> None:
    """Send requests with the collectors off; neither garbage nor more than the last requests may be left.

    Parameters:
      most: Objects per request that may become garbage and have nothing to do with it: a process also does other
        things now and then, such as opening a connection.
    """
    ask()
    probe.start()
    for _ in range(REQUESTS):
        ask()
    for report in probe.reports():
        garbage, alive = report["garbage"], report["alive"]
        assert not {name: garbage[name] for name in OF_REQUESTS if name in garbage}
        assert sum(garbage.values()) < most * REQUESTS, garbage
        # the last request may still be referred to, and be several objects of a kind where FastAPI copies it
        assert all(alive.get(name, 0) < REQUESTS / 2 for name in OF_REQUESTS), alive


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/plain/body", BODY, {}, 200),
        ("/plain/relay", BODY, {}, 200),
        ("/plain/json", BODY[:-1], {}, 400),
        ("/plain/form", FORM, MULTIPART, 200),
        ("/plain/stream", BODY, {}, 200),
        ("/plain/fail", BODY, {}, 500),
        ("/sync/fast", BODY, {}, 200),
        ("/api-root/api/model", BODY, JSON, 200),
        ("/api-root/api/model", b'{"size": "no number"}', JSON, 422),
        ("/api-root/api/stream", BODY, JSON, 200),
        ("/api-root/api/raise", BODY, JSON, 500),
        ("/api-root/api/below", BODY, JSON, 200),
        ("/plain/body", BODY, {"Connection": "Upgrade", "Upgrade": "websocket"}, 400),
        ("/graph/json", BODY, JSON, 200),
        ("/graph/json", BODY[:-1], JSON, 400),
        ("/nowhere", BODY, {}, 404),
        ("/plain/body", BODY, {"X_Request_Timeout_Seconds": "no number"}, 400),
        ("/plain/body", BODY, {"Idempotency_Key": "key"}, 200),
        ("/plain/body", BODY, {"Prefer": "respond-async"}, 202),
        *(
            pytest.param(*row, marks=pytest.mark.long)  # the same doors, with other adapters and errors
            for row in (
                ("/plain/json", BODY, {}, 200),
                ("/sync/slow", BODY, {}, 200),
                ("/sync/parts", BODY, {}, 200),
                ("/sync/fail", BODY, {}, 500),
                ("/sync/slow-fail", BODY, {}, 500),
                ("/api-root/api/thread", BODY, JSON, 200),
                ("/api-root/api/raw", BODY, JSON, 200),
                ("/api-root/api/upload", FORM, MULTIPART, 200),
                ("/api-root/api/early", BODY, JSON, 500),
                ("/api-root/api/split", BODY, JSON, 500),
                ("/api-root/api/tasks", BODY, JSON, 200),
                ("/api-root/nowhere", BODY, JSON, 404),
                ("/asgi/parts", BODY, JSON, 200),
                ("/asgi/fail", BODY, JSON, 500),
                ("/wsgi/parts", BODY, JSON, 200),
                ("/wsgi/fail", BODY, JSON, 500),
                ("/graph/json", b'"fail"', JSON, 500),
                ("/graph/request", BODY, JSON, 200),
                ("/graph/request", BODY[:-1], JSON, 400),
                ("/graph/request", b"{}", JSON, 500),
                ("/graph/model", BODY, JSON, 200),
                ("/graph/model", b"{}", JSON, 422),
                ("/graph/class", BODY, JSON, 200),
                ("/graph/class", b"{}", JSON, 422),
                ("/graph/upload", FORM, MULTIPART, 200),
                ("/graph/upload", BODY, JSON, 422),
                ("/graph/file", FORM, MULTIPART, 200),
            )
        ),
    ],
)
def test_a_request_leaves_nothing_to_the_garbage_collector(
    probe: Probe, client: Client, path: str, body: bytes, headers: Mapping[str, str], status: int
) -> None:
    def ask() -> None:
        assert client.post(path, body, **headers).status == status

    check_garbage(probe, ask)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/site/body", 200),
        ("/site/parts", 200),
        ("/site/fail", 500),
        ("/-/healthz", 405),
        ("/-/nowhere", 404),
        ("/-/requests/" + "0" * 32, 405),
    ],
)
def test_a_request_that_flask_routes_leaves_no_request_behind(
    probe: Probe, client: Client, path: str, status: int
) -> None:
    def ask() -> None:
        assert client.post(path, BODY).status == status

    check_garbage(probe, ask, most=9)  # eight of them belong to werkzeug, whose matcher refers to itself


@pytest.mark.parametrize(
    ("path", "length", "status"),
    [
        ("/plain/endless", len(BODY), 200),
        ("/api-root/api/late", len(BODY), 200),
        ("/plain/body", 2 * len(BODY), 400),
        ("/plain/body", 1 << 30, 413),
        ("/plain/bo dy", len(BODY), 400),
    ],
)
def test_a_request_or_a_stream_that_is_cut_off_leaves_nothing_to_the_garbage_collector(
    probe: Probe, client: Client, path: str, length: int, status: int
) -> None:
    request = f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Length: {length}\r\n\r\n".encode() + BODY

    def ask() -> None:
        with socket.create_connection(client.address, timeout=10) as connection:
            connection.sendall(request)
            if length == 2 * len(BODY):
                connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100).startswith(f"HTTP/1.1 {status}".encode())

    check_garbage(probe, ask)
