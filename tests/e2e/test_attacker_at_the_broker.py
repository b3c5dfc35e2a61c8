"""Somebody may write to the broker and has no key: nothing that they write is believed, and nothing stops."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from commands import told
from http_client import Answer, Client
from processes import Process, Site, is_alive, new_site, wait_until
from roles import Roles

from qserve.base.keys import GROUP, Keys
from qserve.http.render import render
from qserve.wire.envelope import Answer as Form
from qserve.wire.failure import Failure

pytestmark = pytest.mark.slow
SHOP = """
import asyncio, os
import qserve
from fastapi.responses import StreamingResponse

@qserve.deployment(max_retries=1, graceful_shutdown_timeout_s=1)
class Shop:
    async def __call__(self, request):
        question = await request.json()
        await asyncio.sleep(question.get("seconds", 0))
        if question.get("items"):
            return StreamingResponse(self.items(question["items"]))
        if question.get("fail"):
            raise ValueError("no")
        return {"pid": os.getpid()}

    async def items(self, count):
        for number in range(count):
            await asyncio.sleep(0.2)
            yield str(number)

app = Shop.bind()
"""
MINE = "the attacker's"
FORGED = Failure(
    "starlette.exceptions", "HTTPException", MINE, deployment="Shop", is_answer=True,
    attributes={"status_code": 200, "detail": MINE, "headers": {"x-mine": MINE}},
).encode()  # fmt: skip
STRANGE = b"\xff\xfe\x1b[2J"


class Attacked(Roles):
    """An installation, and the attacker's connection to its broker."""

    def __init__(self, site: Site) -> None:
        url = site.broker()
        fast = {"QSERVE_LEASE_S": "2", "QSERVE_SECRET_KEY": "a-key-that-the-attacker-does-not-have"}
        super().__init__(site, SHOP, {"QSERVE_BROKER_URL": url, **fast})
        self.redis: Any = redis.Redis.from_url(url)
        self.keys = Keys()
        self.http = Client(self.port)
        self.worker_process, self.gateway_process = self.start()

    def ask(self, **question: Any) -> Answer:
        return self.http.post("/", question)

    def pid(self) -> int:
        answer = self.ask()
        assert answer.status == 200, answer
        return int(answer.json["pid"])

    def mailbox(self) -> bytes:
        """The key of the gateway's mailbox, which a waiter of a request names."""
        with_mailbox = self.http.post("/", {"seconds": 3}, Prefer="respond-async").headers["x-qserve-request-id"]
        found: bytes = self.redis.hget(self.keys.request(with_mailbox), "to")
        return found

    def start_job(self) -> str:
        answer = self.http.post("/", {"seconds": 1}, Prefer="respond-async")
        assert answer.status == 202
        return answer.headers["x-qserve-request-id"]

    def job(self, request_id: str) -> Answer:
        return self.http.get(f"/-/requests/{request_id}", Prefer="wait=5")

    def queue(self) -> str:
        """The key of the queue of the active version."""
        waiting = self.redis.scan_iter("{qserve}:q:*", _type="stream")
        found = {key.decode(): self.redis.xinfo_groups(key) for key in waiting}
        return max(found, key=lambda key: sum(group["consumers"] for group in found[key]))

    def states(self) -> dict[str, int]:
        """The replicas of the application in each state, as ``qserve status`` shows them."""
        shop = json.loads(told("status", "--json", env=self.env))["applications"]["default"]["deployments"]["Shop"]
        found: dict[str, int] = shop["replica_states"]
        return found

    def logs(self) -> str:
        return self.worker_process.output + self.gateway_process.output

    def overwrite(self, key: str | bytes, kind: str) -> None:
        with self.redis.pipeline() as act:  # who created it again in between would keep it from being overwritten
            act.delete(key)
            WRITERS[kind](act, key)
            act.execute()


WRITERS: dict[str, Callable[[Any, Any], object]] = {
    "string": lambda client, key: client.set(key, STRANGE),
    "list": lambda client, key: client.rpush(key, STRANGE),
    "hash": lambda client, key: client.hset(key, STRANGE, STRANGE),
    "set": lambda client, key: client.sadd(key, STRANGE),
    "zset": lambda client, key: client.zadd(key, {STRANGE: 1}),
    "stream": lambda client, key: client.xadd(key, {STRANGE: STRANGE}),
}


@pytest.fixture(scope="module")
def attacked() -> Iterator[Attacked]:
    with attacked_site() as installation:
        yield installation


@pytest.fixture
def quiet() -> Iterator[Attacked]:
    """An installation of its own: other tests overwrite whole keys."""
    with attacked_site() as installation:
        yield installation


