"""The gateway over a plane that carries nothing."""

from __future__ import annotations

import io
import math
import os
import random
import re
import socket
import threading
import time
import weakref
from dataclasses import replace
from typing import Any

import pytest
import redis
from fakes import FakeFiller, FakePlane, driver_app, plain_app
from flask.testing import FlaskClient
from gunicorn.http.errors import InvalidChunkSize
from processes import wait_until
from qserve_gateway.application import create_app
from qserve_gateway.handler import RequestHandler
from qserve_gateway.jobs import Jobs
from qserve_gateway.request import waiting
from qserve_gateway.request.access import AccessPolicy
from qserve_gateway.request.waiting import InFlightLimit, is_disconnected
from qserve_gateway.response.errors import _ErrorLog
from qserve_gateway.response.reply import result_reply
from qserve_gateway.routes import RouteWatcher
from starlette.exceptions import HTTPException
from starlette.responses import Response

from qserve.base.settings import Settings
from qserve.broker.connection import refusal
from qserve.calls.ref import Ref
from qserve.exceptions import BackPressureError, BrokerUnavailable, ReplicaLost, StoreUnavailable
from qserve.graph.plan import InputKey, Plan, Slot, Step
from qserve.http.message import HttpMessage
from qserve.http.render import render
from qserve.wire.application import ApplicationRecord, dump_plan
from qserve.wire.claim import BROKER
from qserve.wire.codec import Codec
from qserve.wire.envelope import Answer
from qserve.wire.failure import Failure
from qserve.wire.outcome import Outcome
from qserve.wire.outside import Stored

WHOLE = Plan((Step("d", args=(Slot(0),), needs=1),), {InputKey(): ((0, 0),)}, 0)
"""A graph of one step that takes the whole input."""


def serve(plane: Any, **settings: Any) -> FlaskClient:
    return create_app(Settings(**settings), plane, watch=False).test_client()


def error_of(response: Any) -> dict[str, Any]:
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "no-store"
    error: dict[str, Any] = response.get_json()["error"]
    assert error["request_id"] == response.headers["X-Request-ID"]
    return error


# -- what is called -------------------------------------------------------------------------------


def test_a_plain_ingress_gets_the_request_and_answers_plainly() -> None:
    plane = FakePlane(plain_app(prefix="/app"))

    response = serve(plane).post("/app/sub?k=v", data=b"body", headers={"X-Custom": "1"})

    (call,) = plane.calls
    (request,) = call.args
    assert (call.app, call.deployment, call.method, call.graph) == ("plain", "Ingress", "__call__", None)
    assert call.answer is Answer.PLAIN
    assert isinstance(request, HttpMessage)
    assert (request.method, request.path, request.root_path) == ("POST", "/app/sub", "/app")
    assert (request.query_string, request.body) == (b"k=v", b"body")
    assert (b"x-custom", b"1") in request.headers
    assert (b"content-length", b"4") in request.headers
    assert (response.status_code, response.data) == (200, b"hello")
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"


def test_a_graph_with_the_json_adapter_runs_on_the_parsed_body() -> None:
    plane = FakePlane(driver_app())

    response = serve(plane).get("/anything/below", data=b'{"a": [1]}')

    (call,) = plane.calls
    assert (call.app, call.graph, call.args) == ("graph", "", ({"a": [1]},))
    assert call.answer is Answer.JSON
    assert (response.data, response.headers["Content-Type"]) == (b'"hello"', "application/json")


def test_a_graph_without_an_adapter_runs_on_the_request() -> None:
    plane = FakePlane(driver_app("starlette_request"))
    serve(plane).post("/", data=b"x")
    assert plane.calls[0].graph == ""
    assert plane.calls[0].args[0].body == b"x"


@pytest.mark.parametrize(
    ("draw", "is_late", "is_staged"), [(0.2, False, True), (0.3, False, False), (0.2, True, False)]
)
def test_a_version_that_is_being_deployed_gets_its_part_of_the_requests_wholly(
    monkeypatch: pytest.MonkeyPatch, draw: float, is_late: bool, is_staged: bool
) -> None:
    active, until_ms = driver_app(routes=("/a",)), 0.0 if is_late else math.inf
    staged = replace(driver_app("", routes=("/a",)), version="next", share=0.25, share_until_ms=until_ms)
    plane = FakePlane(active)
    plane.registry.staged = staged
    monkeypatch.setattr(random, "random", lambda: draw)

    serve(plane).post("/a", data=b"1")

    (call,) = plane.calls
    assert call.version is (staged if is_staged else active)
    assert (call.method, call.graph) == (("adapt", None) if is_staged else ("__call__", "/a"))


