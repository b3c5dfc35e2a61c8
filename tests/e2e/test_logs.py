"""The logs of real roles, in both formats: a line for an event, and no client or exception can write one of its own."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from http_client import Client
from processes import READY, Process, Site, free_port, new_site, wait_until

APP = r"""
import ctypes
import logging
import qserve

FORGED = "\r\n12:00:00 ERROR [gateway] FORGED by {}\x1b[2J"

@qserve.deployment
class Forger:
    async def __call__(self, request):
        what = request.url.path.rpartition("/")[2]
        if what == "raise":
            raise ValueError(FORGED.format("an exception"))
        if what == "log":
            logging.getLogger("shop").warning("%s", FORGED.format("user code"))
        if what == "segfault":
            ctypes.string_at(0)
        return self.items() if what == "stream" else "fine"

    async def items(self):
        yield "first"
        raise ValueError(FORGED.format("a stream"))

app = Forger.bind()
"""
EVENT = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} (DEBUG|INFO|WARNING|ERROR|CRITICAL) \[[A-Za-z]+( [0-9a-f]{32})?\] "
)
DUMP = re.compile(
    r"$|Fatal Python error: |(Current thread|Thread) 0x|  (File \"|\.\.\.|<)|Extension modules: |  Garbage"
)
"""What the interpreter itself writes when user code crashes it; nothing of ours runs any more to give it a form."""


class Place:
    """A served application.

    Parameters:
      log_format: What ``QSERVE_LOG_FORMAT`` is set to.
    """

    def __init__(self, site: Site, log_format: str) -> None:
        self.port = free_port()
        site.write("forger.py", APP)
        env = {"QSERVE_LOG_FORMAT": log_format, "QSERVE_ACCESS_LOG": "1"}
        self.process: Process = site.qserve("run", "forger:app", "--port", str(self.port), env=env)
        self.process.wait_for(READY)
        client = Client(self.port)
        for path in ("/a%0d%0a12:00:00%20ERROR%20[gateway]%20FORGED%20by%20a%20path%1b", "/raise", "/log", "/segfault"):
            client.get(path)
        with pytest.raises(http.client.IncompleteRead):
            client.get("/stream")
        (gateway,) = [pid for pid, command in site.processes().items() if command.startswith("qserve gateway server")]
        os.kill(gateway, signal.SIGKILL)
        for what in ("a path", "an exception", "user code", "a stream", "SIGSEGV", "SIGKILL"):
            wait_until(lambda what=what: what in self.process.stderr, description=f"{what} is logged")  # type: ignore[misc]
        self.kept = wait_until(lambda: self._kept(site, "a stream"), description="the lines are kept")
        self.process.stop()
        assert self.process.exit_code() == 0, self.process.output

    def _kept(self, site: Site, what: str) -> str:
        """What `qserve logs` shows, once it shows this."""
        shown = site.qserve("logs", "default")
        assert shown.wait() == 0, shown.output
        return shown.stdout if what in shown.stdout else ""


# tests/base/test_log.py has both formats
@pytest.fixture(scope="module", params=[pytest.param("text", marks=pytest.mark.long), "json"])
def place(request: pytest.FixtureRequest) -> Iterator[tuple[str, str, str]]:
    with new_site() as site:
        place = Place(site, request.param)
        yield request.param, place.process.stderr, place.kept


@pytest.mark.slow
def test_every_line_is_an_event_or_belongs_to_one(place: tuple[str, str, str]) -> None:
    log_format, log, _ = place
    assert "\x1b" not in log
    assert "\r" not in log
    written = [line for line in log.splitlines() if not DUMP.match(line)]
    if log_format == "json":
        events: list[dict[str, Any]] = [json.loads(line) for line in written]
        assert {one["source"] for one in events} >= {"gateway", "supervisor", "Forger"}
        (raised,) = [one for one in events if "an exception" in one["message"] and one["source"] == "Forger"]
        assert "raise ValueError(FORGED" in raised["traceback"]
        assert len(raised["request_id"]) == 32
        assert raised["deployment"] == raised["component_name"].replace("replica", "Forger") == "Forger"
        (access,) = [one for one in events if one["logger"] == "qserve.access" and one["path"] == "/raise"]
        assert access.items() >= {"method": "GET", "status": 500, "request_id": raised["request_id"]}.items()
        assert access["latency_ms"] > 0
        assert access["client"] == "127.0.0.1"
        return
    lines = written
    strangers = [line for line in lines if not EVENT.match(line) and not line.startswith("    ")]
    assert not strangers
    assert len([line for line in lines if "FORGED by" in line]) >= 4
    assert not [line for line in lines if line.startswith("12:00:00 ERROR [gateway] FORGED")]


@pytest.mark.slow
def test_the_lines_of_replicas_and_what_their_worker_says_of_them_are_kept_for_qserve_logs(
    place: tuple[str, str, str],
) -> None:
    _, _, kept = place
    line = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "

    assert re.search(line + r"ERROR \[Forger-\S+ [0-9a-f]{32}\] .*FORGED by a stream", kept, re.MULTILINE), kept
    assert re.search(r"^    12:00:00 ERROR \[gateway\] FORGED by a stream", kept, re.MULTILINE), kept
    assert re.search(line + r"WARNING \[\S+\] replica Forger-\S+ of Forger died \(SIGSEGV", kept, re.MULTILINE), kept
    assert not re.search(r"\x1b|\r", kept)
