"""The live page in a real browser: it shows what is there within a second, acts by click, and everybody can use it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from desk import A, B
from live_page import ACT_TOKEN, HOSTILE, SEE_TOKEN, Shop
from processes import wait_until

from qserve.base.clock import clock
from qserve.deploy.wishes import pause
from qserve.metrics.table import TABLE
from qserve.wire.fleet import HostRecord
from qserve.wire.status import FAILED, RUNNING
from qserve.wire.totals import Family

WITHIN_MS = 1000
"""How long a change may take until it shows."""


@pytest.fixture
def shown(shop: Shop, page: Any) -> Iterator[Any]:
    """The page of a shop that is deployed, for somebody who may act."""
    shop.deploy()
    enter(shop, page)
    yield page


def enter(shop: Shop, page: Any, token: str = ACT_TOKEN) -> None:
    page.goto(f"{shop.url}#token={token}")
    page.get_by_role("link", name="Applications").wait_for()
    page.locator("main > *").first.wait_for()


def node(page: Any, name: str) -> Any:
    return page.locator(f'.node[data-deployment="{name}"]')


def view(page: Any, hash_: str) -> None:
    page.evaluate("hash => { location.hash = hash }", hash_)


def check_with_axe(page: Any) -> None:
    """Fail on what axe finds wrong with the page as it is."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
    # axe takes the contrast of what moves for that of a moment
    results = axe.Axe().run(page, options={"resultTypes": ["violations"]})
    assert results.violations_count == 0, results.generate_report()


# -- signing in ----------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_wrong_token_shows_nothing_and_the_right_one_the_application(shop: Shop, page: Any) -> None:
    page.is_noisy = True  # a browser logs each 401
    shop.deploy()
    page.goto(shop.url)
    page.get_by_label("Token").fill("a-wrong-token-of-it")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("this is not a token of the live page").wait_for()
    assert page.locator("main").inner_text() == ""
    check_with_axe(page)

    page.get_by_label("Token").fill(SEE_TOKEN)
    page.get_by_role("button", name="Sign in").click()

    page.get_by_role("heading", name="shop").wait_for()
    page.reload()
    page.get_by_role("heading", name="shop").wait_for()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Token").wait_for()
    assert page.locator("main").inner_text() == ""


@pytest.mark.long
def test_a_link_with_the_token_signs_in_and_leaves_no_trace_of_it(shop: Shop, page: Any) -> None:
    shop.deploy()
    enter(shop, page)

    page.get_by_role("heading", name="shop").wait_for()
    assert "token" not in page.url
    assert page.evaluate("document.cookie") == ""  # scripts cannot read it


# -- the views -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_graph_shows_which_step_holds_it_up_within_a_second(shop: Shop, shown: Any) -> None:
    node(shown, "Rank").wait_for()
    assert node(shown, "Rank").get_attribute("data-state") == "idle"
    assert shown.locator(".edge").count() == 3

    shop.queue("Rank", 7)

    shown.locator('.node[data-deployment="Rank"][data-state="held"]').wait_for(timeout=WITHIN_MS)
    assert "7 wait" in node(shown, "Rank").text_content()
    assert shown.locator(".verdict").inner_text().startswith("Rank holds it up")
    assert "Rank holds up shop" in shown.get_by_role("status").first.inner_text()
    row = shown.get_by_role("row", name=re.compile("^Rank"))
    assert row.get_by_role("cell").all_inner_texts()[:2] == ["holds it up", "7"]
    check_with_axe(shown)


@pytest.mark.slow
def test_calls_by_handle_are_dashed_lines(shop: Shop, page: Any) -> None:
    shop.deploy(handles={"Rank": ["Model"]})
    enter(shop, page)

    node(page, "Model").wait_for()
    assert page.locator(".edge").count() == 4
    assert page.locator(".edge.by-handle").count() == 1
    page.get_by_text("dashed: calls by handle").wait_for()


