"""Web applications as ingress: FastAPI, Flask, bare ASGI and WSGI, driven as a replica drives them."""

from __future__ import annotations

import asyncio
import contextvars
import json
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import cloudpickle
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from flask import Flask
from flask import Response as FlaskResponse
from flask import request as flask_request
from processes import wait_until
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from qserve.define.deployments import Deployment, deployment
from qserve.engine.servable import Servable
from qserve.http.message import HttpMessage
from qserve.http.render import collect, collect_now
from qserve.http.request import to_starlette
from qserve.web.asgi import StreamedResponse
from qserve.web.ingress import ingress

Asked = Callable[..., Awaitable[tuple[int, dict[str, str], bytes]]]


def a_request(method: str = "GET", path: str = "/", body: bytes = b"", **changes: Any) -> Request:
    path, _, query = path.partition("?")
    headers = changes.pop("headers", ((b"content-type", b"application/json"),))
    root_path = changes.pop("root_path", "")
    message = HttpMessage(
        method, "http", root_path + path, root_path, query.encode(), headers, ("9.9.9.9", 7), ("here", 80), body
    )
    return to_starlette(message)


@asynccontextmanager
async def served(target: Any, *args: Any, **kwargs: Any) -> AsyncIterator[tuple[Asked, Servable]]:
    """A replica's object, and a way to ask it; its end is that of a replica."""
    cls = target.func_or_class if isinstance(target, Deployment) else target
    servable = Servable(cls, args, kwargs)
    await servable.construct()

    async def ask(*given: Any, **changes: Any) -> tuple[int, dict[str, str], bytes]:
        response = await servable.method("__call__").call(a_request(*given, **changes))
        status, headers, body = await collect(response)
        return status, {name.decode(): value.decode() for name, value in headers}, body

    try:
        yield ask, servable
    finally:
        await servable.destroy()


def answer_of(target: Any, *given: Any, **changes: Any) -> tuple[int, dict[str, str], bytes]:
    async def run() -> tuple[int, dict[str, str], bytes]:
        async with served(target) as (ask, _):
            return await ask(*given, **changes)

    return asyncio.run(run())


# -- FastAPI -----------------------------------------------------------------------------------------

api = FastAPI()
seen: list[str] = []


class Item(BaseModel):
    n: int


def doubled(n: int) -> int:
    return 2 * n


@deployment
@ingress(api)
class Api:
    """Counts."""

    def __init__(self, start: int = 0) -> None:
        self.count = start

    @api.get("/count")
    def counted(self) -> int:
        self.count += 1
        return self.count

    @api.get("/add/{n}")
    async def add(self, n: int, also: int = 0) -> dict[str, int]:
        return {"sum": self.count + n + also}

    @api.post("/items", status_code=201)
    async def make(self, item: Item, twice: Annotated[int, Depends(doubled)]) -> dict[str, int]:
        return {"n": item.n, "twice": twice}

    @api.get("/stream")
    def stream(self) -> StreamingResponse:
        return StreamingResponse(iter(["a", "b", "c"]), status_code=202)

    @api.get("/missing")
    def missing(self) -> None:
        raise HTTPException(404, "no such thing")

    @api.get("/broken")
    def broken(self) -> None:
        raise RuntimeError("from the view")

    @api.get("/later")
    def later(self, tasks: BackgroundTasks) -> str:
        tasks.add_task(seen.append, f"after {self.count}")
        return "now"

    @api.get("/items/stream")
    async def items(self) -> AsyncIterator[Item]:
        yield Item(n=self.count)


@api.get("/plain")
def plain(q: str = "none") -> str:
    return q


def test_views_of_the_class_get_the_instance() -> None:
    async def run() -> None:
        async with served(Api, 5) as (ask, servable):
            assert await ask("GET", "/count") == (
                200,
                {"content-length": "1", "content-type": "application/json"},
                b"6",
            )
            assert (await ask("GET", "/add/2?also=30"))[2] == b'{"sum":38}'
            assert servable.instance.count == 6

    asyncio.run(run())


