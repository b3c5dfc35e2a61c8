"""The page that shows the description of the applications, in a real browser: nothing leaves it for another host."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from browsers import browser, page
from fakes import FakePlane
from fastapi import FastAPI
from pydantic import BaseModel
from qserve_gateway import docs
from qserve_gateway.application import create_app
from qserve_gateway.routes import RouteTable
from werkzeug.serving import make_server

import qserve as serve
from qserve.base.keyring import Keyring
from qserve.base.settings import Settings
from qserve.dag import InputNode
from qserve.define.application import compiled
from qserve.deploy.registration import release_of
from qserve.drivers import DAGDriver
from qserve.wire.application import ApplicationRecord

__all__ = ["browser", "page"]

SCRIPT = "<script>document.title = 'owned'</script><img src='https://elsewhere.example/a.png' onerror='alert(1)'>"
STATUS = ".live-responses-table tbody td.response-col_status"


class Item(BaseModel):
    name: str


@serve.deployment
def greet(item: Item) -> str:
    """Greet an item.

    Example:
        {"name": "pen"} -> "hello"
    """
    return ""


def of(target: Any, name: str, prefix: str) -> ApplicationRecord:
    built = compiled(target, name)
    built.ingress.set_options(route_prefix=prefix)
    return release_of(built, Keyring(b"k" * 32), "module:node").record


def greeter(name: str = "shop", prefix: str = "/shop") -> ApplicationRecord:
    with InputNode() as inp:
        return of(DAGDriver.bind(greet.bind(inp), http_adapter=Item), name, prefix)


@contextmanager
def served(app: Any) -> Iterator[str]:
    server = app if isinstance(app, ThreadingHTTPServer) else make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


Serve = Callable[..., Any]


@pytest.fixture
def gateway() -> Iterator[Serve]:
    """Serves records at an address."""
    with ExitStack() as stack:
        yield lambda *records: stack.enter_context(
            served(create_app(Settings(), FakePlane(*records), watch=False))  # type: ignore[arg-type]
        )


def send(page: Any, path: str) -> Any:
    """Send the example of an operation, and return what is shown of it once it is answered."""
    operation = page.locator(".opblock").filter(has_text=path)
    operation.locator(".opblock-summary-control").click()
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_role("button", name="Execute").click()
    operation.locator(STATUS).wait_for()
    return operation


@pytest.mark.long
def test_the_page_shows_each_application_and_sends_its_examples(gateway: Serve, page: Any) -> None:
    url = gateway(greeter(), greeter("<b>text</b>", "/other"))
    page.goto(f"{url}/-/docs")

    for name in ("shop", "<b>text</b>", "gateway"):
        page.locator(".opblock-tag").get_by_text(name, exact=True).wait_for()
    operation = send(page, "/shop")
    operation.get_by_text('"hello"').first.wait_for()
    assert operation.locator(".request-url pre").inner_text() == f"{url}/shop"


@pytest.mark.long
def test_a_token_is_asked_for_and_sent_with_each_request(
    gateway: Serve, page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QSERVE_API_TOKEN", "token-of-this-test")
    page.is_noisy = True  # the browser says that it got 401
    page.goto(f"{gateway(greeter())}/-/docs")

    page.get_by_label("token").fill("wrong")
    page.get_by_role("button", name="Show the API").click()
    page.get_by_text("This is not the token").wait_for()
    page.get_by_label("token").fill("token-of-this-test")
    page.get_by_role("button", name="Show the API").click()
    page.get_by_text("Greet an item.").wait_for()

    assert page.locator("#problem").is_hidden()
    assert send(page, "/shop").locator(STATUS).inner_text() == "200"


@pytest.mark.long
def test_behind_a_proxy_that_takes_off_a_prefix_requests_go_to_the_same_place(gateway: Serve, page: Any) -> None:
    target = gateway(greeter()).removeprefix("http://")

    class Proxy(BaseHTTPRequestHandler):
        def forward(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            connection = http.client.HTTPConnection(target)
            connection.request(self.command, self.path.removeprefix("/deep/place"), body, dict(self.headers))
            response = connection.getresponse()
            data = response.read()
            self.send_response(response.status if self.path.startswith("/deep/place/") else 404)
            for name, value in response.getheaders():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
            connection.close()

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    for method in ("GET", "HEAD", "POST"):
        setattr(Proxy, f"do_{method}", Proxy.forward)
    with served(ThreadingHTTPServer(("127.0.0.1", 0), Proxy)) as url:
        page.goto(f"{url}/deep/place/-/docs")
        operation = send(page, "/shop")
        operation.get_by_text('"hello"').first.wait_for()
        assert operation.locator(".request-url pre").inner_text() == f"{url}/deep/place/shop"
        page.goto("about:blank")


@pytest.mark.long
def test_a_page_that_is_open_says_when_something_else_is_deployed(page: Any) -> None:
    app = create_app(Settings(), FakePlane(greeter()), watch=False)  # type: ignore[arg-type]
    with served(app) as url:
        page.goto(f"{url}/-/docs")
        page.get_by_text("Greet an item.").wait_for()
        assert page.locator("#changed").is_hidden()

        app._handler.table.__self__.table = RouteTable.of([greeter("more", "/more")])  # type: ignore[attr-defined]
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")

        page.locator("#changed").wait_for()
        page.get_by_text("Load the page again").click()
        page.locator(".opblock-tag").get_by_text("more", exact=True).wait_for()
        page.goto("about:blank")


@pytest.mark.long
def test_texts_and_names_of_an_application_run_no_script_and_ask_no_other_host(gateway: Serve, page: Any) -> None:
    app = FastAPI(title=SCRIPT, description=f"{SCRIPT}\n\n![x](https://elsewhere.example/b.png)")

    @app.get("/x", summary=SCRIPT, description=SCRIPT, tags=[SCRIPT])
    def x(q: str = SCRIPT) -> None: ...

    page.is_noisy = True  # the browser says that it was kept from loading pictures
    page.on("dialog", lambda dialog: pytest.fail("a script has run"))
    page.goto(f"{gateway(of(serve.deployment(serve.ingress(app)()).bind(), SCRIPT, '/s'))}/-/docs")
    page.locator(".opblock").filter(has_text="/s/x").locator(".opblock-summary-control").click()
    page.get_by_text("Parameters").first.wait_for()

    assert page.title() == "API"


def test_the_page_and_its_files_have_a_strict_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSERVE_API_TOKEN", "token-of-this-test")
    monkeypatch.setenv("QSERVE_ALLOWED_HOSTS", "here.example")
    client = create_app(Settings(), FakePlane(greeter()), watch=False).test_client()  # type: ignore[arg-type]
    get: Any = partial(client.get, base_url="http://here.example")

    page = get("/-/docs").text
    for path in ("/-/docs", *(f"/-/{name}" for name in ("docs/docs.js", "docs/docs.css", "docs/swagger-ui-bundle.js"))):
        response = get(path)
        assert response.status_code == 200, path
        assert response.headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self';")
        assert get(path, headers={"If-None-Match": response.headers["ETag"]}).status_code == 304
        assert path == "/-/docs" or path.removeprefix("/-/") in page
    assert "unsafe" not in docs.HEADERS["content-security-policy"]
    assert "<script>" not in page
    assert "style=" not in page
    assert client.get("/-/docs").status_code == 421
    assert get("/-/openapi.json").status_code == 401
    for path in ("/-/docs/", "/-/docs/other.js", "/-/docs/../pages.json", "/-/docs/%2e%2e/pages.json", "/-/docsx"):
        assert get(path).status_code in (401, 404), path


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs, "_ASSETS", "not_there")
    docs._files.cache_clear()
    client = create_app(Settings(), FakePlane(greeter()), watch=False).test_client()  # type: ignore[arg-type]

    response = client.get("/-/docs")

    docs._files.cache_clear()
    assert response.status_code == 404
    assert "pip install 'qserve-celery[docs]'" in response.get_json()["error"]["message"]
    assert client.get("/-/openapi.json").status_code == 200