def test_an_adapter_of_the_users_runs_on_a_replica_of_the_driver() -> None:
    plane = FakePlane(driver_app("", routes=("/a", "/b")))
    serve(plane).post("/b", data=b"x")
    (call,) = plane.calls
    assert (call.deployment, call.method, call.args[1], call.graph) == ("DAGDriver", "adapt", "/b", None)
    assert call.args[0].body == b"x"


def test_several_graphs_answer_on_exactly_their_paths() -> None:
    plane = FakePlane(driver_app(routes=("/my_D1", "/hello/world"), prefix="/f"))
    client = serve(plane)

    assert client.post("/f/my_D1", data=b"1").status_code == 200
    assert client.get("/f/hello/world", data=b"1").status_code == 200
    assert [call.graph for call in plane.calls] == ["/my_D1", "/hello/world"]
    for path in ("/", "/f", "/f/", "/f/my_D1/x", "/f/other", "/my_D1"):
        assert client.post(path, data=b"1").status_code == 404


@pytest.mark.parametrize(
    ("path", "graph", "params"),
    [
        ("/f/users/me", "/users/me", {}),
        ("/f/users/Ada%20L", "/users/{name}", {"name": "Ada L"}),
        ("/f/n/12/x", "/n/{n:int}/{kind}", {"n": 12, "kind": "x"}),
        ("/f/at/1.5", "/at/{at:float}", {"at": 1.5}),
        ("/f/files/a/b.txt", "/files/{rest:path}", {"rest": "a/b.txt"}),
        ("/f/files/a%0Ab", "/files/{rest:path}", {"rest": "a\nb"}),
        ("/f/{odd:kind}", "/{odd:kind}", {}),
    ],
)
def test_a_route_may_have_parameters_and_the_first_that_fits_answers(
    path: str, graph: str, params: dict[str, Any]
) -> None:
    routes = ("/users/me", "/users/{name}", "/users/{other}", "/n/{n:int}/{kind}", "/at/{at:float}",
              "/files/{rest:path}", "/{odd:kind}")  # fmt: skip
    plane = FakePlane(driver_app("starlette_request", routes=routes, prefix="/f"))

    assert serve(plane).get(path).status_code == 200

    assert plane.calls[0].graph == graph
    assert plane.calls[0].args[0].path_params == params


@pytest.mark.parametrize("path", ["/f/users/", "/f/users/a/b", "/f/n/x/y", "/f/at/1.", "/users/me"])
def test_a_path_that_fits_no_route_with_parameters_is_404(path: str) -> None:
    plane = FakePlane(driver_app(routes=("/users/{name}", "/n/{n:int}/{kind}", "/at/{at:float}"), prefix="/f"))
    assert serve(plane).post(path, data=b"1").status_code == 404


def test_a_slash_too_many_or_too_few_leads_to_the_route() -> None:
    client = serve(FakePlane(driver_app(routes=("/a", "/b/", "/gr\u00fc\u00dfe/{x}"))))
    for path, location in (("/a/?k=v", "/a?k=v"), ("/b", "/b/"), ("/gr%C3%BC%C3%9Fe/%3F/", "/gr%C3%BC%C3%9Fe/%3F")):
        answer = client.post(path, data=b"1")
        assert (answer.status_code, answer.headers["Location"]) == (307, f"http://localhost{location}")
        assert answer.headers["X-Request-ID"]
    assert client.post("/three/", data=b"1").status_code == 404


def test_a_path_in_utf_8_arrives_decoded() -> None:
    plane = FakePlane(plain_app())
    serve(plane).get("/gr%C3%BC%C3%9Fe%20")
    assert plane.calls[0].args[0].path == "/grüße "


@pytest.mark.parametrize(
    ("path", "app", "root_path"),
    [
        ("/", "root", ""),
        ("/test", "test", "/test"),
        ("/test/", "test", "/test"),
        ("/test/sub", "test", "/test"),
        ("/test/deep/x", "deep", "/test/deep"),
        ("/test2", "root", ""),
        ("/testdeep", "root", ""),
        ("/other", "root", ""),
    ],
)
def test_the_longest_prefix_that_ends_with_a_segment_wins(path: str, app: str, root_path: str) -> None:
    records = [plain_app("root", "/"), plain_app("test", "/test"), plain_app("deep", "/test/deep")]
    plane = FakePlane(*records, plain_app("no-http", None))
    serve(plane).get(path)
    assert plane.calls[0].app == app
    assert (plane.calls[0].args[0].root_path, plane.calls[0].args[0].path) == (root_path, path)


# -- who may not ----------------------------------------------------------------------------------


def test_an_unknown_path_is_404_and_names_the_route_table() -> None:
    response = serve(FakePlane(plain_app(prefix="/app"))).get("/x", headers={"X-Request-ID": "my-id"})
    error = error_of(response)
    assert (response.status_code, error["code"]) == (404, "not_found")
    assert (error["request_id"], error["retryable"]) == ("my-id", False)
    assert error["message"] == "Path '/x' not found. Please ping http://localhost/-/routes for route table."