def test_functions_outside_of_the_class_are_served_too() -> None:
    assert answer_of(Api, "GET", "/plain?q=yes")[2] == b'"yes"'


def test_bodies_and_dependencies_are_fastapis_work() -> None:
    assert answer_of(Api, "POST", "/items?n=4", b'{"n": 3}')[0::2] == (201, b'{"n":3,"twice":8}')
    status, _, body = answer_of(Api, "POST", "/items?n=4", b'{"n": "x"}')
    assert status == 422
    assert b"int_parsing" in body


def test_two_instances_do_not_share_their_views() -> None:
    async def run() -> None:
        async with served(Api, 10) as (first, _), served(Api, 20) as (second, _):
            assert (await first("GET", "/count"))[2] == b"11"
            assert (await second("GET", "/count"))[2] == b"21"
            assert (await first("GET", "/count"))[2] == b"12"

    asyncio.run(run())


def test_the_users_application_stays_as_it_was() -> None:
    before = list(api.router.routes)
    answer_of(Api, "GET", "/count")

    assert api.router.routes == before


def test_the_description_shows_parameters_but_no_self() -> None:
    status, _, body = answer_of(Api, "GET", "/openapi.json", root_path="/v1")

    paths = json.loads(body)["paths"]
    assert status == 200
    assert [one["name"] for one in paths["/add/{n}"]["get"]["parameters"]] == ["n", "also"]
    assert "parameters" not in paths["/count"]["get"]
    assert json.loads(body)["servers"] == [{"url": "/v1"}]
    assert answer_of(Api, "GET", "/docs")[0] == 200


def test_errors_of_the_application_are_its_answers() -> None:
    assert answer_of(Api, "GET", "/missing")[0::2] == (404, b'{"detail":"no such thing"}')
    assert answer_of(Api, "GET", "/nowhere")[0] == 404
    assert answer_of(Api, "POST", "/count")[0] == 405


def test_an_exception_that_no_handler_takes_is_the_requests_error() -> None:
    for app, path, message in ((Api, "/broken", "from the view"), (Site, "/broken", "in flask")):
        with pytest.raises(RuntimeError, match=message):
            answer_of(app, "GET", path)


def test_background_tasks_run_after_the_answer() -> None:
    seen.clear()

    async def run() -> None:
        async with served(Api, 3) as (ask, _):
            assert (await ask("GET", "/later"))[2] == b'"now"'
            while not seen:
                await asyncio.sleep(0)

    asyncio.run(run())
    assert seen == ["after 3"]


def test_paths_lie_below_the_prefix() -> None:
    assert answer_of(Api, "GET", "/plain", root_path="/v1/x")[2] == b'"none"'


def test_a_finished_answer_has_a_body_and_a_stream_has_none() -> None:
    async def run() -> None:
        async with served(Api) as (_, servable):
            finished = await servable.instance(a_request("GET", "/plain"))
            assert type(finished) is Response
            assert finished.body == b'"none"'
            streamed = await servable.instance(a_request("GET", "/stream"))
            assert isinstance(streamed, StreamedResponse)
            assert not hasattr(streamed, "body")
            assert streamed.status_code == 202
            assert (await collect(streamed))[2] == b"abc"

    asyncio.run(run())


def test_items_that_a_view_yields_are_streamed() -> None:
    assert answer_of(Api, "GET", "/items/stream")[2].strip() == b'{"n":0}'


shared = FastAPI()


@ingress(shared)
class First:
    @shared.get("/first")
    def first(self) -> str:
        return type(self).__name__


@ingress(shared)
class Second:
    @shared.get("/second")
    def second(self) -> str:
        return type(self).__name__


def test_two_classes_may_share_an_application() -> None:
    assert answer_of(First, "GET", "/first")[2] == b'"First"'
    assert answer_of(First, "GET", "/second")[0] == 404
    assert answer_of(Second, "GET", "/second")[2] == b'"Second"'


router = APIRouter(prefix="/r")
whole = FastAPI()


class Base:
    @router.get("/inherited")
    def inherited(self) -> str:
        return type(self).__name__


@ingress(whole)
class OfRouter(Base):
    @router.get("/own")
    def own(self) -> str:
        return "own"


