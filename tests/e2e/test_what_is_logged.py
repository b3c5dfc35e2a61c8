"""What the roles of an installation log: one stack, run once with faults, and what an operator finds in its logs."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from http_client import Client
from processes import Site, free_port, new_site, wait_until
from roles import Roles

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SHOP = """
import asyncio
import os
import time
import qserve

@qserve.deployment(max_retries=1, retry_backoff_s=0.01)
class Retried:
    def work(self):
        raise ValueError("it cannot")

@qserve.deployment
class Inner:
    def wrong(self):
        raise MemoryError

    def dies(self):
        os._exit(3)

    def sleeps(self):
        time.sleep(60)

@qserve.deployment
class Middle:
    def __init__(self, inner):
        self.inner = inner

    async def call(self, what):
        return await getattr(self.inner, what).remote()

@qserve.deployment(num_replicas=3)
class Front:
    def __init__(self, middle, retried):
        self.middle, self.retried = middle, retried

    async def __call__(self, request):
        what = request.query_params.get("what", "")
        if what == "json":
            return await request.json()
        if what == "waits":
            return await asyncio.sleep(60)
        if what == "retried":
            return await self.retried.work.remote()
        return await self.middle.call.remote(what) if what else "fine"

app = Front.bind(Middle.bind(Inner.bind()), Retried.bind())
"""
EVENT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} ([A-Z]+) \[(\S+)(?: (\S+))?\] (.*)")


class Lines:
    """What the worker and the gateway have logged.

    Parameters:
      texts: Their standard error.
    """

    def __init__(self, *texts: str) -> None:
        self.text = "".join(texts)
        self.events = [found.groups() for line in self.text.splitlines() if (found := EVENT.match(line))]

    def of(self, request_id: str) -> list[tuple[str, str, str]]:
        """Level, source and message of the lines in which one `grep` finds a request."""
        return [(level, source, text) for level, source, found, text in self.events if found == request_id]

    def about(self, pattern: str) -> list[str]:
        """Level and message of the lines that match."""
        return [f"{level} {text}" for level, _, _, text in self.events if re.search(pattern, text)]


class Stack:
    """The stack after all that happens to it.

    Attributes:
      well: What was logged until it was served.
      lines: What was logged from then on until it was well again.
      ended: What was logged from the stop on.
      titles: What `ps` shows.
      letters: The dead letters of two requests, as they are found by the IDs of their clients.
    """

    def __init__(self, site: Site) -> None:
        self.port = free_port()
        kept = ("--appendonly", "yes", "--dir", str(site.folder))
        site.start_broker(self.port, *kept)
        env = {"QSERVE_BROKER_URL": f"redis://127.0.0.1:{self.port}", "QSERVE_STALL_LIMIT_S": "1"}
        self.roles = roles = Roles(site, SHOP, env)
        self.worker, self.gateway = roles.worker("--places", "8"), roles.gateway()
        self.deployed = roles.deploy()
        assert self.deployed.wait() == 0, self.deployed.output + self.worker.output
        self.client = Client(roles.port)
        wait_until(self.client.is_healthy, description="it is healthy")
        self.worker.wait_for("is served")
        self.titles = "\n".join(site.processes().values())
        self.well, begun = self._logged((0, 0)), self._so_far()
        self._ask("fine", "/")
        self._ask("wrong", "/?what=wrong")
        self._ask("json", "/?what=json")
        self._ask("no-page", "/-/favicon.ico")
        self._ask("timeout", "/", **{"x-request-timeout-seconds": "none"})
        self._ask("retried", "/?what=retried")
        self._ask("dies", "/?what=dies")
        self.letters = {name: self._letter(f"client-{name}") for name in ("retried", "dies")}
        self._ask("late", "/?what=sleeps", **{"x-request-timeout-seconds": "0.5"})
        self.worker.wait_for("still runs")
        self._leave("left", "/?what=waits")
        self.gateway.wait_for("client-left")
        broker = next(pid for pid, command in site.processes().items() if f":{self.port}" in command)
        os.kill(broker, signal.SIGKILL)
        for process in (self.worker, self.gateway):
            process.wait_for("the broker cannot be reached")
        site.start_broker(self.port, *kept)
        for process in (self.worker, self.gateway):
            process.wait_for("the broker answers again")
        wait_until(lambda: self._replicas(site) == 6, description="all replicas are there again")
        self.lines, begun = self._logged(begun), self._so_far()
        for process in (self.worker, self.gateway):
            process.stop()
        self.ended = self._logged(begun)

    def _replicas(self, site: Site) -> int:
        return sum(title.startswith("qserve replica ") for title in site.processes().values())

    def _so_far(self) -> tuple[int, int]:
        return len(self.worker.stderr), len(self.gateway.stderr)

    def _logged(self, begun: tuple[int, int]) -> Lines:
        return Lines(self.worker.stderr[begun[0] :], self.gateway.stderr[begun[1] :])

    def _ask(self, name: str, path: str, **headers: str) -> None:
        self.client.get(path, **{"x-request-id": f"client-{name}", **headers})

    def _leave(self, name: str, path: str) -> None:
        """Send a request, and close the connection before the response."""
        with socket.create_connection(("127.0.0.1", self.roles.port)) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: client-{name}\r\n\r\n".encode())

    def _letter(self, request_id: str) -> dict[str, Any]:
        shown = self.roles.command("dlq", "show", request_id, "--json")
        assert shown.wait() == 0, shown.output
        found: dict[str, Any] = json.loads(shown.stdout)
        return found


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with new_site() as site:
        yield Stack(site)


def test_a_stack_that_is_well_says_what_starts_and_is_served_and_nothing_else(stack: Stack) -> None:
    assert stack.well.about(r"^the worker of host \S+ starts \(qserve [\d.]+, process \d+\), with the broker at 127")
    assert stack.well.about(rf"^the gateway listens on 127.0.0.1 port {stack.roles.port} \(qserve [\d.]+, process \d+")
    started = stack.well.about(r"^replica \S+ takes calls, of version \w+, started in [\d.]+ s \(process \d+\)$")
    assert len(started) == 1 + 1 + 1 + 3
    served = stack.well.about(r"^application 'default'(: version \w+ is served| is served at /, version \w+)$")
    assert len(served) == 2, "by the worker and the gateway"
    assert len(stack.well.events) == len(stack.well.text.splitlines()) == 2 + len(started) + len(served)
    assert re.search(
        r"^qserve: application 'default' is served at /: version \w+; 4 deployments, 6 replicas, in [\d.]+ s$",
        stack.deployed.stdout,
        re.MULTILINE,
    )
    assert stack.lines.of("client-fine") == []


def test_each_process_shows_its_role_and_its_deployment(stack: Stack) -> None:
    for title in ("qserve worker ", f"qserve gateway 127.0.0.1:{stack.roles.port}", "qserve gateway server"):
        assert title in stack.titles
    for deployment in ("Front", "Middle", "Inner", "Retried"):
        assert f"qserve replica default:{deployment} {deployment}-" in stack.titles


def test_an_error_of_user_code_is_one_traceback_and_a_line_where_it_passes(stack: Stack) -> None:
    assert stack.lines.of("client-wrong") == [
        ("ERROR", "Inner", "wrong failed: MemoryError"),
        ("INFO", "Middle", "call failed with the error of Inner: MemoryError"),
        ("INFO", "Front", "__call__ failed with the error of Inner: MemoryError"),
        ("ERROR", "gateway", "GET / 500 user_code_failed: MemoryError (of deployment 'Inner')"),
    ]
    assert stack.lines.text.count("    MemoryError\n") == 1
    assert stack.lines.text.count("Traceback (most recent") == 2, "that of MemoryError, and that of the dead letter"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("json", {"Front": "__call__ failed, a mistake of the client: InvalidJSON: it is empty",
                  "gateway": "GET / 400 invalid_json: the request body is not valid JSON: it is empty"}),
        ("no-page", {"gateway": "GET /-/favicon.ico 404 not_found: Not Found"}),
        ("timeout", {"gateway": "GET / 400 invalid_deadline: "}),
        ("left", {"gateway": "GET / 499 cancelled: the client closed the connection"}),
    ],
)  # fmt: skip
def test_a_mistake_of_a_client_is_one_line_at_info(stack: Stack, name: str, said: dict[str, str]) -> None:
    found = {source: text for _, source, text in stack.lines.of(f"client-{name}") if "has to end" not in text}
    assert {level for level, _, _ in stack.lines.of(f"client-{name}")} == {"INFO"}
    assert found.keys() == said.keys()
    assert all(found[source].startswith(text) for source, text in said.items()), found


def test_a_retry_and_its_dead_letter_are_found_by_the_id_of_the_client(stack: Stack) -> None:
    letter, lines = stack.letters["retried"], stack.lines.of("client-retried")
    assert [(level, source) for level, source, _ in lines] == [
        ("WARNING", "Retried"), ("ERROR", "Retried"), ("INFO", "Front"), ("ERROR", "gateway"),
    ]  # fmt: skip
    assert re.fullmatch(r"work failed \(try 1\), again in [\d.]+ s: ValueError: it cannot", lines[0][2])
    shown = f"(retries: qserve dlq show {letter['request_id']})"
    assert lines[1][2] == f"work is a dead letter {shown}: ValueError: it cannot"
    assert letter["client_id"] == "client-retried"
    assert letter["payload"] == ["[[], {}]"]


def test_what_becomes_of_the_call_of_a_dead_replica_is_found_by_the_id_of_the_client(stack: Stack) -> None:
    lines = stack.lines.of("client-dies")
    taken = [text for _, source, text in lines if source == "supervisor"]
    assert [text.rpartition("; ")[2] for text in taken] == [
        "it runs again", "it runs again", "that was its replica no. 3: it is given up",
    ]  # fmt: skip
    assert all("(exit code 3: its user code, or a library of that, has ended the process)" in text for text in taken)
    lost = "a replica of deployment 'Inner' died 3 times while it ran this call"
    assert ("ERROR", "gateway", f"GET / 500 replica_lost: {lost}") in lines
    assert stack.letters["dies"]["client_id"] == "client-dies"


def test_a_deadline_and_the_stall_behind_it_are_found_with_the_place_in_user_code(stack: Stack) -> None:
    lines = stack.lines.of("client-late")
    assert ("WARNING", "gateway", "GET / 504 deadline_exceeded: the request did not finish within 0.5 s") in lines
    assert ("INFO", "Front", "__call__ has to end: its deadline has passed") in lines
    (stall,) = [text for level, source, text in lines if (level, source) == ("ERROR", "Inner")]
    assert re.search(r"^sleeps still runs 1 s after .*, at /\S+/shop.py:21 in sleeps, and is stopped$", stall)


def test_a_broker_that_is_away_is_said_once_by_each_role_with_its_end(stack: Stack) -> None:
    begun = [text for text in stack.lines.about("cannot be reached") if "; trying again" in text]
    ended = stack.lines.about(r"^the broker answers again after [\d.]+ s, and ")
    assert (len(begun), len(ended)) == (2, 2), (begun, ended)
    assert len(stack.lines.about("the connection to the broker was lost")) <= 1


def test_each_end_is_a_line_with_its_cause(stack: Stack) -> None:
    assert len(stack.ended.about(r"^replica \S+ of \w+ has ended \(its worker ends\)$")) == 6
    assert stack.ended.about("^the worker has ended$") == ["INFO the worker has ended"]
    assert stack.ended.about("^the gateway has ended$") == ["INFO the gateway has ended"]
