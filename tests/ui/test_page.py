"""The live page says nothing without a token, changes nothing without the second, and reads the broker once for all."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
import pytest
from desk import A, B
from live_page import ACT_TOKEN, SEE_TOKEN, Shop
from processes import wait_until
from qserve_gateway.ui.feed import VIEWERS_LIMIT, Feed
from qserve_gateway.ui.sessions import ACT, COOKIE, SEE, SESSION_S, Sessions, cookie_of

from qserve.exceptions import QserveException
from qserve.overview.picture import Picture

MARK = {"x-qserve-ui": "1"}
# without TLS: to read the certificates of all authorities would take longer than a request
get, post, head = (partial(send, verify=False) for send in (httpx.get, httpx.post, httpx.head))


@contextmanager
def signed_in(shop: Shop, token: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shop.url + "/", headers=MARK, verify=False) as client:
        assert client.post("session", json={"token": token}).status_code == 200
        yield client


@contextmanager
def events(client: httpx.Client) -> Iterator[Iterator[tuple[str, Any]]]:
    with client.stream("GET", "events", timeout=20) as response:
        assert response.status_code == 200

        def read() -> Iterator[tuple[str, Any]]:
            name = ""
            for line in response.iter_lines():
                if line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: "):
                    yield name, json.loads(line[6:])

        yield read()


# -- who may -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["events", "session", "dead-letters", "dead-letter?id=" + A, "requests", "request?id=" + A]
)
def test_without_a_session_nothing_is_said(shop: Shop, path: str) -> None:
    for cookie in ("", "see.9999999999.0", f"see.{'9' * 40}.0", "act..", '"', "see", "=;;="):
        assert get(f"{shop.url}/{path}", headers={"cookie": f"{COOKIE}={cookie}"}).status_code == 401


@pytest.mark.parametrize("path", ["replay", "purge", "scale", "pause", "cancel"])
def test_without_a_session_nothing_is_done(shop: Shop, path: str) -> None:
    assert post(f"{shop.url}/{path}", json={}, headers=MARK).status_code == 401


@pytest.mark.parametrize("token", ["", "wrong", SEE_TOKEN + "x", 1, None, "\ud800"])
def test_a_wrong_token_opens_nothing(shop: Shop, token: Any) -> None:
    response = post(f"{shop.url}/session", content=json.dumps({"token": token}), headers=MARK)

    assert response.status_code in (400, 401)
    assert "set-cookie" not in response.headers


def test_the_first_token_looks_and_the_second_acts(shop: Shop) -> None:
    shop.deploy()
    scale = {"application": "shop", "deployment": "Rank", "count": 3}
    with signed_in(shop, SEE_TOKEN) as client:
        assert client.get("session").json() == {"may_act": False}
        assert client.get("dead-letters").status_code == 200
        assert client.post("scale", json=scale).status_code == 403
        assert shop.installation.fleet.wishes("shop") == {}
    with signed_in(shop, ACT_TOKEN) as client:
        assert client.get("session").json() == {"may_act": True}
        assert client.post("scale", json=scale).json() == {"before": 1, "now": 3}
        wish = shop.installation.fleet.wishes("shop")["Rank"]
        assert (wish.count, wish.scaled_by.startswith("the live page on ")) == (3, True)


def test_signing_out_takes_the_cookie_back(shop: Shop) -> None:
    with signed_in(shop, SEE_TOKEN) as client:
        client.delete("session")

        assert client.get("session").status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {},  # a form of another page
        MARK | {"origin": "http://evil.example"},
        MARK | {"sec-fetch-site": "same-site"},  # another port of this host, to which the browser sends the cookie
        MARK | {"sec-fetch-site": "cross-site"},
    ],
)
def test_a_page_of_another_origin_changes_and_reads_nothing(shop: Shop, headers: dict[str, str]) -> None:
    shop.deploy()
    body = {"application": "shop", "deployment": "Rank", "is_paused": True}
    with signed_in(shop, ACT_TOKEN) as client:
        cookies = dict(client.cookies)
    response = post(f"{shop.url}/pause", json=body, headers=headers, cookies=cookies)

    assert response.status_code == 403
    assert shop.installation.fleet.wishes("shop") == {}
    if "sec-fetch-site" in headers:
        assert get(f"{shop.url}/dead-letters", headers=headers, cookies=cookies).status_code == 403


def test_a_cookie_ends_with_its_time_and_with_its_token() -> None:
    now = [1000.0]
    sessions = Sessions({SEE: b"a-token-for-looking"}, lambda: now[0])
    opened = sessions.open("a-token-for-looking")
    assert opened is not None
    environ = {"HTTP_COOKIE": f"a=b; {COOKIE}={opened[1]}"}

    assert sessions.right_of(environ) == SEE
    assert Sessions({SEE: b"another-token-of-it"}, lambda: now[0]).right_of(environ) == ""
    assert Sessions({ACT: b"a-token-for-looking"}, lambda: now[0]).right_of(environ) == ""
    assert sessions.right_of({"HTTP_COOKIE": environ["HTTP_COOKIE"].replace("see", "act")}) == ""
    now[0] += SESSION_S
    assert sessions.right_of(environ) == ""


def test_the_cookie_is_for_the_page_alone_and_over_tls_only_for_tls() -> None:
    assert cookie_of("x", {"wsgi.url_scheme": "http"}).endswith("HttpOnly; SameSite=Strict")
    assert cookie_of("x", {"wsgi.url_scheme": "https"}).endswith("; Secure")
    assert "ath=" not in cookie_of("x", {})


@pytest.mark.parametrize(
    "env",
    [
        {"QSERVE_UI_TOKEN": "short"},
        {"QSERVE_UI_TOKEN": "with spaces in between"},
        {"QSERVE_UI_TOKEN": "x" * 16, "QSERVE_UI_ACTIONS_TOKEN": "x" * 16},
    ],
)
def test_a_token_that_cannot_protect_is_refused_at_the_start(env: dict[str, str]) -> None:
    with pytest.raises(QserveException, match="QSERVE_UI"):
        Sessions.from_env(env)


# -- the page and its files ----------------------------------------------------------------------------


def test_the_page_and_its_files_have_a_strict_policy_and_say_nothing(shop: Shop) -> None:
    shop.deploy("secret-name")
    for name in ("", "/app.js", "/ui.css", "/icon.svg"):
        response = get(shop.url + name)
        policy = response.headers["content-security-policy"]
        assert response.status_code == 200
        assert "default-src 'none'" in policy and "unsafe" not in policy and "require-trusted-types-for" in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "secret-name" not in response.text
        assert get(shop.url + name, headers={"if-none-match": response.headers["etag"]}).status_code == 304


def test_what_is_no_file_of_the_page_is_not_served(shop: Shop) -> None:
    for name in ("/../docs.html", "/%2e%2e/docs.html", "/docs.html", "/ui"):
        assert get(shop.url + name).status_code in (401, 404)
    assert get(shop.url + "/").headers["location"] == "../ui"


# -- events --------------------------------------------------------------------------------------------


def test_events_bring_the_picture_and_then_what_changes(shop: Shop) -> None:
    shop.deploy()
    with signed_in(shop, SEE_TOKEN) as client, events(client) as told:
        found = dict(next(told) for _ in range(5))
        assert found.keys() == {"graphs", "application", "replicas", "hosts", "now"}
        assert found["application"]["name"] == "shop"
        assert found["application"]["graphs"] == []
        (graph,) = found["graphs"]["graphs"]
        assert graph["wide"]["boxes"].keys() == graph["tall"]["boxes"].keys() == {"in", "step 0", "step 1", "out"}
        assert len(graph["wide"]["paths"]) == len(graph["edges"])

        shop.queue("Rank", 5)
        while True:
            name, data = next(told)
            assert name != "graphs"  # they have not changed
            if name == "application":
                break
        assert [one["waiting"] for one in data["deployments"]] == [0, 5]
        assert data["bottleneck"]["deployment"] == "Rank"


def test_the_broker_is_read_once_for_all_who_look_and_for_nobody_not_at_all(shop: Shop) -> None:
    shop.deploy()
    with signed_in(shop, SEE_TOKEN) as client, events(client) as first, events(client) as second:
        pictures = 0
        for told in (first, second):
            assert "now" in {next(told)[0] for _ in range(5)}
        before = shop.reads
        while pictures < 5:
            pictures += next(first)[0] == "now"
        assert shop.reads - before <= 7

    def is_still() -> bool:
        return not any(thread.name == "ui" for thread in threading.enumerate())

    wait_until(is_still, description="the reading ends")


def test_a_look_that_fails_is_no_end_of_the_looking() -> None:
    looks = iter([Picture(dead_letters=1), ValueError("a mistake"), Picture(dead_letters=2)])

    def look() -> Picture:
        found = next(looks, Picture(dead_letters=3))
        if isinstance(found, Exception):
            raise found
        return found

    feed, number = Feed(look, 0.01), 0
    feed.enter(look)
    seen = set()
    while 3 not in seen:
        number, parts = feed.newer_than(number, 10)
        seen.add(json.loads(parts["now", ""])["dead_letters"])
    feed.leave(look)


def test_so_many_may_look_and_no_more(shop: Shop) -> None:
    with signed_in(shop, SEE_TOKEN) as client:
        streams = [client.stream("GET", "events") for _ in range(VIEWERS_LIMIT)]
        responses = [stream.__enter__() for stream in streams]
        assert {response.status_code for response in responses} == {200}
        assert client.get("events").status_code == 503
        for stream in streams:
            stream.__exit__(None, None, None)
        cookies = dict(client.cookies)
        wait_until(
            lambda: head(f"{shop.url}/events", cookies=cookies).status_code == 200, description="room for another"
        )


# -- what it does --------------------------------------------------------------------------------------


def test_dead_letters_are_listed_shown_replayed_and_purged(shop: Shop) -> None:
    shop.deploy()
    for request_id in (A, B):
        shop.fail(request_id)
    with signed_in(shop, ACT_TOKEN) as client:
        listed = client.get("dead-letters").json()["letters"]
        assert {one["request_id"] for one in listed} == {A, B}
        shown = client.get(f"dead-letter?id={A}").json()
        assert (shown["traceback"], shown["payload"]) == ("Traceback of the test", ["'pen'"])

        assert client.post("replay", json={"ids": [A, "0" * 32]}).json()["done"] == [A]
        assert client.post("purge", json={"ids": [B]}).json() == {"deleted": 1}

        assert client.get("dead-letters").json()["letters"] == []
        assert shop.desk.watch(A)[0] == b"o"
        assert client.get(f"dead-letter?id={A}").status_code == 404


def test_requests_are_listed_shown_and_cancelled(shop: Shop) -> None:
    shop.deploy()
    shop.submit(A, is_traced=True)
    shop.submit(B)
    with signed_in(shop, SEE_TOKEN) as client:
        assert {one["request_id"] for one in client.get("requests").json()["requests"]} == {A, B}
        assert client.get("requests?state=done").json()["requests"] == []
        assert len(client.get("requests?slowest=1&application=shop").json()["requests"]) == 2
        assert client.get("requests?state=none").status_code == 400
        assert [one["deployment"] for one in client.get(f"request?id={A}").json()["trace"]["tries"]] == ["Detect"]
        assert client.get(f"request?id={B}").json()["trace"] is None
        assert client.get(f"request?id={'0' * 32}").status_code == 404
        assert client.post("cancel", json={"id": A}).status_code == 403
    with signed_in(shop, ACT_TOKEN) as client:
        assert client.post("cancel", json={"id": A}).json() == {"cancelled": True}
        assert client.post("cancel", json={"id": A}).json() == {"cancelled": False}
    assert shop.desk.watch(A)[0] == b"c"


def test_a_deployment_is_paused_and_resumed(shop: Shop) -> None:
    shop.deploy()
    with signed_in(shop, ACT_TOKEN) as client:
        for is_paused in (True, False):
            body = {"application": "shop", "deployment": "Rank", "is_paused": is_paused}
            assert client.post("pause", json=body).json() == {"is_paused": is_paused}
            assert shop.installation.fleet.wishes("shop")["Rank"].is_paused is is_paused


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("scale", {"application": "shop", "deployment": "Rank", "count": "3"}),
        ("scale", {"application": "shop", "deployment": "Rank", "count": -1}),
        ("scale", {"application": "shop", "deployment": "None", "count": 1}),
        ("scale", {"application": "shop", "count": 1}),
        ("pause", {"application": "shop", "deployment": "Rank"}),
        ("pause", {"application": "none", "deployment": "Rank", "is_paused": True}),
        ("purge", {"ids": []}),
        ("replay", {"ids": "all"}),
        ("replay", []),
    ],
)
def test_what_makes_no_sense_is_refused_with_words(shop: Shop, path: str, body: Any) -> None:
    shop.deploy()
    with signed_in(shop, ACT_TOKEN) as client:
        response = client.post(path, json=body)

        assert 400 <= response.status_code < 500
        assert response.json()["error"]["message"]
        assert shop.installation.fleet.wishes("shop") == {}
