"""A headless Chromium, and a page in it that must ask no other host and write nothing to its console."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that may ask no other host, and whose console stays empty unless ``page.is_noisy`` is set."""
    said, asked = list[str](), list[str]()
    context = browser.new_context()
    page = context.new_page()
    page.is_noisy = False
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("response", lambda response: asked.append(response.url))
    yield page
    context.close()
    assert page.is_noisy or not said
    assert not [url for url in asked if not url.startswith(("http://127.0.0.1:", "data:"))]