whole.include_router(router, prefix="/p")


@ingress(router)
class OnlyRouter(Base):
    @router.get("/error")
    def error(self) -> None:
        raise HTTPException(418)


def test_routers_and_base_classes_have_views_too() -> None:
    assert answer_of(OfRouter, "GET", "/p/r/inherited")[2] == b'"OfRouter"'
    assert answer_of(OfRouter, "GET", "/p/r/own")[2] == b'"own"'
    assert b'"/p/r/own"' in answer_of(OfRouter, "GET", "/openapi.json")[2]


def test_a_router_can_be_served_itself() -> None:
    assert answer_of(OnlyRouter, "GET", "/r/inherited")[2] == b'"OnlyRouter"'
    assert answer_of(OnlyRouter, "GET", "/r/error")[0] == 418


# -- life --------------------------------------------------------------------------------------------

events: list[str] = []


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
    events.append("up")
    app.state.model = "a model"
    yield {"word": "shared"}
    events.append("down")


living = FastAPI(lifespan=lifespan)


@living.middleware("http")
async def stamped(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await go_on(request)
    response.headers["x-stamp"] = "1"
    return response


@ingress(living)
class Living:
    async def __init__(self) -> None:  # type: ignore[misc]
        await asyncio.sleep(0)
        self.word = "inited"

    @living.get("/")
    def root(self, request: Request) -> str:
        return f"{self.word} {request.app.state.model} {request.state.word}"

    async def __del__(self) -> None:  # type: ignore[misc]
        events.append("deleted")


def test_the_lifespan_is_the_replicas() -> None:
    events.clear()

    async def run() -> None:
        async with served(Living) as (ask, _):
            assert events == ["up"]
            status, headers, body = await ask()
            assert (status, body) == (200, b'"inited a model shared"')
            assert headers["x-stamp"] == "1"

    asyncio.run(run())
    assert events == ["up", "down", "deleted"]


def test_a_failed_startup_fails_the_construction() -> None:
    @asynccontextmanager
    async def failing(app: FastAPI) -> AsyncIterator[None]:
        raise LookupError("no model")
        yield

    cls = ingress(FastAPI(lifespan=failing))(type("Failing", (), {}))

    with pytest.raises(LookupError, match="no model"):
        answer_of(cls)


def test_users_del_runs_once_without_a_lifespan() -> None:
    calls: list[int] = []

    @ingress(hello_asgi)
    class Dying:
        def __del__(self) -> None:
            calls.append(1)

    answer_of(Dying)
    assert calls == [1]


# -- bare ASGI ---------------------------------------------------------------------------------------

number: contextvars.ContextVar[int] = contextvars.ContextVar("number", default=0)


async def hello_asgi(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    body = (await receive())["body"]
    text = f"{scope['method']} {scope['root_path']} {scope['path']} {body.decode()} {number.get()}".encode()
    await send(
        {"type": "http.response.start", "status": 203, "headers": [(b"set-cookie", b"a=1"), (b"set-cookie", b"b")]}
    )
    await send({"type": "http.response.body", "body": text})


@ingress(hello_asgi)
class Bare:
    pass


def test_any_asgi_application_is_served() -> None:
    async def run() -> None:
        number.set(7)
        async with served(Bare) as (_, servable):
            response = await servable.instance(a_request("PUT", "/x", b"body", root_path="/v1"))
            assert response.status_code == 203
            assert response.body == b"PUT /v1 /v1/x body 7"
            assert response.raw_headers == [(b"set-cookie", b"a=1"), (b"set-cookie", b"b")]

    asyncio.run(run())


class Endless:
    """Sends until its client leaves."""

    def __init__(self) -> None:
        self.sent = 0
        self.ended = ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
                self.sent += 1
        except OSError:
            self.ended = (await receive())["type"]
            raise


def test_a_stream_waits_for_its_reader_and_hears_when_it_leaves() -> None:
    app = Endless()
    cls = ingress(app)(type("Streams", (), {}))

    async def run() -> None:
        async with served(cls) as (_, servable):
            response = await servable.instance(a_request())
            for _ in range(100):
                await asyncio.sleep(0)
            assert app.sent < 30
            got: list[Any] = []

            async def send(message: Any) -> None:
                got.append(message)
                if len(got) == 50:
                    raise OSError("gone")

            with pytest.raises(OSError, match="gone"):
                await response({}, None, send)
            while not app.ended:
                await asyncio.sleep(0)

    asyncio.run(run())
    assert app.ended == "http.disconnect"


def sending(*messages: dict[str, Any], error: Exception | None = None) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            for message in messages:
                await send(message)
            if error is not None:
                raise error

    return ingress(app)(type("Sending", (), {}))


def start(length: int | None = None) -> dict[str, Any]:
    headers = [] if length is None else [(b"content-length", str(length).encode())]
    return {"type": "http.response.start", "status": 200, "headers": headers}


def part(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


def test_an_error_before_the_response_is_the_requests_error() -> None:
    with pytest.raises(KeyError, match="early"):
        answer_of(sending(error=KeyError("early")))
    with pytest.raises(KeyError, match="early"):
        answer_of(sending(start(), error=KeyError("early")))


def test_an_error_in_the_middle_breaks_the_stream() -> None:
    with pytest.raises(KeyError, match="late"):
        answer_of(sending(start(), part(b"a"), error=KeyError("late")))


@pytest.mark.parametrize("parts", [[], [b"a"]])
def test_a_stream_that_fails_behind_a_middleware_does_not_seem_to_be_whole(parts: list[bytes]) -> None:
    app = FastAPI()

    @app.middleware("http")
    async def outer(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        return await go_on(request)

    app.middleware("http")(outer)

    def body() -> Iterator[bytes]:
        yield from parts
        raise KeyError("in the stream")

    app.add_api_route("/", lambda: StreamingResponse(body()), response_model=None)
    with pytest.raises(KeyError, match="in the stream"):
        answer_of(ingress(app)())


def test_starlettes_page_is_not_an_answer_but_the_applications_own_page_is() -> None:
    inner, outer = FastAPI(), FastAPI()
    outer.mount("/inner", inner)

    @outer.middleware("http")
    async def through(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        return await go_on(request)

    async def broken() -> None:
        raise KeyError("in the route")

    async def own() -> PlainTextResponse:
        return PlainTextResponse("Internal Server Error", 500)

    for app in (inner, outer):
        app.add_api_route("/broken", broken)
        app.add_api_route("/own", own, response_model=None)
    for prefix in ("", "/inner"):
        with pytest.raises(KeyError, match="in the route"):
            answer_of(ingress(outer)(), "GET", f"{prefix}/broken")
        assert answer_of(ingress(outer)(), "GET", f"{prefix}/own")[0::2] == (500, b"Internal Server Error")
    handling = FastAPI(exception_handlers={Exception: lambda request, error: PlainTextResponse("handled", 500)})
    handling.add_api_route("/broken", broken)
    assert answer_of(ingress(handling)(), "GET", "/broken")[0::2] == (500, b"handled")


@pytest.mark.parametrize("messages", [(start(), start(), part(b"a", False)), (part(b"a", False),)])
def test_a_response_that_does_not_begin_with_one_start_is_an_error(messages: Any) -> None:
    with pytest.raises(TypeError, match="sends the start of its response once"):
        answer_of(sending(*messages))


def test_an_application_that_says_nothing_is_an_error() -> None:
    with pytest.raises(Exception, match="ended before its response was complete"):
        answer_of(sending())


def test_a_body_of_known_length_is_gathered() -> None:
    async def run(*messages: dict[str, Any]) -> Any:
        async with served(sending(*messages)) as (_, servable):
            return await servable.instance(a_request())

    assert asyncio.run(run(start(2), part(b"a"), part(b"b"))).body == b"ab"
    assert asyncio.run(run(start(2), part(b"a"), part(b"b"), part(b"", False))).body == b"ab"
    assert asyncio.run(run(start(9), part(b"", False))).body == b""
    assert isinstance(asyncio.run(run(start(1 << 30), part(b"a"), part(b"b", False))), StreamedResponse)


def test_a_stream_goes_to_http_clients_only() -> None:
    async def run() -> None:
        async with served(Api) as (_, servable):
            response = await servable.instance(a_request("GET", "/stream"))
            with pytest.raises(Exception, match="without a DAGDriver"):
                collect_now(response)
            with pytest.raises(TypeError, match="can only go to an HTTP client"):
                cloudpickle.dumps(await servable.instance(a_request("GET", "/stream")))

    asyncio.run(run())


def test_a_call_that_is_no_request_is_refused() -> None:
    async def run() -> None:
        async with served(Api) as (_, servable):
            with pytest.raises(TypeError, match=r"called with an HTTP request, not 'int'"):
                await servable.instance(5)

    asyncio.run(run())


# -- Flask and WSGI ----------------------------------------------------------------------------------

site = Flask(__name__)


@ingress(site)
class Site:
    def __init__(self) -> None:
        self.word = "flask"

    @site.route("/hello/<name>", methods=["GET", "POST"])
    def hello(self, name: str) -> str:
        return f"{self.word} {name} {flask_request.args.get('q')} {flask_request.get_data(as_text=True)}"

    @site.route("/stream")
    def stream(self) -> FlaskResponse:
        return FlaskResponse((f"{self.word}{n};" for n in range(3)), status=202)

    @site.route("/url")
    def url(self) -> str:
        return flask_request.script_root + flask_request.path + flask_request.host_url

    @site.route("/broken")
    def broken(self) -> str:
        raise RuntimeError("in flask")


@site.route("/ünicode")
def outside() -> str:
    return "✓"


def test_views_of_flask_get_the_instance() -> None:
    assert answer_of(Site, "POST", "/hello/you?q=1", b"body")[0::2] == (200, b"flask you 1 body")
    assert answer_of(Site, "GET", "/ünicode")[2].decode() == "✓"
    assert answer_of(Site, "GET", "/none")[0] == 404
    assert answer_of(Site, "GET", "/url", root_path="/v1", headers=((b"host", b"h:1"),))[2] == b"/v1/urlhttp://h:1/"


def test_flask_streams() -> None:
    async def run() -> None:
        async with served(Site) as (_, servable):
            response = await servable.instance(a_request("GET", "/stream"))
            assert isinstance(response, StreamedResponse)
            assert (await collect(response))[0::2] == (202, b"flask0;flask1;flask2;")

    asyncio.run(run())


def test_flasks_application_stays_as_it_was() -> None:
    assert site.view_functions["hello"] is vars(Site.__mro__[1])["hello"]


closed: list[bool] = []


class Body:
    def __iter__(self) -> Iterator[bytes]:
        yield b"b"
        yield b""
        yield b"c"

    def close(self) -> None:
        closed.append(True)


def hello_wsgi(environ: dict[str, Any], start_response: Any) -> Any:
    write = start_response("200 Very Good", [("X-Path", environ["SCRIPT_NAME"] + "|" + environ["PATH_INFO"])])
    write(environ["HTTP_COOKIE"].encode() + environ["wsgi.input"].read())
    return Body()


@ingress(hello_wsgi)
class BareWsgi:
    pass


def test_any_wsgi_application_is_served() -> None:
    closed.clear()
    cookies = ((b"cookie", b"a=1"), (b"cookie", b"b=2"), (b"x_y", b"dropped"))
    status, headers, body = answer_of(BareWsgi, "POST", "/p", b"!", root_path="/v1", headers=cookies)

    assert (status, headers, body) == (200, {"x-path": "/v1|/p"}, b"a=1; b=2!bc")
    wait_until(lambda: closed == [True], description="the body is closed, on its thread")


def wsgi_of(function: Callable[[Any, Any], Any]) -> Any:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        return function(environ, start_response)

    return ingress(app)(type("Wsgi", (), {}))


def test_wsgi_mistakes_are_named() -> None:
    with pytest.raises(AssertionError, match="before it called start_response"):
        answer_of(wsgi_of(lambda environ, start: [b"x"]))
    with pytest.raises(AssertionError, match="called twice"):
        answer_of(wsgi_of(lambda environ, start: [start("200 OK", []), start("200 OK", [])]))
    with pytest.raises(ZeroDivisionError):
        answer_of(wsgi_of(lambda environ, start: 1 // 0))
    with pytest.raises(RuntimeError, match="raised StopIteration"):
        answer_of(wsgi_of(lambda environ, start: next(iter([]))))


@pytest.mark.parametrize("part", [5, 0, None, "text", {}])
def test_a_part_of_a_wsgi_body_that_is_not_bytes_is_named(part: Any) -> None:
    for length in ([], [("Content-Length", "1")]):
        with pytest.raises(TypeError, match="bytes"):
            answer_of(wsgi_of(lambda environ, start, length=length: (start("200 OK", length), iter([part]))[1]))


def test_a_wsgi_body_that_fails_when_it_is_closed_is_whole(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Body):
        def close(self) -> None:
            raise LookupError("at the end")

    assert answer_of(wsgi_of(lambda environ, start: (start("200 OK", []), Failing())[1]))[2] == b"bc"
    wait_until(lambda: "LookupError: at the end" in caplog.text, description="the error is logged")


def test_wsgi_may_replace_its_start_until_something_was_sent() -> None:
    def app(environ: Any, start: Any) -> Any:
        start("200 OK", [])
        try:
            raise LookupError("late")
        except LookupError:
            start("500 Oh", [], sys.exc_info())
        return [b"sorry"]

    assert answer_of(wsgi_of(app))[0::2] == (500, b"sorry")


# -- travelling --------------------------------------------------------------------------------------

SCRIPT = """
import asyncio, pickle, sys
import cloudpickle
from fastapi import APIRouter, FastAPI
from flask import Flask
from qserve.web.ingress import ingress
from qserve.engine.servable import Servable

app, router, site = FastAPI(), APIRouter(), Flask("__main__")
total = []

@app.get("/outside")
def outside() -> int:
    total.append(1)
    return len(total)

class Reply: pass

@ingress(app)
class Api:
    def __init__(self, n): self.n = n
    @app.get("/n")
    def get_n(self) -> int:
        total.append(1)
        return self.n + len(total)
    @router.get("/routed")
    def routed(self) -> int: return self.n

app.include_router(router)

@ingress(site)
class Site:
    def __init__(self, n): self.n = n
    @site.route("/n")
    def get_n(self): return {"n": self.n}

sys.stdout.buffer.write(cloudpickle.dumps((Api, Site)))
"""


@pytest.mark.slow
def test_a_class_travels_with_its_application() -> None:
    packed = subprocess.run([sys.executable, "-c", SCRIPT], check=True, stdout=subprocess.PIPE).stdout
    api_class, site_class = pickle.loads(packed)

    async def run() -> None:
        async with served(api_class, 40) as (ask, _):
            assert (await ask("GET", "/n"))[2] == b"41"
            assert (await ask("GET", "/outside"))[2] == b"2", "globals are shared with the class"
            assert (await ask("GET", "/routed"))[2] == b"40"
            assert (await ask("GET", "/openapi.json"))[0] == 200
        async with served(site_class, 5) as (ask, _):
            assert json.loads((await ask("GET", "/n"))[2]) == {"n": 5}
            assert (await ask("GET", "/static/none.txt"))[0] == 404

    asyncio.run(run())


STARLETTE = """
import sys
import cloudpickle
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from qserve.web.ingress import ingress

async def found(request):
    return PlainTextResponse(request.app.state.name)

app = Starlette(routes=[Mount("/part", routes=[Route("/x", found)])])
app.state.name = "of the script"
sys.stdout.buffer.write(cloudpickle.dumps(ingress(app)()))
"""


@pytest.mark.slow
def test_an_application_of_starlette_travels_with_its_state() -> None:
    packed = subprocess.run([sys.executable, "-c", STARLETTE], check=True, stdout=subprocess.PIPE).stdout

    async def run() -> None:
        async with served(pickle.loads(packed)) as (ask, _):
            assert (await ask("GET", "/part/x"))[2] == b"of the script"

    asyncio.run(run())


def make_app() -> FastAPI:
    made = FastAPI()
    made.add_api_route("/", lambda: "made")
    return made


def test_no_class_is_needed_for_an_application_or_a_function_that_makes_one() -> None:
    async def run() -> None:
        for app in (make_app, make_app()):
            async with served(deployment(ingress(app)()), 1, of="arguments that nobody takes") as (ask, _):
                assert (await ask())[2] == b'"made"'

    asyncio.run(run())
    assert deployment(ingress(make_app)()).name == "ASGIIngressDeployment"


def test_a_function_may_make_the_application_on_the_replica() -> None:
    async def make_async() -> FastAPI:
        return make_app()

    def make_in_a_loop() -> FastAPI:
        return asyncio.run(make_async())

    for make in (make_app, make_async, make_in_a_loop):
        assert answer_of(ingress(make)(type("Made", (), {})))[2] == b'"made"'


def make_nothing() -> None:
    pass


def make_items() -> Iterator[FastAPI]:
    yield make_app()


@pytest.mark.parametrize("make", [make_nothing, make_items, lambda: make_app, lambda: FastAPI], ids=range(4))
def test_a_function_that_makes_no_application_is_named(make: Any) -> None:
    with pytest.raises(TypeError, match=f"{make.__qualname__}, the function .* must return an application, not "):
        answer_of(ingress(make)(type("Made", (), {})))


# -- mistakes ----------------------------------------------------------------------------------------


def test_the_wrong_order_of_the_decorators_is_explained() -> None:
    with pytest.raises(TypeError) as caught:
        ingress(api)(Api)  # type: ignore[arg-type]

    assert str(caught.value) == (
        "@serve.ingress must come below @serve.deployment, and 'Api' is a deployment already. Write\n\n"
        "    @serve.deployment\n    @serve.ingress(app)\n    class Api: ...\n\n"
        "with @serve.deployment as the first line."
    )


def test_the_application_may_not_be_left_out() -> None:
    with pytest.raises(TypeError, match=r"(?s)must be called with an application, and got .*@serve.ingress\(app\)"):
        ingress(Base)
    with pytest.raises(TypeError, match="must be called with an application, and got Deployment"):
        ingress(Api)


@pytest.mark.parametrize("app", [5, "module:app", lambda one: one, lambda *many: many, None, print])
def test_what_is_no_application_is_refused(app: Any) -> None:
    with pytest.raises(TypeError, match="takes a FastAPI, APIRouter or Flask object"):
        ingress(app)


def test_only_classes_without_call_can_have_an_ingress() -> None:
    class Caller:
        def __call__(self) -> None: ...

    class Heir(Caller):
        pass

    for wrong, message in [
        (doubled, "must be used with a class, and 'doubled' is a function"),
        (Caller, "may not have __call__ method, and 'Caller' has one: the application"),
        (Heir, r"'Heir' has one \(from 'Caller'\)"),
        (First, "'First' has an @serve.ingress already"),
    ]:
        with pytest.raises(ValueError, match=message):
            ingress(api)(wrong)  # type: ignore[arg-type]


def test_the_class_keeps_its_name_and_its_constructors_signature() -> None:
    cls = Api.func_or_class

    assert (cls.__name__, cls.__module__, cls.__doc__) == ("Api", __name__, "Counts.")
    assert Api.bind(start=3).get_label() == "Api"


@pytest.mark.slow
def test_nothing_optional_is_imported() -> None:
    code = "import sys, qserve.web.ingress; print([m for m in ('fastapi', 'flask', 'werkzeug') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE).stdout == b"[]\n"


def test_responses_of_starlette_are_known_to_the_type_checker() -> None:
    assert issubclass(StreamedResponse, Response)
    assert not hasattr(PlainTextResponse, "body")


@pytest.mark.slow
def test_the_public_name_is_the_decorator_whoever_came_first() -> None:
    code = "from qserve.web.ingress import ingress; import qserve; assert qserve.ingress is ingress"
    subprocess.run([sys.executable, "-c", code], check=True)