def test_a_driver_says_not_found_and_not_allowed_as_fastapi_does() -> None:
    client = serve(FakePlane(driver_app(routes=("/a",))))
    unknown, wrong = client.get("/b"), client.put("/a")
    assert (unknown.status_code, unknown.get_json()["detail"]) == (404, "Not Found")
    assert (wrong.status_code, wrong.get_json()["detail"]) == (405, "Method Not Allowed")
    assert wrong.headers["Allow"] == "GET, POST"
    assert error_of(wrong)["code"] == "method_not_allowed"


@pytest.mark.parametrize("method", ["PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
def test_a_driver_answers_get_and_post_only(method: str) -> None:
    response = serve(FakePlane(driver_app())).open("/", method=method)
    assert (response.status_code, response.headers["Allow"]) == (405, "GET, POST")
    if method != "HEAD":
        assert response.get_json()["detail"] == "Method Not Allowed"


def test_a_single_graph_answers_on_every_path_below_its_prefix() -> None:
    plane = FakePlane(driver_app(prefix="/my-dag"))
    client = serve(plane)

    for path in ("/my-dag", "/my-dag/", "/my-dag/any/thing"):
        assert client.get(path, data=b"1").status_code == client.post(path, data=b"1").status_code == 200
    assert [(call.graph, call.args) for call in plane.calls] == [("", (1,))] * 6
    assert client.post("/my-dagger", data=b"1").status_code == 404
    assert client.put("/my-dag", data=b"1").status_code == 405


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_a_plain_ingress_answers_any_method(method: str) -> None:
    plane = FakePlane(plain_app())
    assert serve(plane).open("/", method=method).status_code == 200
    assert plane.calls[0].args[0].method == method


def test_the_answer_to_head_has_no_body() -> None:
    response = serve(FakePlane(plain_app())).head("/")
    assert (response.data, response.headers["Content-Length"]) == (b"", "5")


@pytest.mark.parametrize("method", ["TRACE", "CONNECT"])
def test_methods_for_proxies_are_refused(method: str) -> None:
    response = serve(FakePlane(plain_app())).open("/", method=method)
    assert response.status_code == 405
    assert "GET" in response.headers["Allow"]


# -- bodies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code"), [(b"", "empty_body"), (b"{", "invalid_json"), (b"[1e999]", "number_out_of_range")]
)
def test_a_body_that_is_not_json_is_400(body: bytes, code: str) -> None:
    plane = FakePlane(driver_app())
    response = serve(plane).post("/", data=body)
    error = error_of(response)
    assert (response.status_code, error["code"], error["retryable"]) == (400, code, False)
    assert plane.calls == []


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "a/b"])
def test_json_is_taken_whatever_the_content_type_says(content_type: str | None) -> None:
    plane = FakePlane(driver_app())
    assert serve(plane).post("/", data=b'{"a": 1}', content_type=content_type).status_code == 200
    assert plane.calls[0].args == ({"a": 1},)


def test_a_compressed_json_body_is_415() -> None:
    response = serve(FakePlane(driver_app())).post("/", data=b"1", headers={"Content-Encoding": "gzip"})
    assert (response.status_code, error_of(response)["code"]) == (415, "unsupported_encoding")


@pytest.mark.parametrize(
    ("app", "size", "setting"),
    [
        (plain_app(), 2001, "2000 bytes, the limit set by QSERVE_MAX_BODY_BYTES"),
        (driver_app(), 1001, "1000 bytes, the limit set by QSERVE_MAX_JSON_BYTES"),
    ],
)
def test_a_body_declared_too_long_is_413_without_being_read(app: Any, size: int, setting: str) -> None:
    class Unread(io.BytesIO):
        def read(self, size: Any = -1) -> bytes:
            raise AssertionError("the body was read")

    environ = {"CONTENT_LENGTH": str(size), "wsgi.input": Unread()}
    client = serve(FakePlane(app), max_body_bytes=2000, max_json_bytes=1000)
    response = client.post("/", environ_overrides=environ)
    assert (response.status_code, error_of(response)["code"]) == (413, "body_too_large")
    assert setting in error_of(response)["message"]


def chunked(client: FlaskClient, stream: Any, coding: str = "chunked") -> Any:
    environ = {"HTTP_TRANSFER_ENCODING": coding, "wsgi.input": stream, "CONTENT_LENGTH": ""}
    return client.post("/", environ_overrides=environ)


def test_a_chunked_body_arrives_whole() -> None:
    plane = FakePlane(plain_app())
    chunked(serve(plane), io.BytesIO(b"x" * 90_000))
    assert plane.calls[0].args[0].body == b"x" * 90_000


