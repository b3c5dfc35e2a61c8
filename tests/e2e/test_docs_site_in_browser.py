"""The documentation as a site, in a browser: it asks no other host, is quiet, and its search finds names."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from browsers import browser, page  # noqa: F401

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.long]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None: ...


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of the site, which `make docs` builds."""
    pytest.importorskip("zensical", reason="pip install '.[site]'")
    subprocess.run([sys.executable, "tools/docs_site.py"], cwd=ROOT, check=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=ROOT / "build" / "site"))
    threading.Thread(target=server.serve_forever).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", ["/", "/guide/", "/reference/call/", "/architecture/", "/live-page/"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_asks_no_other_host_and_is_quiet(site: str, page: Any, path: str, scheme: str) -> None:  # noqa: F811
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{site}{path}", wait_until="networkidle")

    assert page.locator("h1").count() == 1


def test_the_search_finds_a_name_of_the_reference(site: str, page: Any) -> None:  # noqa: F811
    page.goto(site, wait_until="networkidle")
    page.keyboard.press("Control+k")
    page.keyboard.type("submit_many")

    page.get_by_role("option", name="Client.submit_many").first.wait_for()