@contextlib.contextmanager
def attacked_site() -> Iterator[Attacked]:
    with new_site() as site:
        installation = Attacked(site)
        yield installation
        logs = installation.logs()
        installation.redis.close()
    assert "Traceback" not in logs.replace("ValueError: no", ""), logs


@pytest.fixture(autouse=True)
def it_still_serves(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "attacked" not in request.fixturenames:
        return
    attacked = request.getfixturevalue("attacked")
    assert attacked.worker_process.exit_code() is attacked.gateway_process.exit_code() is None
    wait_until(lambda: attacked.ask().status == 200, description="requests are answered again")


@pytest.mark.parametrize("state", [b"z", b"i", b"a", b"dd", b"", b"\xff", b"f", b"d", b"c", b"x", b"d\0", b"ff"])
def test_an_end_that_is_not_sealed_is_an_error_for_whoever_asks(attacked: Attacked, state: bytes) -> None:
    for payload in (FORGED, render(MINE, Form.PLAIN), b"", STRANGE, b"9" * 18):
        request_id = attacked.start_job()
        attacked.redis.hset(attacked.keys.request(request_id), mapping={"st": state, "res": payload})

        answer = attacked.http.get(f"/-/requests/{request_id}")

        assert (answer.status, answer.code) == (500, "bad_payload"), answer
        assert MINE.encode() not in answer.body + repr(answer.headers).encode()


def test_a_message_that_is_not_sealed_is_an_error_for_its_caller(attacked: Attacked) -> None:
    request_id, mailbox = attacked.start_job(), attacked.mailbox()
    for state in (b"d", b"f", b"z", b"i", b"\xff"):
        attacked.redis.rpush(mailbox, request_id.encode() + state + FORGED, STRANGE, b"")

    answer = attacked.job(request_id)

    assert MINE not in answer.text
    assert answer.status in (200, 500)


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind != "list"])
def test_a_mailbox_that_was_overwritten_costs_no_answer_its_deadline(attacked: Attacked, kind: str) -> None:
    attacked.overwrite(attacked.mailbox(), kind)

    answers = [attacked.ask() for _ in range(3)]

    assert [answer.status for answer in answers] == [200, 200, 200], answers


def test_a_stream_of_which_items_are_taken_away_is_no_complete_answer(attacked: Attacked) -> None:
    mailbox = attacked.mailbox()
    stop = time.monotonic() + 1.5

    def steal() -> None:
        while time.monotonic() < stop:
            attacked.redis.lpop(mailbox, 100)

    thief = threading.Thread(target=steal)
    thief.start()
    try:
        answer: Answer | None = attacked.ask(items=6)
    except Exception:  # the body is cut off without its last chunk
        answer = None
    thief.join()

    assert answer is None or answer.status >= 500 or answer.text == "012345"


def test_no_replica_is_hidden_or_made_up(quiet: Attacked) -> None:
    attacked = quiet
    client, pool = attacked.redis, attacked.keys.pool("default")
    ((name, genuine),) = client.hgetall(pool).items()
    report = {"name": "made-up", "deployment": "Shop", "version": attacked.queue().split(":")[3], "state": "RUNNING"}
    client.hset(pool, mapping={"made-up": json.dumps(report), "copied": genuine})

    assert attacked.states() == {"RUNNING": 1}

    client.hset(pool, name, json.dumps({**report, "state": "FAILED", "message": MINE}))
    wait_until(lambda: attacked.states() == {"RUNNING": 1}, description="the replica is shown again", timeout_s=15)
    client.hdel(pool, name)
    wait_until(lambda: attacked.states() == {"RUNNING": 1}, description="the replica is shown again", timeout_s=15)
    assert f"the report of replica {name.decode()} was changed in the broker" in attacked.worker_process.stderr

    client.delete(pool)
    wait_until(lambda: client.hkeys(pool) == [name], description="the report is made again", timeout_s=15)
    pid = attacked.pid()
    beat, seen = attacked.keys.beat(name.decode()), set[bytes]()

    def record() -> bool:
        seen.add(attacked.redis.get(beat))
        return len(seen) == 3

    wait_until(record, description="three heartbeats", timeout_s=15)
    os.kill(pid, signal.SIGSTOP)
    values = itertools.cycle([*seen, b"1000", b"1001"])

    def is_replaced() -> bool:
        attacked.redis.set(beat, next(values))
        return not is_alive(pid)

    wait_until(is_replaced, description="the frozen replica is killed", timeout_s=30)
    wait_until(lambda: attacked.ask().status == 200, description="requests are answered again", timeout_s=15)


