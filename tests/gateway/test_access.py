"""Who may ask a gateway: the token, web pages of other hosts, and the share of one client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fakes import FakePlane, plain_app
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st
from qserve_gateway.application import create_app
from qserve_gateway.request.access import AccessPolicy, ClientLimits
from qserve_gateway.request.environ import Refused

from qserve.base.settings import Settings
from qserve.exceptions import QserveException

TOKEN = "t0ken-of-this-test"


def serve(plane: FakePlane, monkeypatch: pytest.MonkeyPatch, **env: str) -> FlaskClient:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return create_app(Settings(), plane, watch=False).test_client()  # type: ignore[arg-type]


# -- the token -------------------------------------------------------------------------------------


@pytest.fixture
def plane() -> FakePlane:
    return FakePlane(plain_app())


@pytest.fixture
def guarded(plane: FakePlane, monkeypatch: pytest.MonkeyPatch) -> FlaskClient:
    return serve(plane, monkeypatch, QSERVE_API_TOKEN=TOKEN)


@pytest.mark.parametrize("path", ["/", "/-/routes", "/-/requests/" + "0" * 32, "/nowhere"])
@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN]
)
def test_without_the_token_everything_but_health_is_401(
    guarded: FlaskClient, plane: FakePlane, path: str, given: str | None
) -> None:
    headers = {} if given is None else {"Authorization": given}
    answer = guarded.get(path, headers=headers)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert guarded.get("/-/healthz", headers=headers).status_code == 200
    assert plane.calls == []


def test_with_the_token_requests_are_served_and_the_application_does_not_see_it(
    guarded: FlaskClient, plane: FakePlane
) -> None:
    headers = {"Authorization": f"bearer  {TOKEN}", "X-Other": "1"}
    assert guarded.get("/", headers=headers).status_code == 200
    assert guarded.get("/-/routes", headers=headers).status_code == 200
    names = {name for name, _ in plane.calls[0].args[0].headers}
    assert b"x-other" in names
    assert b"authorization" not in names


def test_without_a_token_the_authorization_is_the_applications(
    plane: FakePlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(plane, monkeypatch).get("/", headers={"Authorization": "Basic eDp5"})
    assert (b"authorization", b"Basic eDp5") in plane.calls[0].args[0].headers


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("QSERVE_API_TOKEN", "two words"),
        ("QSERVE_API_TOKEN", "umlaut-\u00e4"),
        ("QSERVE_API_TOKEN", "line\n"),
        ("QSERVE_CLIENT_IN_FLIGHT", "many"),
        ("QSERVE_CLIENT_IN_FLIGHT", "0"),
        ("QSERVE_CLIENT_IN_FLIGHT", "1.5"),
        ("QSERVE_CLIENT_REQUESTS_PER_S", "-1"),
        ("QSERVE_CLIENT_REQUESTS_PER_S", "inf"),
        ("QSERVE_CLIENT_BY", "name"),
    ],
)
def test_a_variable_that_makes_no_sense_is_named_and_a_token_not_shown(name: str, value: str) -> None:
    with pytest.raises(QserveException, match=name) as caught:
        AccessPolicy.from_env({name: value})
    assert name != "QSERVE_API_TOKEN" or value not in str(caught.value)


def test_clients_that_all_carry_one_token_cannot_be_told_apart_by_it() -> None:
    with pytest.raises(QserveException, match="QSERVE_CLIENT_BY"):
        AccessPolicy.from_env({"QSERVE_API_TOKEN": TOKEN, "QSERVE_CLIENT_BY": "authorization"})


# -- web pages of other hosts ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "hosts", "status"),
    [
        ({}, "", 404),
        ({"Origin": "http://localhost"}, "", 404),
        ({"Origin": "http://evil"}, "", 403),
        ({"Origin": "http://localhost:81"}, "", 403),
        ({"Origin": "http://localhost.evil"}, "", 403),
        ({"Origin": "null"}, "", 403),
        ({"Origin": ""}, "", 403),
        ({"Origin": "file://localhost"}, "", 403),
        ({"Sec-Fetch-Site": "cross-site"}, "", 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"}, "", 404),
        ({"Origin": "http://localhost", "Sec-Fetch-Site": "cross-site"}, "", 403),
        ({"Origin": "https://shop.example:8443"}, "localhost,shop.example", 404),
        ({"Origin": "http://evil"}, "localhost,shop.example", 403),
        ({"Origin": "http://shop.example@evil"}, "localhost,shop.example", 403),
        ({"Origin": "null"}, "localhost", 403),
    ],
)
def test_b40_a_page_of_another_host_can_change_nothing_below_the_reserved_path(
    plane: FakePlane, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], hosts: str, status: int
) -> None:
    client = serve(plane, monkeypatch, QSERVE_ALLOWED_HOSTS=hosts)
    answer = client.delete("/-/requests/" + "0" * 32, headers=headers)
    assert answer.status_code == status
    if status == 403:
        assert answer.get_json()["error"]["code"] == "cross_origin"
        assert client.post("/-/routes", headers=headers).status_code == 403
        assert client.get("/-/routes", headers=headers).status_code == 200
        assert client.post("/", headers=headers).status_code == 200  # an application looks after itself


# -- the share of one client -----------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def of(address: str = "1.1.1.1", authorization: str | None = None) -> dict[str, Any]:
    shown = {} if authorization is None else {"HTTP_AUTHORIZATION": authorization}
    return {"REMOTE_ADDR": address, **shown}


def is_let_in(made: ClientLimits, environ: dict[str, Any]) -> bool:
    try:
        made.enter(environ)
    except Refused:
        return False
    return True


def test_b41_the_eleventh_request_of_a_second_is_told_when_to_come_back() -> None:
    clock = Clock()
    made = ClientLimits(0, 10, False, clock)
    assert all(is_let_in(made, of()) for _ in range(10))
    with pytest.raises(Refused) as caught:
        made.enter(of())
    assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (429, "too_many_requests", 1)
    assert is_let_in(made, of("2.2.2.2"))
    clock.now += 0.1
    assert [is_let_in(made, of()) for _ in range(2)] == [True, False]


def test_a_slow_rate_says_how_many_seconds_are_left() -> None:
    clock = Clock()
    made = ClientLimits(0, 0.1, False, clock)
    assert is_let_in(made, of())
    clock.now += 3
    with pytest.raises(Refused) as caught:
        made.enter(of())
    assert caught.value.retry_after_s == 7
    clock.now += 7
    assert is_let_in(made, of())


def test_a_client_may_have_so_many_under_way_and_gets_their_places_back() -> None:
    made = ClientLimits(2, 0, False)
    leave = made.enter(of())
    made.enter(of())
    assert not is_let_in(made, of())
    assert is_let_in(made, of("2.2.2.2"))
    leave()
    assert is_let_in(made, of())


def test_clients_are_told_apart_by_what_they_authorize_with_where_that_is_wanted() -> None:
    by_address, by_authorization = ClientLimits(1, 0, False), ClientLimits(1, 0, True)
    assert [is_let_in(by_address, of(authorization=one)) for one in "ab"] == [True, False]
    assert [is_let_in(by_authorization, of(authorization=one)) for one in "aba"] == [True, True, False]
    assert [is_let_in(by_authorization, of(one)) for one in ("1.1.1.1", "2.2.2.2", "1.1.1.1")] == [True, True, False]


def test_clients_that_are_as_good_as_new_are_forgotten() -> None:
    clock = Clock()
    made = ClientLimits(5, 10, False, clock)
    for number in range(1000):
        leave = made.enter(of(f"10.0.{number // 256}.{number % 256}"))
        if number:
            leave()
    clock.now += 2
    made.enter(of("2.2.2.2"))
    assert len(made._clients) == 2  # the one that is still under way, and the new one


@given(
    per_s=st.floats(0.5, 20),
    steps=st.lists(st.floats(0, 2), max_size=60),
)
def test_no_client_ever_gets_more_than_its_rate_and_one_burst(per_s: float, steps: list[float]) -> None:
    clock = Clock()
    made = ClientLimits(0, per_s, False, clock)
    let_in = 0
    for step in steps:
        clock.now += step
        let_in += is_let_in(made, of())
    assert let_in <= clock.now * per_s + max(1.0, per_s) + 1e-6


def test_a_client_with_too_many_requests_is_429_and_its_health_checks_are_not(
    plane: FakePlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve(plane, monkeypatch, QSERVE_CLIENT_REQUESTS_PER_S="0.01", QSERVE_CLIENT_IN_FLIGHT="1")
    assert client.get("/").status_code == 200
    for path in ("/", "/-/routes", "/-/requests/" + "0" * 32):
        answer = client.get(path)
        assert (answer.status_code, answer.get_json()["error"]["code"]) == (429, "too_many_requests")
        assert answer.get_json()["error"]["retryable"] is True
        assert 90 <= int(answer.headers["Retry-After"]) <= 100
    assert client.get("/-/healthz").status_code == 200


def test_a_refused_or_failed_request_gives_its_place_back(plane: FakePlane, monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve(plane, monkeypatch, QSERVE_CLIENT_IN_FLIGHT="1")
    assert client.get("/").status_code == 200
    plane.error = RuntimeError("a bug")
    assert [client.get("/").status_code for _ in range(2)] == [500, 500]
    assert [client.get("/-/routes").status_code for _ in range(2)] == [200, 200]
    assert client.get("/-/nothing").status_code == 404
    plane.error = None
    assert client.get("/").status_code == 200


@pytest.fixture(autouse=True)
def no_variables_of_ours(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("QSERVE_API_TOKEN", "QSERVE_ALLOWED_HOSTS", "QSERVE_CLIENT_BY"):
        monkeypatch.delenv(name, raising=False)
    yield