@pytest.mark.parametrize("limit", [1000, 200_000])
def test_a_chunked_body_beyond_the_limit_is_413(limit: int) -> None:
    plane = FakePlane(plain_app())
    client = serve(plane, max_body_bytes=limit)
    assert chunked(client, io.BytesIO(b"x" * (limit + 1))).status_code == 413
    assert plane.store.open == 0 and not plane.store.values and not plane.calls
    assert chunked(client, io.BytesIO(b"x" * limit)).status_code == 200


@pytest.mark.parametrize("is_chunked", [True, False])
def test_a_large_body_is_stored_as_it_comes_and_the_message_has_its_claim(is_chunked: bool) -> None:
    plane, data = FakePlane(plain_app()), os.urandom(300_000)
    client = serve(plane)
    chunked(client, io.BytesIO(data)) if is_chunked else client.post("/", data=data)
    message = plane.calls[0].args[0]
    assert isinstance(message.body, Stored) and plane.store.get(message.body.claim) == data
    assert dict(message.headers)[b"content-length"] == b"300000"


def test_a_stored_body_whose_request_is_refused_is_forgotten() -> None:
    plane, data = FakePlane(plain_app()), b"x" * 300_000
    for error in (BrokerUnavailable("away"), RuntimeError("a bug")):
        plane.error = error
        serve(plane).post("/", data=data)
    serve(plane).post("/", data=data, headers={"Idempotency-Key": ""})
    assert (plane.store.open, plane.store.values) == (0, {})


def test_a_body_that_cannot_be_stored_is_503() -> None:
    plane = FakePlane(plain_app())
    plane.store.error = StoreUnavailable("the folder is away")
    response = serve(plane).post("/", data=b"x" * 300_000)
    assert (response.status_code, error_of(response)["code"]) == (503, "store_unavailable")
    assert plane.store.open == 0


@pytest.mark.parametrize("is_chunked", [True, False])
def test_bodies_on_their_way_into_the_broker_count_whole_and_others_only_what_is_held_here(
    monkeypatch: pytest.MonkeyPatch, is_chunked: bool
) -> None:
    def send() -> tuple[int, str]:
        plane, data = FakePlane(plain_app()), b"x" * 2_000_000
        client = serve(plane, body_memory=2_000_000)
        blocked = client.application._handler.in_flight.enter("/other")  # type: ignore[attr-defined]
        blocked.take(100_000)
        response = chunked(client, io.BytesIO(data)) if is_chunked else client.post("/", data=data)
        assert plane.store.open == 0
        return response.status_code, error_of(response)["code"] if response.status_code != 200 else ""

    assert send() == (200, "")
    monkeypatch.setattr(FakeFiller, "tier", BROKER)
    assert send() == (503, "memory_full")


def test_large_json_is_parsed_and_not_stored() -> None:
    plane = FakePlane(driver_app(graphs={"": dump_plan(WHOLE, Codec())}))
    client = serve(plane)
    try:
        assert client.post("/", json=["x" * 200_000]).status_code == 200
    finally:
        client.application._handler.parser.close()  # type: ignore[attr-defined]
    assert plane.calls and not plane.store.values


def test_the_same_stored_body_gives_the_same_fingerprint_and_another_one_not() -> None:
    plane, prints = FakePlane(plain_app()), []
    for data in (b"x" * 300_000, b"x" * 300_000, b"y" * 300_000):
        serve(plane).post("/", data=data, headers={"Idempotency-Key": "key"})
        prints.append(plane.calls[-1].fingerprint)
    assert prints[0] == prints[1] != prints[2]


# -- large answers --------------------------------------------------------------------------------


def test_a_stored_answer_is_sent_with_its_length_and_to_head_without_its_body() -> None:
    plane = FakePlane(plain_app())
    plane.value = "x" * 300_000
    client = serve(plane)
    response, head = client.get("/"), client.head("/")
    assert response.data == b"x" * 300_000
    assert response.headers["Content-Length"] == head.headers["Content-Length"] == "300000"
    assert response.headers["Content-Type"] == head.headers["Content-Type"] and head.data == b""


def test_a_stored_answer_that_is_gone_is_an_error_before_its_first_byte() -> None:
    plane = FakePlane(plain_app())
    plane.outcome = Outcome("d", render("x" * 300_000, Answer.PLAIN, plane.codec))
    plane.store.values.clear()
    response = serve(plane).get("/")
    assert (response.status_code, error_of(response)["code"]) == (500, "value_lost")