@pytest.mark.long
def test_an_application_that_is_deployed_or_paused_later_shows_within_a_second(shop: Shop, shown: Any) -> None:
    pause(shop.installation, "shop", "Detect", True)
    shown.locator('.node[data-deployment="Detect"][data-state="paused"]').wait_for(timeout=WITHIN_MS)

    view(shown, "#/")
    shop.deploy("second", ("Only",))
    view(shown, "#/app/second")

    shown.get_by_role("heading", name="second").wait_for(timeout=WITHIN_MS)
    view(shown, "#/")
    shown.get_by_role("link", name="shop").wait_for()
    check_with_axe(shown)
    shown.get_by_role("link", name="second").click()
    node(shown, "Only").wait_for()


@pytest.mark.long
def test_a_rolling_update_shows_its_share_and_its_replicas(shop: Shop, shown: Any) -> None:
    newer = replace(shop.records[0], version="v2")
    shop.installation.registry.stage(newer)
    shop.installation.registry.share(newer, 0.25, clock.stamp_ms() + 60_000)
    shop.report("shop", "Rank", "v2", RUNNING)

    panel = shown.get_by_role("region", name="Rolling update")
    panel.wait_for(timeout=WITHIN_MS)
    assert "Version v2 comes up" in panel.inner_text()
    assert "25 % of new requests" in panel.inner_text()
    check_with_axe(shown)


@pytest.mark.long
def test_the_drawer_shows_replicas_and_scales_and_pauses_by_click(shop: Shop, shown: Any) -> None:
    shop.report("shop", "Rank", "v1", FAILED, "it cannot start")
    node(shown, "Rank").focus()
    shown.keyboard.press("Enter")
    drawer = shown.get_by_role("dialog", name="Rank")
    drawer.get_by_role("cell", name="running", exact=True).wait_for()
    check_with_axe(shown)

    drawer.get_by_role("spinbutton", name="Replicas").fill("3")
    drawer.get_by_role("button", name="Scale").click()
    drawer.get_by_text("1 of 3", exact=True).wait_for(timeout=WITHIN_MS)
    assert shop.installation.fleet.wishes("shop")["Rank"].count == 3

    drawer.get_by_role("button", name="Pause").click()
    drawer.get_by_role("button", name="Resume").click()
    drawer.get_by_role("button", name="Pause").wait_for()
    assert not shop.installation.fleet.wishes("shop")["Rank"].is_paused
    shown.keyboard.press("Escape")
    drawer.wait_for(state="hidden")
    assert shown.evaluate("document.activeElement.dataset.deployment") == "Rank"


@pytest.mark.long
def test_who_may_only_look_finds_nothing_to_press(shop: Shop, page: Any) -> None:
    shop.deploy()
    shop.fail(A)
    enter(shop, page, SEE_TOKEN)
    node(page, "Rank").click()
    page.get_by_text("Your token allows to look only.").wait_for()
    assert page.get_by_role("button", name="Scale").count() == 0
    page.keyboard.press("Escape")
    view(page, f"#/dead-letters/{A}")
    page.get_by_text("Traceback of the test").wait_for()
    assert page.get_by_role("button", name="Replay").count() == 0


@pytest.mark.long
def test_a_dead_letter_is_read_and_replayed_by_click(shop: Shop, shown: Any) -> None:
    shop.fail(A)
    shown.get_by_role("link", name="Dead letters 1").click(timeout=WITHIN_MS)
    shown.get_by_role("link", name=A[:20]).click()
    shown.get_by_text("Traceback of the test").wait_for()
    assert shown.get_by_role("region", name="Input").inner_text() == "'pen'"
    check_with_axe(shown)

    shown.get_by_role("button", name="Replay").click()

    shown.get_by_text("There are none").wait_for()
    assert shop.desk.watch(A)[0] == b"o"


@pytest.mark.long
def test_dead_letters_are_chosen_and_purged_after_a_question(shop: Shop, shown: Any) -> None:
    for request_id in (A, B):
        shop.fail(request_id)
    view(shown, "#/dead-letters")
    shown.get_by_label("Choose all").check()
    check_with_axe(shown)
    shown.get_by_role("button", name="Purge 2").click()
    question = shown.get_by_role("dialog")
    question.get_by_role("button", name="Cancel").click()
    assert shop.desk.client.zcard(shop.desk.keys.dead_letters) == 2

    shown.get_by_role("button", name="Purge 2").click()
    question.get_by_role("button", name="Delete").click()

    shown.get_by_text("There are none").wait_for()
    wait_until(lambda: not shop.desk.client.zcard(shop.desk.keys.dead_letters), description="no dead letters")


