"""Pages of other hosts: what browsers ask before, and what responses say to them."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fakes import FakePlane, plain_app
from flask.testing import FlaskClient
from qserve_gateway.application import create_app
from qserve_gateway.cors import Cors
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from qserve.base.settings import Settings
from qserve.exceptions import QserveException
from qserve.http.message import BadRequest

SHOP = "https://shop.example"
NAMED = {"QSERVE_CORS_ORIGINS": f"{SHOP}, http://localhost:3000"}


def serve(monkeypatch: pytest.MonkeyPatch, env: dict[str, str], plane: Any = None) -> FlaskClient:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return create_app(Settings(), plane or FakePlane(plain_app()), watch=False).test_client()


def ask(client: FlaskClient, origin: str = SHOP, method: str = "POST", headers: str = "", path: str = "/") -> Any:
    given = {"Origin": origin, "Access-Control-Request-Method": method}
    return client.options(path, headers={**given, "Access-Control-Request-Headers": headers} if headers else given)


def test_without_settings_nothing_is_added_and_a_preflight_is_the_application_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plane = FakePlane(plain_app())
    client = serve(monkeypatch, {}, plane)

    assert not [name for name, _ in client.get("/", headers={"Origin": SHOP}).headers if name.startswith("Access-")]
    ask(client)
    assert len(plane.calls) == 2


def test_a_page_of_a_named_origin_may_send_requests_and_read_responses(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = FakePlane(plain_app())
    client = serve(monkeypatch, NAMED, plane)

    preflight = ask(client, headers="authorization, X-Tenant")
    assert (preflight.status_code, preflight.data, plane.calls) == (204, b"", [])
    assert preflight.headers["Access-Control-Allow-Origin"] == SHOP
    assert "DELETE" in preflight.headers["Access-Control-Allow-Methods"]
    assert preflight.headers["Access-Control-Allow-Headers"] == "authorization, x-tenant"
    assert preflight.headers["Access-Control-Max-Age"] == "600"
    for path in ("/", "/nowhere", "/-/routes", "/-/requests/x"):
        response = client.get(path, headers={"Origin": SHOP})
        assert response.headers["Access-Control-Allow-Origin"] == SHOP, path
        assert "location" in response.headers["Access-Control-Expose-Headers"]
        assert response.headers.getlist("Vary") == ["Origin"]
        assert "Access-Control-Allow-Credentials" not in response.headers


@pytest.mark.parametrize(
    "origin", ["https://other.example", "https://shop.example.evil", "http://shop.example", "null"]
)
def test_a_page_of_another_origin_is_told_nothing(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    client = serve(monkeypatch, NAMED)

    preflight = ask(client, origin)
    assert (preflight.status_code, preflight.get_json()["error"]["code"]) == (403, "cross_origin")
    for response in (preflight, client.get("/", headers={"Origin": origin})):
        assert "Access-Control-Allow-Origin" not in response.headers
        assert response.headers["Vary"] == "Origin"  # a cache must not give one page the response to another


def test_rules_of_methods_headers_credentials_and_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve(
        monkeypatch,
        {
            "QSERVE_CORS_ORIGIN_REGEX": r"https://[a-z]+\.example",
            "QSERVE_CORS_METHODS": "get, POST",
            "QSERVE_CORS_HEADERS": "X-Tenant",
            "QSERVE_CORS_EXPOSE_HEADERS": "x-total",
            "QSERVE_CORS_CREDENTIALS": "1",
            "QSERVE_CORS_MAX_AGE_S": "5",
        },
    )

    good = ask(client, headers="x-tenant, content-type")
    assert good.headers["Access-Control-Allow-Methods"] == "GET, POST"
    assert good.headers["Access-Control-Allow-Credentials"] == "true"
    assert good.headers["Access-Control-Max-Age"] == "5"
    assert client.get("/", headers={"Origin": SHOP}).headers["Access-Control-Expose-Headers"] == "x-total"
    assert ask(client, method="DELETE").status_code == 403
    assert ask(client, headers="authorization").status_code == 403
    assert ask(client, headers="x-tenant\x01").status_code == 403
    assert ask(client, f"{SHOP}.evil").status_code == 403


@pytest.mark.parametrize(("credentials", "expected"), [("0", "*"), ("1", SHOP)])
def test_any_origin(monkeypatch: pytest.MonkeyPatch, credentials: str, expected: str) -> None:
    client = serve(monkeypatch, {"QSERVE_CORS_ORIGINS": "*", "QSERVE_CORS_CREDENTIALS": credentials})

    assert client.get("/", headers={"Origin": SHOP}).headers["Access-Control-Allow-Origin"] == expected
    # pages of any host may not cancel requests: they would be those of others
    assert client.delete("/-/requests/" + "0" * 32, headers={"Origin": SHOP}).status_code == 403


def test_a_page_of_a_named_origin_may_cancel_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve(monkeypatch, NAMED)

    given = {"Origin": SHOP, "Sec-Fetch-Site": "cross-site"}
    assert client.delete("/-/requests/" + "0" * 32, headers=given).status_code == 404
    assert (
        client.delete("/-/requests/" + "0" * 32, headers={**given, "Origin": "https://other.example"}).status_code
        == 403
    )
    assert client.delete("/-/requests/" + "0" * 32, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


def test_a_preflight_needs_no_token_but_the_request_does(monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve(monkeypatch, NAMED | {"QSERVE_API_TOKEN": "token-of-this-test", "QSERVE_ALLOWED_HOSTS": "localhost"})

    assert ask(client, headers="authorization").status_code == 204
    refused = client.get("/", headers={"Origin": SHOP})
    assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, SHOP)
    assert client.options("/", base_url="http://evil.example", headers={
        "Origin": SHOP, "Access-Control-Request-Method": "GET",
    }).status_code == 421  # fmt: skip


def test_an_application_s_own_rules_win(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = FakePlane(plain_app())
    plane.value = Response("x", headers={"Access-Control-Allow-Origin": "https://its.example"})

    response = serve(monkeypatch, NAMED, plane).get("/", headers={"Origin": SHOP})

    assert response.headers.getlist("Access-Control-Allow-Origin") == ["https://its.example"]


@pytest.mark.parametrize("origin", [SHOP, "https://other.example"])
@pytest.mark.parametrize("origins", ["*", SHOP])
def test_pages_may_read_what_starlette_s_middleware_would_let_them(
    monkeypatch: pytest.MonkeyPatch, origins: str, origin: str
) -> None:
    app = CORSMiddleware(Starlette(), allow_origins=[origins], allow_methods=["*"], allow_headers=["*"])
    client = serve(monkeypatch, {"QSERVE_CORS_ORIGINS": origins})
    given = {"Origin": origin, "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "x-a"}

    async def their_answer() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as asking:
            return await asking.options("/", headers=given)

    theirs, ours = asyncio.run(their_answer()), client.options("/", headers=given)

    assert (theirs.status_code < 300) is (ours.status_code < 300)
    if ours.status_code < 300:
        for name in ("access-control-allow-origin", "access-control-allow-headers", "access-control-max-age"):
            assert theirs.headers.get(name) == ours.headers.get(name), name


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"QSERVE_CORS_ORIGINS": "shop.example"}, "'shop.example' is not valid"),
        ({"QSERVE_CORS_ORIGINS": f"{SHOP}/"}, "is not valid"),
        ({"QSERVE_CORS_ORIGINS": "null"}, "is not valid"),
        ({"QSERVE_CORS_ORIGIN_REGEX": "("}, "is not a regular expression"),
        ({"QSERVE_CORS_ORIGINS": "*", "QSERVE_CORS_METHODS": "GET POST"}, "QSERVE_CORS_METHODS"),
        ({"QSERVE_CORS_ORIGINS": "*", "QSERVE_CORS_CREDENTIALS": "maybe"}, "must be 1 or 0"),
        ({"QSERVE_CORS_ORIGINS": "*", "QSERVE_CORS_MAX_AGE_S": "-1"}, "whole number of seconds"),
    ],
)
def test_what_is_no_rule_is_refused_with_its_variable(env: dict[str, str], message: str) -> None:
    with pytest.raises(QserveException, match=f"QSERVE_CORS_.*{message}" if "QSERVE" not in message else message):
        Cors.from_env(env)


@pytest.mark.parametrize(
    ("env", "origin", "expected"),
    [
        ({"QSERVE_CORS_ORIGINS": "https://shop.example"}, "https://shop.example", {"cookie"}),
        ({"QSERVE_CORS_ORIGINS": "https://shop.example"}, "https://other.example", None),
        ({"QSERVE_CORS_ORIGINS": "https://shop.example"}, "http://here", {"cookie"}),
        ({"QSERVE_CORS_ORIGINS": "https://shop.example"}, None, {"cookie"}),
        ({"QSERVE_CORS_ORIGINS": "*"}, "https://other.example", set()),
        ({"QSERVE_CORS_ORIGINS": "*"}, None, {"cookie"}),
        ({"QSERVE_CORS_ORIGINS": "*", "QSERVE_CORS_CREDENTIALS": "1"}, "https://other.example", {"cookie"}),
    ],
)
def test_a_websocket_is_opened_by_pages_that_may_and_with_the_credentials_that_they_may_send(
    env: dict[str, str], origin: str | None, expected: set[str] | None
) -> None:
    rules = Cors.from_env(env)
    assert rules is not None
    environ = {"REQUEST_METHOD": "GET", "HTTP_HOST": "here", "HTTP_COOKIE": "a=b"}
    environ |= {} if origin is None else {"HTTP_ORIGIN": origin}

    if expected is None:
        with pytest.raises(BadRequest, match="web pages of other hosts"):
            rules.check_page(environ, None)
    else:
        rules.check_page(environ, None)
        assert {"cookie" for name in environ if name == "HTTP_COOKIE"} == expected