def test_the_ref_of_a_stored_answer_lives_until_it_is_sent() -> None:
    plane = FakePlane(plain_app())
    reply = result_reply(render("x" * 300_000, Answer.PLAIN, plane.codec), "id", plane.store, ref := Ref("", None))
    alive = weakref.ref(ref)
    del ref
    sent = reply({"REQUEST_METHOD": "GET"}, lambda status, headers: None)
    assert next(iter(sent)) and alive()
    sent.close()
    assert alive() is None


def test_a_malformed_chunk_is_400() -> None:
    class Broken:
        def read(self, size: int) -> bytes:
            raise InvalidChunkSize(b"ZZ")

    response = chunked(serve(FakePlane(plain_app())), Broken())
    assert (response.status_code, error_of(response)["code"]) == (400, "invalid_chunk")


def test_a_body_that_ends_early_is_400() -> None:
    environ = {"CONTENT_LENGTH": "100", "wsgi.input": io.BytesIO(b"ab")}
    response = serve(FakePlane(plain_app())).post("/", environ_overrides=environ)
    assert (response.status_code, error_of(response)["code"]) == (400, "incomplete_body")


def test_a_transfer_coding_other_than_chunked_is_501() -> None:
    response = chunked(serve(FakePlane(plain_app())), io.BytesIO(b""), "gzip, chunked")
    assert response.status_code == 501


# -- headers --------------------------------------------------------------------------------------


def test_the_clients_request_id_is_kept_and_given_to_the_call() -> None:
    plane = FakePlane(plain_app())
    response = serve(plane).get("/", headers={"X-Request-ID": "my-id:1.2_3"})
    assert response.headers["X-Request-ID"] == plane.calls[0].trace_id == "my-id:1.2_3"
    assert (b"x-request-id", b"my-id:1.2_3") in plane.calls[0].args[0].headers


def test_each_request_without_an_id_gets_one_of_its_own() -> None:
    client = serve(FakePlane(plain_app()))
    assert client.get("/").headers["X-Request-ID"] != client.get("/").headers["X-Request-ID"]


@pytest.mark.parametrize("given", ["", "two words", "a b\tc" * 60, "x" * 129, "ü", "a/b"])
def test_a_malformed_request_id_is_replaced(given: str) -> None:
    response = serve(FakePlane(plain_app())).get("/", headers={"X-Request-ID": given})
    assert re.fullmatch("[0-9a-f]{32}", response.headers["X-Request-ID"])


def test_the_deadline_is_the_headers_then_the_applications_then_the_settings() -> None:
    plane = FakePlane(plain_app("a", "/a", timeout_s=7.0), plain_app("b", "/b"))
    client = serve(plane, request_timeout_s=9.0)
    client.get("/a", headers={"x-request-timeout-seconds": "2.5"})
    client.get("/a")
    client.get("/b")
    assert [call.timeout_s for call in plane.calls] == [2.5, 7.0, 9.0]


@pytest.mark.parametrize("given", ["0", "-1", "1e18", "abc", "nan", "inf", "", "3601"])
def test_a_deadline_that_makes_no_sense_is_400(given: str) -> None:
    response = serve(FakePlane(plain_app())).get("/", headers={"x-request-timeout-seconds": given})
    assert (response.status_code, error_of(response)["code"]) == (400, "invalid_deadline")


def test_a_request_without_a_host_is_400() -> None:
    client = create_app(Settings(), FakePlane(plain_app()), watch=False)  # type: ignore[arg-type]
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "s",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
    }
    statuses: list[str] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        statuses.append(status)

    client(environ, start_response)
    assert statuses == ["400 Bad Request"]


# -- how requests end -----------------------------------------------------------------------------


def test_a_response_of_user_code_is_relayed_as_it_is() -> None:
    plane = FakePlane(plain_app())
    plane.value = Response(b"\x00", 418, {"X-Own": "1"}, "image/png")
    plane.value.set_cookie("a", "1")
    plane.value.set_cookie("b", "2")

    response = serve(plane).get("/")

    assert (response.status_code, response.data) == (418, b"\x00")
    assert response.headers["X-Own"] == "1"
    assert len(response.headers.getlist("Set-Cookie")) == 2
    assert response.headers["Content-Length"] == "1"
    text = 'é"\\\n\u2028' * 1000
    plane.value = text
    whole = serve(plane).get("/")
    assert (whole.text, whole.headers["Content-Length"]) == (text, str(len(text.encode())))


def failed(error: BaseException, deployment: str = "") -> Outcome:
    return Outcome("f", Failure.of(error, deployment).encode())


@pytest.mark.parametrize("headers", [{}, {"Prefer": "respond-async, wait=1"}, {"Idempotency-Key": "k"}])
def test_json_without_what_the_graph_takes_of_it_is_the_client_s_error(headers: dict[str, str]) -> None:
    plane = FakePlane(driver_app())
    plane.outcome = failed(KeyError("name"), "DAGDriver")

    response = serve(plane).post("/", data=b"{}", headers=headers)

    assert (response.status_code, error_of(response)["code"]) == (422, "invalid_request")
    assert "'name'" in error_of(response)["message"]
    plane.outcome = failed(KeyError("name"), "Model")
    assert serve(plane).post("/", data=b"{}", headers=headers).status_code == 500


