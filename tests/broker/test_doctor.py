"""The start-up checks of a broker: rules over facts, and the facts of servers that answer in every way."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from click.testing import CliRunner
from processes import Site, wait_until

from qserve.__main__ import main
from qserve.base.keyring import PUBLISHED_KEY
from qserve.base.parts import DISTRIBUTIONS
from qserve.base.settings import Settings
from qserve.broker.connection import connect
from qserve.broker.doctor import (
    BrokerFacts,
    Finding,
    check,
    check_address,
    examine,
    facts_of_address,
    read_facts,
    refusals,
)
from qserve.cli import doctor as command
from qserve.exceptions import BrokerError, BrokerUnavailable
from qserve.machine.embedded_broker import EmbeddedBroker

GOOD = BrokerFacts(where="/run/broker.sock", server="valkey", version=(9, 1, 2), compatible=(7, 2, 4))
INFO: dict[str, Any] = {
    "redis_version": "7.2.4",
    "valkey_version": "9.1.2",
    "role": "master",
    "maxmemory": 0,
    "maxmemory_policy": "noeviction",
    "aof_enabled": 1,
    "aof_last_write_status": "ok",
}


def redis_of(*version: int) -> BrokerFacts:
    return replace(GOOD, server="redis", version=version, compatible=version)


def wrong(facts: BrokerFacts) -> list[Finding]:
    return [finding for finding in examine(facts) if finding.level != "ok"]


# -- rules -----------------------------------------------------------------------------------------


def test_a_good_broker_has_nothing_wrong() -> None:
    findings = examine(GOOD)
    assert wrong(GOOD) == []
    assert len(findings) == 8
    assert "valkey 9.1.2" in [one.what for one in findings]


@pytest.mark.parametrize(
    ("facts", "level", "what", "remedy"),
    [
        (replace(GOOD, maxmemory=1, policy="allkeys-lru"), "error", "allkeys-lru", "noeviction"),
        (replace(GOOD, maxmemory=1, policy="volatile-ttl"), "error", "deletes accepted requests", "noeviction"),
        (replace(GOOD, aof=False), "warning", "append-only file is off", "appendonly yes"),
        (replace(GOOD, aof_status="err"), "warning", "could not be written (err)", "disk"),
        (replace(GOOD, role="slave"), "error", "replica", "primary"),
        (replace(GOOD, clock_off_s=2.5), "warning", "2.5 s ahead of", "NTP"),
        (replace(GOOD, clock_off_s=-3600.0), "warning", "3600.0 s behind", "NTP"),
        (replace(GOOD, clock_off_s=None), "warning", "TIME is not permitted", "+time"),
        (replace(GOOD, maxmemory=1000, used_memory=760), "warning", "76% of its 1000 bytes", "QSERVE_BROKER_MAXMEMORY"),
        (replace(GOOD, key_is_published=True), "warning", "which is public", "openssl rand"),
        (replace(GOOD, has_key=False), "warning", "only plain data can travel", "openssl rand"),
        (replace(GOOD, version=(), compatible=()), "warning", "INFO is not permitted", "+info"),
        (replace(GOOD, local=False), "error", "without a password", "requirepass"),
        (replace(GOOD, local=False, encrypted=True), "error", "without a password", "requirepass"),
        (
            replace(GOOD, local=False, authenticated=True, encrypted=True, verified=False),
            "warning",
            "not verified",
            "ssl_ca_certs",
        ),
        (redis_of(6, 2, 20), "error", "redis 6.2.20 has no functions", "7.0"),
        (redis_of(7, 0, 15), "warning", "CVE-2025-49844", "7.2.11"),
        (redis_of(7, 4, 5), "warning", "CVE-2025-49844", "7.4.6"),
        (redis_of(8, 2, 1), "warning", "CVE-2025-49844", "8.2.2"),
        (replace(GOOD, version=(8, 1, 3)), "warning", "CVE-2025-49844", "valkey 8.1.4"),
        (replace(redis_of(8, 6, 2), evicted_clients=1), "warning", "CVE-2026-23479", "maxmemory-clients 0"),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(facts: BrokerFacts, level: str, what: str, remedy: str) -> None:
    (finding,) = wrong(facts)
    assert finding.level == level
    assert what in finding.what
    assert remedy in finding.remedy


@pytest.mark.parametrize(
    "facts",
    [
        replace(GOOD, maxmemory=1),
        replace(GOOD, policy="allkeys-lru"),  # without a limit, nothing is ever evicted
        replace(GOOD, clock_off_s=1.9),
        replace(GOOD, local=False, authenticated=True),
        replace(GOOD, local=False, authenticated=True, encrypted=True),
        redis_of(7, 4, 6),
        redis_of(8, 6, 2),
        replace(redis_of(8, 6, 3), evicted_clients=1),
        replace(GOOD, version=(7, 2, 11)),
    ],
)
def test_what_costs_nothing_is_not_complained_of(facts: BrokerFacts) -> None:
    assert wrong(facts) == []


def test_a_broker_that_does_not_answer_is_judged_by_its_address_alone() -> None:
    address, answer = examine(replace(GOOD, unreachable="Connection refused"))
    assert address.level == "ok"
    assert (answer.level, "Connection refused" in answer.what) == ("error", True)


# -- facts of the address --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "local", "authenticated", "encrypted", "verified"),
    [
        ("unix:///run/broker.sock", True, False, False, True),
        ("redis://localhost", True, False, False, True),
        ("redis://127.1.2.3:6379/0", True, False, False, True),
        ("redis://[::1]:6379/0", True, False, False, True),
        ("redis://broker:6379/0", False, False, False, True),
        ("redis://0.0.0.0:6379/0", False, False, False, True),
        ("redis://127.0.0.1.example:6379/0", False, False, False, True),
        ("redis://user@broker/0", False, False, False, True),
        ("redis://:pw@broker/0", False, True, False, True),
        ("rediss://u:pw@broker/0", False, True, True, True),
        ("rediss://u:pw@broker/0?ssl_cert_reqs=none", False, True, True, False),
        ("rediss://u:pw@broker/0?ssl_check_hostname=False", False, True, True, False),
        ("rediss://broker/0?ssl_certfile=/c.pem", False, True, True, True),
    ],
)
def test_an_address_tells_who_can_reach_it_and_how_it_is_guarded(
    url: str, local: bool, authenticated: bool, encrypted: bool, verified: bool
) -> None:
    facts = facts_of_address(Settings(broker_url=url))
    found = (facts.local, facts.authenticated, facts.encrypted, facts.verified)
    assert found == (local, authenticated, encrypted, verified)


def test_no_credentials_are_shown() -> None:
    facts = facts_of_address(Settings(broker_url="rediss://user:s3cret@broker:1/0?password=s3cret"))
    assert facts.where == "broker:1/0"
    assert not any("s3cret" in one.what + one.remedy for one in examine(facts))


# -- facts of a server -----------------------------------------------------------------------------


class Server:
    """A client whose broker answers what it is told to."""

    def __init__(self, info: Any = None, clock: Any = None, error: Exception | None = None) -> None:
        self.info_reply = INFO if info is None else info
        self.clock_reply = clock
        self.error = error
        self.asked: list[str] = []

    def pipeline(self, transaction: bool) -> Server:
        return self

    def info(self) -> None:
        self.asked.append("INFO")

    def time(self) -> None:
        self.asked.append("TIME")

    def execute(self, raise_on_error: bool) -> list[Any]:
        if self.error is not None:
            raise self.error
        now = time.time()
        return [self.info_reply, self.clock_reply or (int(now), int(now % 1 * 1e6))]


LOCAL = Settings(broker_url="redis://127.0.0.1:1/0", secret_key=b"the-key-of-this-test")


def facts_of(server: Server) -> BrokerFacts:
    return read_facts(server, LOCAL)  # type: ignore[arg-type]


def check_server(server: Server, settings: Settings = LOCAL) -> None:
    check(server, settings)  # type: ignore[arg-type]


def test_one_question_is_asked_for_everything() -> None:
    server = Server()
    facts = facts_of(server)
    assert server.asked == ["INFO", "TIME"]
    assert (facts.server, facts.version, facts.compatible) == ("valkey", (9, 1, 2), (7, 2, 4))
    assert wrong(facts) == []


def test_a_server_of_redis_has_its_own_version() -> None:
    info = {name: value for name, value in INFO.items() if name != "valkey_version"}
    facts = facts_of(Server(info))
    assert (facts.server, facts.version) == ("redis", (7, 2, 4))


def test_the_time_that_the_answer_took_is_no_difference_of_the_clocks() -> None:
    assert facts_of(Server()).clock_off_s == pytest.approx(0, abs=1e-4)
    off_s = facts_of(Server(clock=(int(time.time()) + 3600, 0))).clock_off_s
    assert off_s == pytest.approx(3600, abs=2)


def test_what_may_not_be_asked_is_not_known() -> None:
    denied = redis.exceptions.NoPermissionError("no")
    facts = facts_of(Server(info=denied, clock=denied))
    assert [one.level for one in wrong(facts)] == ["warning", "warning"]


def test_a_wrong_password_is_no_outage() -> None:
    server = Server(error=redis.AuthenticationError("invalid username-password pair"))
    with pytest.raises(BrokerError, match="refuses the password") as told:
        check_server(server)
    assert not isinstance(told.value, BrokerUnavailable)


def test_a_broker_that_is_away_may_be_asked_again() -> None:
    with pytest.raises(BrokerUnavailable, match=r"the broker at 127\.0\.0\.1:1/0 cannot be reached: gone"):
        check_server(Server(error=redis.ConnectionError("gone")))


def test_an_error_is_raised_with_its_remedy() -> None:
    with pytest.raises(BrokerError, match="allkeys-lru.*remedy: set maxmemory-policy noeviction"):
        check_server(Server({**INFO, "maxmemory": 1, "maxmemory_policy": "allkeys-lru"}))


def test_an_open_broker_on_the_network_is_refused_before_anything_is_sent_to_it() -> None:
    server = Server()
    settings = replace(LOCAL, broker_url="redis://broker:6379/0")
    with pytest.raises(BrokerError, match="without a password"):
        check_server(server, settings)
    with pytest.raises(BrokerError):
        check_address(settings)
    assert server.asked == []


def test_warnings_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    server = Server({**INFO, "aof_last_write_status": f"err {time.time()}"})
    with caplog.at_level(logging.WARNING, "qserve"):
        check_server(server)
        check_server(server)
    (line,) = caplog.messages
    assert "append-only file could not be written" in line
    assert "remedy: free space" in line


def test_the_key_that_the_repository_shows_is_told_apart_from_ones_own() -> None:
    compose = (Path(__file__).parents[2] / "docker-compose.yml").read_bytes()
    assert b":-" + PUBLISHED_KEY + b"}" in compose
    assert facts_of_address(replace(LOCAL, secret_key=PUBLISHED_KEY)).key_is_published
    assert not facts_of_address(LOCAL).key_is_published


def test_the_embedded_broker_has_nothing_wrong() -> None:
    broker = EmbeddedBroker()
    try:
        broker.wait_ready()
        client = connect(broker.url)
        settings = Settings(broker_url=broker.url, secret_key=b"the-key-of-this-test")
        check(client, settings)
        assert wrong(read_facts(client, settings)) == []
        client.close()
    finally:
        broker.stop()


def test_a_broker_that_refuses_writes_at_this_moment_says_why(site: Site) -> None:
    data = site.folder / "data"
    data.mkdir()
    with connect(site.broker("--dir", str(data), "--save", "3600 1")) as client:

        def reasons() -> list[str]:
            return [one.what for one in refusals(client, read_facts(client, LOCAL))]

        assert reasons() == []
        client.config_set("min-replicas-to-write", 1)
        assert reasons() == [
            "it refuses writes now: min-replicas-to-write asks for replicas, and it has none that is up to date"
        ]
        client.config_set("min-replicas-to-write", 0)
        client.config_set("maxmemory", 1000)
        assert reasons() == ["it refuses new requests now: all of its 1000 bytes are used"]
        client.config_set("maxmemory", 0)
        data.rmdir()
        client.bgsave()
        (why,) = wait_until(reasons, description="the server has failed to save")
        assert why.startswith("it refuses writes now: MISCONF ")


# -- the command -----------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, server: Server, *options: str) -> Any:
    monkeypatch.setattr(command, "connect", lambda url: server)
    monkeypatch.setattr(Server, "close", lambda self: None, raising=False)
    for name in ("_of_stores", "refusals"):  # they need a broker that answers
        monkeypatch.setattr(command, name, lambda client, about: [])
    monkeypatch.setenv("QSERVE_SECRET_KEY", "the-key-of-this-test")
    return CliRunner().invoke(main, ["doctor", "--broker", "redis://127.0.0.1:1/0", *options])


def test_the_command_prints_a_line_for_each_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, Server({**INFO, "aof_enabled": 0}))
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert len(lines) == 8
    (line,) = [one for one in lines if one.startswith("warning")]
    assert line.endswith("-> set appendonly yes and appendfsync always")


def test_the_command_exits_with_1_when_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, Server({**INFO, "role": "slave"}), "--json")
    assert result.exit_code == 1
    assert "error" in [one["level"] for one in json.loads(result.output)]


def test_the_command_prints_the_acl_of_this_namespace_without_a_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSERVE_NAMESPACE", "shop")

    result = CliRunner().invoke(main, ["doctor", "--acl"])

    assert result.exit_code == 0
    assert result.output.startswith("user default off ")
    assert "user worker on >WORKER_PASSWORD " in result.output
    assert " ~{shop}:q:* " in result.output
    assert "{qserve}" not in result.output


@pytest.mark.parametrize(("other", "level"), [("1.0", "warning"), ("1.1", "error")])
def test_two_distributions_of_the_same_files_in_one_environment_are_reported(
    monkeypatch: pytest.MonkeyPatch, other: str, level: str
) -> None:
    found = [
        SimpleNamespace(name=name, version=version) for name, version in zip(DISTRIBUTIONS, ("1.0", other), strict=True)
    ]
    monkeypatch.setattr(command, "distributions", lambda: [*found, SimpleNamespace(name="celery", version="5.7")])

    result = run(monkeypatch, Server())

    assert result.exit_code == (level == "error")
    assert result.output.splitlines()[-1] == (
        f"{level:<8} qserve-celery 1.0 and qserve-celery-slim {other} are installed side by side, and are the same"
        " files -> pip uninstall qserve-celery qserve-celery-slim, and install one of them"
    )
