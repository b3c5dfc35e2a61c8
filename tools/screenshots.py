#!/usr/bin/env python3
"""Take the screenshots of the live page that the README and the tutorial show, of real runs under load.

    python tools/screenshots.py [FOLDER]      (docs/images; needs Chromium, playwright and scikit-learn)

It serves a graph of six steps, one of which is too slow for the load, and sends requests for some seconds. The files
show the graph, in light and dark and on a phone, and the waterfall of a request, one of whose steps was tried again.
Then it does what page 3 of the tutorial says, with the application of page 2.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PORT = 8123
PROGRAM = """
import asyncio, qserve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.http_adapters import json_request

tried = set()


def step(name, seconds, **options):
    async def work(*values):
        if name == "Embed" and values[0].get("flaky") and "flaky" not in tried:
            tried.add("flaky")
            await asyncio.sleep(seconds)
            raise ConnectionError("the index is away")
        await asyncio.sleep(seconds)
        return values[0]

    work.__name__ = name
    return qserve.deployment(name=name, **options)(work)


Decode = step("Decode", 0.012)
Detect = step("Detect", 0.25, num_replicas=2, max_concurrent_queries=2)
Embed = step("Embed", 0.04, num_replicas=2, max_concurrent_queries=8, max_retries=2, retry_backoff_s=0.15)
Caption = step("Caption", 0.09, max_concurrent_queries=6)
Search = step("Search", 0.02)
Rank = step("Rank", 0.015)

with InputNode() as photo:
    image = Decode.bind(photo)
    found = Search.bind(Embed.bind(image))
    result = Rank.bind(Detect.bind(image), found, Caption.bind(image))
app = DAGDriver.options(name="photos").bind(result, http_adapter=json_request)
"""
_LOAD_PER_S = 18.0
_LOAD_S = 22.0


def send(payload: bytes, **headers: str) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/", payload, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return str(response.headers["x-qserve-request-id"])


def load(is_over: threading.Event) -> None:
    """Send requests at a steady pace, whose answers nobody waits for."""
    while not is_over.is_set():
        began = time.monotonic()
        send(b'{"photo": 1}', Prefer="respond-async")
        is_over.wait(max(0.0, 1 / _LOAD_PER_S - (time.monotonic() - began)))


def picture(page: Any, path: Path, **options: Any) -> None:
    page.mouse.move(0, 0)
    page.screenshot(path=path, **options)
    print(path)


def browser_of(started: Any) -> Any:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    return started.chromium.launch(executable_path=found, args=["--no-sandbox"])


def take_tutorial(url: str, folder: Path, path: Path) -> None:
    """Take the picture of page 3, while its program sends images again and again."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = browser_of(started)
        page = browser.new_page(viewport={"width": 1280, "height": 640})
        page.goto(url)
        again = f"trap 'exit' TERM; while {sys.executable} load.py; do :; done"
        sending = subprocess.Popen(["sh", "-c", again], cwd=folder)
        time.sleep(10)  # rates and latencies are those of the last seconds
        page.locator('.node[data-state="held"]').wait_for(timeout=60_000)
        picture(page, path)
        sending.terminate()
        sending.wait()
        browser.close()


def take(url: str, folder: Path, traced: str) -> None:
    """Take the pictures."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = browser_of(started)
        is_over = threading.Event()
        sending = threading.Thread(target=load, args=(is_over,), daemon=True)
        sending.start()
        views = {
            "live-page": {"viewport": {"width": 1280, "height": 900}},
            "live-page-dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
            "live-page-phone": {"viewport": {"width": 390, "height": 844}},
        }
        pages = {}
        for name, options in views.items():
            pages[name] = browser.new_context(**options).new_page()
            pages[name].goto(url)
        time.sleep(_LOAD_S)
        for name, page in pages.items():
            page.locator('.node[data-state="held"]').wait_for()
            picture(page, folder / f"{name}.png")
        is_over.set()
        sending.join()
        page = pages["live-page"]
        page.evaluate("hash => { location.hash = hash }", f"#/requests/{traced}")
        page.locator(".waterfall .bar").first.wait_for()
        picture(page, folder / "waterfall.png", clip={"x": 0, "y": 0, "width": 1280, "height": 690})
        browser.close()


@asynccontextmanager
async def serving(folder: Path, *arguments: str) -> AsyncIterator[str]:
    """Serve an application, and yield the link to its live page."""
    command = [sys.executable, "-m", "qserve", "run", *arguments, "--port", str(PORT)]
    process = await asyncio.create_subprocess_exec(*command, cwd=folder, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        said = ""
        while "ready in" not in said:
            said += (await process.stdout.readline()).decode()
        link = re.search(r"http\S+#token=\w+", said)
        assert link is not None, said
        yield link[0]
    finally:
        process.terminate()
        await process.wait()


async def serve(folder: Path, pictures: Path) -> None:
    (folder / "photos.py").write_text(PROGRAM)
    async with serving(folder, "photos:app", "--name", "photos") as link:
        traced = await asyncio.to_thread(
            lambda: send(b'{"photo": 1, "flaky": true}', **{"Prefer": "respond-async", "X-Qserve-Trace": "1"})
        )
        await asyncio.to_thread(take, link, pictures, traced)
    for page in ("index", "2-two-models", "3-batches"):
        text = (ROOT / "docs" / "tutorial" / f"{page}.md").read_text()
        for name, listing in re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", text, re.S | re.M):
            if (page, name) != ("3-batches", "digits.py"):
                (folder / name).write_text(listing.replace("8000", str(PORT)))
    async with serving(folder, "digits:app") as link:
        await asyncio.to_thread(take_tutorial, link, folder, pictures / "tutorial-live-page.png")


if __name__ == "__main__":
    pictures = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs" / "images").absolute()
    pictures.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(serve(Path(folder), pictures))