def test_an_error_of_user_code_is_500_with_its_type_message_and_deployment() -> None:
    plane = FakePlane(plain_app())
    plane.outcome = failed(ZeroDivisionError("division by zero"), "Model")

    response = serve(plane).get("/")

    error = error_of(response)
    assert response.status_code == 500
    assert error["code"] == "user_code_failed"
    assert (error["type"], error["deployment"]) == ("ZeroDivisionError", "Model")
    assert error["message"] == "ZeroDivisionError: division by zero"
    assert error["retryable"] is False
    assert "traceback" not in error


def raised(error: BaseException) -> Outcome:
    return Outcome("f", Failure.of(error, "Model").encode())


def test_an_http_exception_of_user_code_is_its_answer() -> None:
    plane = FakePlane(plain_app())
    plane.outcome = raised(HTTPException(401, {"who": None}, headers={"WWW-Authenticate": "Bearer"}))
    response = serve(plane).get("/")
    assert (response.status_code, response.get_json()) == (401, {"detail": {"who": None}})
    assert response.headers["WWW-Authenticate"] == "Bearer"
    plane.outcome = raised(HTTPException(status_code=304))
    assert serve(plane).get("/").data == b""


def test_an_http_exception_from_below_is_the_answer_whatever_its_class_takes() -> None:
    class Teapot(HTTPException):
        def __init__(self) -> None:
            super().__init__(418, {"short": True})

    plane = FakePlane(driver_app())
    below = Failure.decode(Failure.of(Teapot(), "Model").encode()).to_exception()
    for error in (Teapot(), below):
        plane.outcome = failed(error, "Front")
        response = serve(plane).post("/", data=b"1")
        assert (response.status_code, response.get_json()) == (418, {"detail": {"short": True}})


@pytest.mark.parametrize(
    "error",
    [HTTPException(99, "early"), HTTPException(700, "late"), HTTPException(400, headers={"x": "a\r\nset-cookie: b"})],
    ids=["too small", "too large", "split"],
)
def test_an_http_exception_that_http_does_not_have_is_500(error: HTTPException) -> None:
    plane = FakePlane(plain_app())
    plane.outcome = raised(error)
    response = serve(plane).get("/")
    assert (response.status_code, error_of(response)["type"]) == (500, "HTTPException")


def test_an_answer_without_a_body_has_none_and_head_says_how_long_it_would_be() -> None:
    plane = FakePlane(plain_app())
    plane.value = Response("body", 204)
    empty = serve(plane).get("/")
    plane.value = Response(headers={"content-length": "77"})
    head, get = serve(plane).head("/"), serve(plane).get("/")
    assert (empty.status_code, empty.data, empty.headers.get("Content-Length")) == (204, b"", None)
    assert (head.headers.getlist("Content-Length"), get.headers.getlist("Content-Length")) == (["77"], ["0"])


FULL = BackPressureError("the queue of 'Narrow' is full")


@pytest.mark.parametrize("error", [FULL, ExceptionGroup("tasks", [FULL, ExceptionGroup("more", [FULL])])])
def test_back_pressure_behind_user_code_is_503_with_a_time_to_come_back(error: Exception) -> None:
    plane = FakePlane(plain_app())
    plane.outcome = raised(error)
    response = serve(plane).get("/")
    assert (response.status_code, error_of(response)["code"]) == (503, "queue_full")
    assert int(response.headers["Retry-After"]) >= 1


def test_the_traceback_is_shown_only_where_the_settings_say_so() -> None:
    plane = FakePlane(plain_app())
    plane.outcome = failed(ValueError("bad"), "Model")
    assert "ValueError: bad" in error_of(serve(plane, show_errors=True).get("/"))["traceback"]


@pytest.mark.parametrize(
    ("outcome", "status", "code"),
    [
        (Outcome("x", b""), 504, "deadline_exceeded"),
        (Outcome("c", b""), 499, "cancelled"),
        (failed(ReplicaLost("died three times")), 500, "replica_lost"),
        (failed(BackPressureError("Request dropped due to backpressure")), 503, "queue_full"),
        (failed(BackPressureError("Request dropped due to backpressure", 7, 429)), 429, "queue_full"),
        (failed(BrokerUnavailable("tcp://secret-host")), 503, "broker_unavailable"),
        (failed(refusal(redis.ResponseError("OOM command not allowed"))), 503, "broker_full"),
        (Outcome("f", b"junk"), 500, "bad_payload"),
        (Outcome("d", b"junk"), 500, "bad_payload"),
    ],
)
def test_every_other_end_has_its_status_and_code(outcome: Outcome, status: int, code: str) -> None:
    plane = FakePlane(plain_app())
    plane.outcome = outcome
    response = serve(plane).get("/")
    error = error_of(response)
    assert (response.status_code, error["code"]) == (status, code)
    assert error["retryable"] is (status in (429, 503))
    assert ("Retry-After" in response.headers) is (status in (429, 503))
    assert "secret" not in response.text