@pytest.mark.long
def test_requests_are_found_and_one_has_its_waterfall_and_is_cancelled(shop: Shop, shown: Any) -> None:
    shop.submit(A, is_traced=True)
    shown.get_by_role("link", name="Requests").click()
    shown.get_by_role("link", name=A[:20]).wait_for()
    check_with_axe(shown)
    shown.get_by_label("State").select_option("done")
    shown.get_by_text("0 requests").wait_for()
    shown.get_by_label("Find").fill(A)
    shown.get_by_role("button", name="Open").click()

    row = shown.get_by_role("row", name=re.compile("^Detect"))
    row.wait_for()
    assert row.get_by_role("cell").last.inner_text() == "running"
    assert shown.locator(".waterfall .bar.run").count() == 1
    check_with_axe(shown)
    shown.get_by_role("button", name="Cancel the request").click()
    shown.get_by_role("dialog").get_by_role("button", name="Cancel the request").click()
    shown.locator(".chip", has_text="cancelled").wait_for()
    assert shop.desk.watch(A)[0] == b"c"


@pytest.mark.long
def test_hosts_show_what_runs_where(shop: Shop, shown: Any) -> None:
    shown.get_by_role("link", name="Hosts").click()
    shown.get_by_role("heading", name="host-a").wait_for()
    assert "2 of 8 places used" in shown.locator("main").inner_text()
    shop.installation.fleet.offer(HostRecord("a-1", "host-a", 1))
    shown.get_by_text("all of 1 place used, and 1 replica more").wait_for(timeout=WITHIN_MS)
    check_with_axe(shown)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_hosts_show_the_bytes_and_the_age_of_large_values_by_store_on_a_phone_too(
    shop: Shop, page: Any, scheme: str
) -> None:
    numbers = {"payload_values": 3, "payload_bytes": 5 << 20, "payload_oldest_seconds": 90, "payload_fallbacks": 2}
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme=scheme)
    shop.deploy()
    enter(shop, page)
    view(page, "#/hosts")
    page.get_by_role("heading", name="host-a").wait_for()
    assert page.get_by_text("Large values").count() == 0

    shop.publish("a-1", {name: Family(TABLE[name], {(HOSTILE,): value}) for name, value in numbers.items()})

    stored = page.get_by_role("list", name="Large values on host-a")
    stored.get_by_text("3 values · 5.0 MiB · the oldest for 90 s · 2 found no room").wait_for(timeout=3 * WITHIN_MS)
    assert HOSTILE in stored.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    check_with_axe(page)


# -- what must not happen ------------------------------------------------------------------------------


@pytest.mark.long
def test_hostile_names_and_texts_are_text_and_never_markup(shop: Shop, page: Any) -> None:
    page.is_noisy = True  # a browser logs the 404 of the request
    shop.deploy("shop", (f"Step{HOSTILE}", "Rank"))
    shop.fail(A, HOSTILE, f"Traceback {HOSTILE}")
    shop.report("shop", "Rank", "v1", FAILED, HOSTILE)
    enter(shop, page)
    page.get_by_text(HOSTILE).first.wait_for()
    page.locator(".node").first.click()
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    views = (
        "dead-letters",
        f"dead-letters/{A}",
        "hosts",
        "requests",
        f"requests/{HOSTILE}",
        f"app/{HOSTILE}",
        "app/%E0%A4%A",
    )
    for hash_ in (f"#/{name}" for name in views):
        view(page, hash_)
        page.locator("main > *").first.wait_for()
    view(page, f"#/dead-letters/{A}")
    page.get_by_text(f"Traceback {HOSTILE}").wait_for()

    assert page.locator("img:not(.brand img)").count() == 0


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark(shop: Shop, page: Any, scheme: str) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme=scheme)
    shop.deploy()
    shop.queue("Rank", 3)
    enter(shop, page)
    page.locator('.node[data-state="held"]').wait_for()

    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    check_with_axe(page)