@pytest.mark.long  # tests/fuzz/targets.py reads any bytes as a name
def test_names_that_are_no_text_are_skipped_and_named_once(quiet: Attacked) -> None:
    attacked = quiet
    write_strange_names(attacked)
    os.kill(attacked.pid(), signal.SIGKILL)
    wait_until(lambda: attacked.ask().status == 200, description="the replica is replaced", timeout_s=15)

    for command in (
        ("status",),
        ("status", "--json"),
        ("dlq", "list"),
        ("dlq", "list", "--json"),
        ("deploy", "shop:app"),
    ):
        process: Process = attacked.command(*command)
        assert process.wait() == 0, process.output
        assert "Traceback" not in process.output
        assert "\x1b" not in process.output
    assert attacked.logs().count("is not the name of an application") <= 3


def write_strange_names(attacked: Attacked) -> None:
    client, keys = attacked.redis, attacked.keys
    stream = attacked.queue()
    client.hset(keys.applications, STRANGE, STRANGE)
    client.hset(keys.pool("default"), STRANGE, STRANGE)
    client.hset(keys.pool("default"), "nested", b"[" * 100_000)
    client.hset(keys.pool("default"), "report", json.dumps({"name": "\ud800", "state": "RUNNING"}))
    client.hset(keys.models_of(stream), mapping={b"s:" + STRANGE: STRANGE, b"s:x": keys.applications, b"m:x": STRANGE})
    client.zadd(keys.dead_letters, {STRANGE: time.time() * 1000, "a" * 32: time.time() * 1000})
    client.hset(keys.dead_letter("a" * 32), mapping={"!1": STRANGE, "!n": 10**12, "!why": STRANGE, "!y": STRANGE})
    client.set(keys.gateway("x"), STRANGE)
    client.sadd(keys.gateway("y"), STRANGE)
    client.xadd(keys.changes, {STRANGE: STRANGE})
    client.xadd(keys.fanout("celery.pidbox"), {"m": STRANGE})
    client.xadd(keys.fanout("celery.pidbox"), {STRANGE: STRANGE})
    client.execute_command("XGROUP", "CREATECONSUMER", stream, GROUP, STRANGE)


def test_a_delivery_that_a_made_up_replica_took_is_handed_over(attacked: Attacked) -> None:
    client = attacked.redis
    stream = attacked.queue()
    os.kill(attacked.pid(), signal.SIGSTOP)
    request_id = attacked.start_job()
    client.execute_command("XREADGROUP", "GROUP", GROUP, STRANGE, "COUNT", 100, "STREAMS", stream, ">")

    assert attacked.job(request_id).status in (200, 202)
    wait_until(lambda: attacked.job(request_id).status == 200, description="the job has its result")


@pytest.mark.parametrize("place", ["apps", "changes", "a:*", "p:*", "epoch", "b:*", "x:*", "z:*", "g:*", "u:*", "q:*"])
def test_a_key_that_was_overwritten_stops_nobody(attacked: Attacked, place: str) -> None:
    client, pattern = attacked.redis, f"{{qserve}}:{place}"
    # those of a queue that has none yet
    beside = attacked.queue().replace(":q:", f":{place[0]}:") if place[0] in "xzu" else None
    for kind in WRITERS:
        if (place, kind) == ("a:*", "hash"):
            continue  # it has no registration, and that is how an application is deleted
        wait_until(lambda: beside or [*client.scan_iter(pattern)], description=f"there is {place}")
        for key in (beside,) if beside else client.scan_iter(pattern):
            attacked.overwrite(key, kind)

        answer = attacked.ask()

        assert answer.status == 200 or answer.code.startswith("broker_") or place == "q:*", answer
    if place in ("changes", "p:*", "b:*", "x:*"):  # the supervisor finds it when it replaces a replica
        os.kill(attacked.pid(), signal.SIGKILL)


def test_an_epoch_that_is_removed_is_given_again(attacked: Attacked) -> None:
    attacked.redis.delete(attacked.keys.epoch)

    wait_until(lambda: attacked.ask().status == 200, description="requests are answered again")
    wait_until(lambda: attacked.redis.exists(attacked.keys.epoch), description="there is an epoch")


def test_a_release_goes_through_whatever_the_registry_holds(attacked: Attacked) -> None:
    for key in (attacked.keys.applications, attacked.keys.changes, attacked.keys.application("default")):
        attacked.overwrite(key, "list")

    deploy = attacked.deploy()

    assert deploy.wait() == 0, deploy.output
    assert "Traceback" not in deploy.output