def test_a_bug_of_the_gateway_is_500_without_its_text() -> None:
    plane = FakePlane(plain_app())
    plane.error = RuntimeError("/a/path and a secret")
    response = serve(plane).get("/")
    assert (response.status_code, error_of(response)["code"]) == (500, "internal_error")
    assert "secret" not in response.text


def test_a_request_that_is_not_finished_in_time_is_504_and_ended_in_the_broker() -> None:
    plane = FakePlane(plain_app())
    plane.silent = True
    response = serve(plane).get("/", headers={"x-request-timeout-seconds": "0.01"})
    assert (response.status_code, error_of(response)["code"]) == (504, "deadline_exceeded")
    assert len(plane.expired) == 1


def test_a_request_whose_client_left_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "POLL_INTERVAL_S", 0.01)
    ours, theirs = socket.socketpair()
    theirs.close()
    plane = FakePlane(plain_app())
    plane.silent = True
    with ours:
        response = serve(plane).get("/", environ_overrides={"gunicorn.socket": ours})
    assert response.status_code == 499
    assert len(plane.cancelled) == 1


def test_a_client_is_gone_when_it_closed_and_not_before() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        assert not is_disconnected(ours)
        theirs.send(b"the next request")
        assert not is_disconnected(ours)
        theirs.close()
        assert is_disconnected(ours)
    assert not is_disconnected(None)


def test_more_requests_than_may_wait_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "IN_FLIGHT_LIMIT", 0)
    response = serve(FakePlane(plain_app())).get("/")
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")


# -- pages and routes -----------------------------------------------------------------------------


def test_healthz_says_success_while_the_broker_answers() -> None:
    plane = FakePlane(plain_app())
    client = serve(plane)
    assert (client.get("/-/healthz").status_code, client.get("/-/healthz").text) == (200, "success")
    assert client.get("/-/healthz").headers["Content-Type"].startswith("text/plain")

    plane.registry.away = True
    response = client.get("/-/healthz")
    assert (response.status_code, error_of(response)["code"]) == (503, "broker_unavailable")
    assert "secret" not in response.text


def test_healthz_is_503_while_the_broker_cannot_store_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise redis.ResponseError("MISCONF Errors writing to the AOF file: No space left on device")

    plane = FakePlane(plain_app())
    client = serve(plane)
    monkeypatch.setattr(plane.client, "ping", refuse)

    response = client.get("/-/healthz")

    assert (response.status_code, error_of(response)["code"]) == (503, "broker_disk_full")


@pytest.mark.parametrize("records", [(), (plain_app(prefix=None),)], ids=["nothing", "an application without HTTP"])
def test_healthz_is_503_until_there_is_a_route(records: tuple[ApplicationRecord, ...]) -> None:
    plane = FakePlane(*records)

    response = serve(plane).get("/-/healthz")

    assert (response.status_code, error_of(response)["code"]) == (503, "no_application")
    assert response.headers["retry-after"] == "1"
    plane.registry.records.append(plain_app("late"))
    assert serve(plane).get("/-/healthz").status_code == 200


def test_routes_lists_prefixes_and_their_ingress() -> None:
    client = serve(FakePlane(plain_app(prefix="/app"), driver_app(routes=("/a", "/b"))))
    assert client.get("/-/routes").get_json() == {"/app": "Ingress", "/": "DAGDriver"}


def test_reserved_paths_never_reach_an_application() -> None:
    plane = FakePlane(plain_app())
    response = serve(plane).get("/-/anything")
    assert (response.status_code, error_of(response)["code"]) == (404, "not_found")
    assert serve(plane).post("/-/healthz").status_code == 405
    assert plane.calls == []


def test_a_gateway_that_knows_no_routes_yet_says_that_it_will() -> None:
    plane: Any = FakePlane(plain_app())
    watcher, in_flight = RouteWatcher(plane), InFlightLimit()
    jobs = Jobs(Settings(), plane, in_flight)
    handler = RequestHandler(Settings(), plane, watcher.current, AccessPolicy(), in_flight, jobs)
    assert handler.handle({}).status == 503


