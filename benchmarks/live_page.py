#!/usr/bin/env python3
"""Measure what the live page costs: a gateway process, a browser, and the requests that are served meanwhile.

    python benchmarks/live_page.py [--nodes 50 200 500] [--seconds 8] [--viewers 8] [--rounds 6]

The pictures are synthetic: every number of every step changes with each look, as under 10,000 requests a second. For
each size it prints the processor time that a gateway process spends on a picture, what it sends to each viewer, and
what a headless Chromium does with it. Then it compares the throughput of a real chain with viewers and without, in
turns within one run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harness.load import answers, over_http, posting
from harness.processes import free_port, wait_until
from synthetic import graph_of, picture_at

TOKEN = "a-token-for-the-benchmark"
CONNECTIONS = 16
SEND = posting(b"5", b"9")


def serve_synthetic(nodes: int, port: int) -> None:
    """Serve the page of a graph of so many steps; this is the child process."""
    from gevent import monkey

    monkey.patch_all()
    from gevent.pywsgi import WSGIServer
    from qserve_gateway.handler import handle
    from qserve_gateway.ui.feed import Feed
    from qserve_gateway.ui.page import Ui
    from qserve_gateway.ui.sessions import ACT, Sessions

    from qserve.base.settings import Settings
    from qserve.deploy.installation import Installation

    graph, began = graph_of(nodes), time.monotonic()
    feed = Feed(lambda: picture_at(graph, time.monotonic() - began))
    page = Ui(Sessions({ACT: TOKEN.encode()}), Installation(Settings(broker_url="redis://127.0.0.1:1")), feed)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        return handle(environ, page.serve, None)(environ, start_response)

    WSGIServer(("127.0.0.1", port), app, log=None).serve_forever()


def measure_feed(nodes: int) -> None:
    """Print what a picture costs in a gateway process, without the reading."""
    from qserve_gateway.ui.feed import Feed

    graph = graph_of(nodes)
    pictures = [picture_at(graph, number / 2) for number in range(20)]
    feed = Feed(lambda: pictures[0])
    began = time.monotonic()
    feed._parts_of(pictures[0])
    first_ms = (time.monotonic() - began) * 1000
    began = time.process_time()
    found = [feed._parts_of(picture) for picture in pictures]
    each_ms = (time.process_time() - began) * 1000 / len(pictures)
    changing = len(found[-1]["application", "synthetic"]) + len(found[-1]["now", ""])
    once = sum(map(len, found[-1].values())) - changing
    print(
        f"{nodes} steps: the layout {first_ms:.0f} ms once; then {each_ms:.1f} ms of the processor and"
        f" {changing / 1024:.0f} KiB for each viewer, twice a second ({once / 1024:.0f} KiB once)"
    )


def measure_browser(nodes: int, seconds: float) -> None:
    """Print what a browser does with two pictures a second."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    port = free_port()
    command = [sys.executable, __file__, "--serve", str(nodes), "--port", str(port)]
    process = subprocess.Popen(command)
    try:
        with sync_playwright() as started:
            browser = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
            page = browser.new_page()
            for _ in range(100):
                try:
                    page.goto(f"http://127.0.0.1:{port}/-/ui#token={TOKEN}")
                    break
                except Exception:
                    time.sleep(0.1)
            page.locator(".node").nth(nodes - 1).wait_for()
            page.evaluate("""() => {
                window.gaps = []; let last = performance.now();
                const turn = (now) => { window.gaps.push(now - last); last = now; requestAnimationFrame(turn); };
                requestAnimationFrame(turn);
            }""")
            client = page.context.new_cdp_session(page)
            client.send("Performance.enable")

            def counted() -> dict[str, float]:
                return {one["name"]: one["value"] for one in client.send("Performance.getMetrics")["metrics"]}

            before = counted()
            time.sleep(seconds)
            after = counted()
            gaps = sorted(page.evaluate("window.gaps"))
            share = {
                name: 100 * (after[name] - before[name]) / seconds
                for name in ("TaskDuration", "ScriptDuration", "LayoutDuration")
            }
            print(
                f"{nodes} steps in a browser: its thread is busy {share['TaskDuration']:.0f} % of the time (scripts"
                f" {share['ScriptDuration']:.0f} %, layout {share['LayoutDuration']:.0f} %), the longest wait for a"
                f" frame {gaps[-1]:.0f} ms, heap {after['JSHeapUsedSize'] / 2**20:.0f} MiB"
            )
            browser.close()
    finally:
        process.kill()
        process.wait()


def rate(port: int, seconds: float, viewers: int) -> float:
    """Return the requests per second of the chain while so many look."""
    with ExitStack() as cleanup:
        if viewers:
            base, headers = f"http://127.0.0.1:{port}/-/ui", {"x-qserve-ui": "1", "content-type": "application/json"}
            body = f'{{"token": "{TOKEN}"}}'.encode()
            with urllib.request.urlopen(urllib.request.Request(f"{base}/session", body, headers)) as signed_in:
                cookie = signed_in.headers["set-cookie"].partition(";")[0]
            watch = (
                "import sys, threading, urllib.request\n"
                f"def look():\n  r = urllib.request.Request('{base}/events', headers={{'cookie': sys.argv[1]}})\n"
                "  for line in urllib.request.urlopen(r): pass\n"
                f"for _ in range({viewers}): threading.Thread(target=look).start()\n"
            )
            looking = subprocess.Popen([sys.executable, "-c", watch, cookie], stderr=subprocess.DEVNULL)
            cleanup.callback(looking.wait)
            cleanup.callback(looking.kill)
            time.sleep(1)
        return over_http(port, SEND, CONNECTIONS, seconds).rate


def measure_chain(seconds: float, viewers: int, rounds: int) -> None:
    """Print the throughput of a chain with viewers and without, and the median of their ratios."""
    port = free_port()
    command = [sys.executable, "-m", "qserve", "run", "compared_qserve:chain", "--port", str(port)]
    env = {**os.environ, "QSERVE_UI_TOKEN": TOKEN}
    process = subprocess.Popen(command, cwd=Path(__file__).parent / "apps", env=env, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: answers(port, SEND), "the chain answers", 60.0)
        rate(port, seconds, 0)
        ratios = []
        for number in range(rounds):
            order = (viewers, 0) if number % 2 else (0, viewers)
            found = {count: rate(port, seconds, count) for count in order}
            ratios.append(found[viewers] / found[0])
            print(f"{viewers} viewers {found[viewers]:6.0f}/s  none {found[0]:6.0f}/s  ratio {ratios[-1]:.3f}")
        low, median, high = statistics.quantiles(ratios, n=4)
        print(f"median of the ratios {median:.3f}, quartiles {low:.3f} and {high:.3f}")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def main() -> None:
    """Measure all three."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="*", default=[50, 200, 500])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--viewers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_synthetic(options.serve, options.port)
        return
    for nodes in options.nodes:
        measure_feed(nodes)
    for nodes in options.nodes:
        measure_browser(nodes, options.seconds)
    if options.rounds:
        measure_chain(options.seconds / 2, options.viewers, options.rounds)


if __name__ == "__main__":
    main()