def test_the_watcher_follows_changes_and_says_which_it_serves() -> None:
    plane = FakePlane(plain_app("a", "/a"))
    watcher = RouteWatcher(plane)  # type: ignore[arg-type]
    watcher.tick()
    assert [*plane.registry.published.values()] == ["1-0"]

    plane.registry.records.append(plain_app("b", "/b"))
    watcher.tick()
    assert watcher.table is not None
    assert set(watcher.table.listing()) == {"/a"}

    plane.registry.change = "2-0"
    watcher.tick()
    assert set(watcher.table.listing()) == {"/a", "/b"}
    assert [*plane.registry.published.values()] == ["2-0"]
    assert set(plane.cached) == {"a", "b"}


def test_the_routes_stay_while_the_broker_is_away() -> None:
    plane = FakePlane(plain_app("a", "/a"))
    watcher = RouteWatcher(plane)  # type: ignore[arg-type]
    watcher.tick()
    plane.registry.away = True
    with pytest.raises(BrokerUnavailable):
        watcher.tick()
    assert watcher.table is not None
    assert watcher.table.match("/a") is not None


def test_the_watcher_tries_again_for_as_long_as_the_broker_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = FakePlane(plain_app("a", "/a"))
    watcher = RouteWatcher(plane)  # type: ignore[arg-type]
    plane.registry.away = True
    pauses: list[float] = []
    watcher._turns._monotonic = lambda: sum(pauses)

    class Served(BaseException):
        pass

    this_thread, sleep_of_others = threading.get_ident(), time.sleep

    def sleep(pause_s: float) -> None:
        if threading.get_ident() != this_thread:
            sleep_of_others(pause_s)
            return
        pauses.append(pause_s)
        plane.registry.away = len(pauses) < 2000
        if watcher.table is not None:
            raise Served

    monkeypatch.setattr("qserve_gateway.routes.time.sleep", sleep)
    with pytest.raises(Served):
        watcher.run()

    assert pauses[1] == pauses[90] < 0.1
    assert max(pauses) == pauses[-2] == 2.0
    assert watcher.table is not None


def test_an_application_that_cannot_be_read_stays_as_it_was_and_the_others_follow_their_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plane = FakePlane(plain_app("a", "/a"), plain_app("b", "/b"))
    watcher = RouteWatcher(plane)  # type: ignore[arg-type]
    now = [0.0]
    watcher._turns._monotonic = lambda: now[0]
    watcher.tick()
    serving, broken = plane.registry.serving, [True]

    def serving_or_fail(name: str) -> tuple[ApplicationRecord, ApplicationRecord | None] | None:
        if name == "a" and broken[0]:
            raise ZeroDivisionError("a bug")
        return serving(name)

    monkeypatch.setattr(plane.registry, "serving", serving_or_fail)
    plane.registry.records[:] = [plain_app("a", "/a2"), plain_app("b", "/b2")]
    plane.registry.change = "2-0"
    watcher.tick()
    assert watcher.table is not None
    assert set(watcher.table.listing()) == {"/a", "/b2"}

    broken[0], now[0] = False, 10.0
    watcher.tick()
    assert set(watcher.table.listing()) == {"/a2", "/b2"}


def test_an_error_of_one_turn_does_not_end_the_watcher(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = FakePlane(plain_app("a", "/a"))
    watcher = RouteWatcher(plane)  # type: ignore[arg-type]
    tick, turns = watcher.tick, [0]

    def tick_or_fail() -> None:
        turns[0] += 1
        if turns[0] < 4:
            raise ZeroDivisionError("a bug")
        tick()

    monkeypatch.setattr(watcher, "tick", tick_or_fail)
    watcher.start()
    wait_until(lambda: watcher.table is not None, description="the routes are read")


def test_a_flood_of_refusals_is_a_few_lines_and_their_number(
    caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    seconds = [5.0]
    monkeypatch.setattr("qserve_gateway.response.errors.time.monotonic", lambda: seconds[0])
    caplog.set_level("INFO")
    noted = _ErrorLog()
    for number in range(100):
        noted.note(404, "not_found", "no such page", f"id-{number}", "GET /x")
        noted.note(503, "broker_unavailable", "it is away", f"id-{number}", "GET /", may_pass=True)
        noted.note(500, "user_code_failed", "ValueError", f"id-{number}", "GET /")
        noted.note(307, "redirect", "to /x/", f"id-{number}", "GET /x")
    seconds[0] += 1
    noted.note(404, "not_found", "no such page", "id-last", "GET /x")

    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said.count(("INFO", "GET /x 404 not_found: no such page")) == 10 + 1
    assert said.count(("INFO", "90 further requests ended with 404 not_found")) == 1
    assert said.count(("WARNING", "GET / 503 broker_unavailable: it is away")) == 1
    assert said.count(("ERROR", "GET / 500 user_code_failed: ValueError")) == 100, "each is an error of the application"
    assert len(said) == 11 + 1 + 1 + 100
