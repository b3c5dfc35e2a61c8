"""The ACL of `qserve doctor --acl`, on a server: each role can do its work, and nothing that would own the broker."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import redis
from celery import Celery
from desk import SEAL
from http_client import Client
from processes import Process, Site, free_port, is_open, new_site, wait_until
from redis.exceptions import NoPermissionError
from users import ADMIN, ROLES, TASKS, as_user, write_users

from qserve.base import keys as keys_module
from qserve.base.keys import GROUP, Keys
from qserve.base.settings import Settings
from qserve.broker import functions
from qserve.broker.connection import connect, create_group, load_functions
from qserve.broker.doctor import check, examine, read_facts
from qserve.broker.library import Command
from qserve.broker.registry import Registry
from qserve.deploy.installation import Installation, ReplicaReports
from qserve.deploy.log_tail import LogTail, lines_of
from qserve.deploy.queues import queues_of
from qserve.deploy.removal import is_idle
from qserve.deploy.rollout import wait_for_gateways
from qserve.deploy.status import status_of
from qserve.exceptions import BrokerUnavailable
from qserve.fleet import totals
from qserve.fleet.facts import broker_facts
from qserve.fleet.store import FleetStore
from qserve.machine.embedded_broker import find_server
from qserve.metrics.exposition import derived
from qserve.metrics.table import BROKER, SOURCE
from qserve.overview.observer import Observer
from qserve.overview.requests import cancel, list_requests
from qserve.overview.requests import request as request_of
from qserve.overview.traces import trace
from qserve.payloads.store import ValueStore
from qserve.wire.application import ApplicationRecord, DeploymentRecord
from qserve.wire.envelope import Header
from qserve.wire.fleet import Drain, HostRecord, Scaled, Wish
from qserve.wire.moves import Awaited, Epoch, Join, Start
from qserve.wire.outcome import SESSION, Field
from qserve.wire.sealing import seal_header
from qserve.wire.status import RUNNING, ReplicaStatus

ROOT = Path(__file__).parents[2]
FORBIDDEN: tuple[tuple[Any, ...], ...] = (
    ("EVAL", "return 1", 0),
    ("EVALSHA", "0" * 40, 0),
    ("SCRIPT", "LOAD", "return 1"),
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("KEYS", "*"),
    ("DEBUG", "SLEEP", "0"),
    ("CONFIG", "SET", "maxmemory", "0"),
    ("MODULE", "LIST"),
    ("REPLICAOF", "NO", "ONE"),
    ("MIGRATE", "127.0.0.1", "1", "{qserve}:q:a", "0", "10"),
    ("RESTORE", "{qserve}:q:a", "0", "x"),
)
A, FULL = "a" * 32, "f" * 32
EPOCH = Epoch(Keys().epoch, "1")
SERVERS = sorted({find_server(), shutil.which("redis-server") or find_server()})
"""The embedded one, and Redis where it is installed: they do not check the same things."""


class Guarded:
    """A broker under the sample ACL.

    Parameters:
      site: Where it is started.
      server: The program.
    """

    def __init__(self, site: Site, server: str) -> None:
        self.site = site
        self.port = free_port()
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"]
        # where the server itself refuses DEBUG, it would not be the ACL that is tested
        options += ["--enable-debug-command", "yes", "--aclfile", str(write_users(site.folder))]
        site.start([server, *options])
        wait_until(lambda: is_open(self.port), description="the broker listens")

    def url(self, role: str) -> str:
        return as_user(f"redis://127.0.0.1:{self.port}/0", role)

    def settings(self, role: str) -> Settings:
        return Settings(broker_url=self.url(role), secret_key=b"the-key-of-this-test")


@pytest.fixture(scope="module", params=SERVERS, ids=lambda path: Path(path).name)
def guarded(request: pytest.FixtureRequest) -> Iterator[Guarded]:
    with new_site() as site:
        yield Guarded(site, request.param)


@pytest.fixture
def as_role(guarded: Guarded) -> Iterator[dict[str, redis.Redis]]:
    clients = {role: connect(guarded.url(role)) for role in (*ROLES, TASKS)}
    load_functions(clients["deployer"])
    yield clients
    for client in clients.values():
        client.close()


def record(version: str = "v") -> ApplicationRecord:
    deployments = {"One": DeploymentRecord("One"), "Two": DeploymentRecord("Two")}
    return ApplicationRecord("app", version, "One", deployments=deployments)


def submit(keys: Keys, request_id: str, moves: list[Any], webhook: bytes = b"") -> Command:
    header = request_id.encode() + msgpack.packb(["app", None, 0, 0])
    request, mailbox = keys.request(request_id), keys.mailbox("gateway")
    return functions.submit(
        request, request_id, EPOCH, header, mailbox, 60_000, 60_000, moves, limits={moves[0].stream: 9}, webhook=webhook
    )


def take_one(worker: redis.Redis, stream: str, consumer: str = "replica") -> bytes:
    found: Any = worker.xreadgroup(GROUP, consumer, {stream: ">"}, count=1)
    entry_id: bytes = found[0][1][0][0]
    return entry_id


@pytest.mark.parametrize("role", [*ROLES, TASKS])
@pytest.mark.parametrize("command", FORBIDDEN, ids=lambda command: " ".join(map(str, command[:2])))
def test_no_role_may_own_empty_or_copy_the_broker(
    as_role: dict[str, redis.Redis], role: str, command: tuple[Any, ...]
) -> None:
    if role == TASKS and command[0] in ("EVALSHA", "SCRIPT"):
        pytest.skip("Celery's transport has scripts")
    with pytest.raises(NoPermissionError):
        as_role[role].execute_command(*command)


@pytest.mark.parametrize("role", ["gateway", "worker", "operator"])
@pytest.mark.parametrize("command", [functions.LOAD, ("FUNCTION", "LIST"), ("FUNCTION", "FLUSH"), ("ACL", "LIST")])
def test_only_the_deployer_loads_functions(
    as_role: dict[str, redis.Redis], role: str, command: tuple[Any, ...]
) -> None:
    with pytest.raises(NoPermissionError):
        as_role[role].execute_command(*command)


def test_the_samples_permit_what_the_functions_do_and_every_kind_of_key() -> None:
    # the server checks a function's own commands against the rights of its caller
    used = set(re.findall(r"redis\.p?call\('([A-Z]+)'|\{ '(X[A-Z]+)'", functions.LIBRARY.text))
    worker, operator = (
        (ROOT / "qserve" / "broker" / "acl" / f"{role}.acl").read_text() for role in ("worker", "operator")
    )
    for command in {"".join(pair).lower() for pair in used}:
        assert re.search(rf"\+{command}[| \n]", worker + operator), command

    everything = "".join(file.read_text() for file in (ROOT / "qserve" / "broker" / "acl").glob("*.acl"))
    kinds = re.findall(r"^ {4}([a-z]+)(?=[: ] *)", keys_module.__doc__ or "", re.MULTILINE)
    assert len(kinds) >= 10
    for kind in set(kinds) - {"key"}:
        assert re.search(rf"~\{{qserve\}}:{kind}[: ]", everything), kind


def test_connecting_asks_for_nothing_that_is_denied(guarded: Guarded) -> None:
    with connect(guarded.url(ADMIN)) as admin:
        admin.acl_log_reset()
        for role in ROLES:
            with connect(guarded.url(role)) as client:
                client.ping()
        assert admin.acl_log() == []


def test_without_a_user_nothing_is_answered(guarded: Guarded) -> None:
    client = connect(f"redis://127.0.0.1:{guarded.port}/0")
    with pytest.raises(redis.AuthenticationError):
        client.ping()
    client.close()


@pytest.mark.parametrize("role", ["gateway", TASKS])
def test_a_gateway_can_neither_change_what_is_deployed_nor_read_code(
    as_role: dict[str, redis.Redis], role: str
) -> None:
    keys = Keys()
    for command in (
        ("HSET", keys.application("app"), "active", b"forged"),
        ("SET", keys.code("app", "v"), b"forged"),
        ("GET", keys.code("app", "v")),
        ("XADD", keys.changes, "*", "app", "app"),
        ("SET", keys.beat("replica"), "1"),
        ("SET", "of-another-program", "1"),
    ):
        with pytest.raises(NoPermissionError):
            as_role[role].execute_command(*command)


def test_a_worker_can_neither_change_what_is_deployed_nor_its_code(as_role: dict[str, redis.Redis]) -> None:
    keys = Keys()
    for command in (
        ("HSET", keys.application("app"), "active", b"forged"),
        ("SET", keys.code("app", "v"), b"forged"),
        ("XADD", keys.changes, "*", "app", "app"),
        ("GET", "of-another-program"),
    ):
        with pytest.raises(NoPermissionError):
            as_role["worker"].execute_command(*command)


def test_functions_that_are_there_are_enough_for_roles_that_may_not_load_them() -> None:
    with new_site() as site:
        fresh = Guarded(site, find_server())
        deployer, *others = (connect(fresh.url(role)) for role in ROLES)
        for client in others:
            with pytest.raises(BrokerUnavailable, match="qserve deploy"):
                load_functions(client)
        load_functions(deployer)
        for client in others:
            load_functions(client)
        for client in (deployer, *others):
            client.close()


def test_every_role_may_ask_what_the_checks_need(guarded: Guarded, as_role: dict[str, redis.Redis]) -> None:
    for role in ROLES:
        settings = guarded.settings(role)
        check(as_role[role], settings)
        findings = examine(read_facts(as_role[role], settings))
        assert len(findings) == 8
        assert not [one for one in findings if one.level == "error" or "permitted" in one.what]


def test_roles_may_ask_whether_they_are_at_the_primary_and_gateways_whether_a_replica_has_a_request(
    as_role: dict[str, redis.Redis],
) -> None:
    for client in as_role.values():
        assert client.execute_command("ROLE")[0] == b"master"
    assert as_role["gateway"].execute_command("WAIT", 0, 1) == 0


def test_a_request_goes_its_whole_way_with_each_role_doing_its_part(as_role: dict[str, redis.Redis]) -> None:
    keys, app = Keys(), record()
    deployer, gateway, worker = (as_role[role] for role in ROLES[:3])
    one, two = app.stream(keys, "One"), app.stream(keys, "Two")

    deployer.set(EPOCH.key, EPOCH.value)
    Registry(deployer, keys, SEAL).stage(app, b"signed code")
    assert Registry(worker, keys, SEAL).versions("app") == [app]
    assert Registry(worker, keys, SEAL).code("app", "v") == b"signed code"
    ReplicaReports(worker, keys, SEAL, "app").report(ReplicaStatus("replica", "One", "v", RUNNING))
    assert [one.name for one in ReplicaReports(deployer, keys, SEAL, "app").replicas()] == ["replica"]
    Registry(deployer, keys, SEAL).share(app, 0.5, 0.0)
    assert is_idle(Installation(Settings(), deployer), app)
    change = Registry(deployer, keys, SEAL).promote(app)
    assert Registry(gateway, keys, SEAL).last_change() == change
    assert Registry(gateway, keys, SEAL).wait_for_change("0-0", 1) == change
    assert Registry(gateway, keys, SEAL).get("app") == app

    gateway.delete(keys.mailbox("gateway"), keys.request(A))  # of other tests
    moves: list[Any] = [Start(one, "0", [b"x"])]
    assert gateway.execute_command(*submit(keys, A, moves)) == b"OK"
    entry, request = take_one(worker, one), keys.request(A)
    join = [Join(two, "1", 2, [(0, b"p"), (1, b"q")])]
    assert worker.execute_command(*functions.commit(one, request, entry, A, EPOCH, "t1", "0", join)) == b"OK"
    session, is_told = keys.request("5" * 32), functions.tell(keys.request("5" * 32), "5" * 32, 0, b"part")
    gateway.execute_command(*submit(keys, "5" * 32, [Start(one, SESSION, [b"x"])]))
    take_one(worker, one)
    assert gateway.execute_command(*is_told) == [1, 0]
    assert worker.execute_command(*functions.heard(session, 1)) == 1
    assert worker.execute_command(*functions.reclaim(one, one, "replica", 3, b"lost", keys.request(""))) == 1
    gateway.delete(keys.mailbox("gateway"))
    entry = take_one(worker, two)
    assert worker.execute_command(*functions.emit(request, A, 0, [b"item"])) == 1
    assert gateway.execute_command(*functions.take(request, 1)) == 1
    assert worker.execute_command(*functions.note(request, two, entry, "1", b"half of it", True)) == b"OK"
    assert gateway.execute_command(*functions.observe(request, A, 0)) == [b"1-0", b"half of it"]
    assert gateway.hmget(request, [Field.STATE, Field.PROGRESS]) == [b"o", b"half of it"]
    done = functions.commit(two, request, entry, A, EPOCH, "t2", "1", state="d", payload=b"result")
    assert worker.execute_command(*done) == b"OK"

    assert gateway.blmpop(1, 1, keys.mailbox("gateway"), direction="LEFT", count=9)[1] == [
        A.encode() + b"iitem",
        A.encode() + b"dresult",
    ]
    assert gateway.execute_command(*functions.look(request)) == [b"d", b"result"]
    assert gateway.execute_command(*functions.forget([request])) == b"OK"
    _send_ends(as_role, keys, one)
    _end(as_role, keys, app)


def _send_ends(as_role: dict[str, redis.Redis], keys: Keys, stream: str) -> None:
    """Each role may end a request that has a webhook, and the gateway sends it."""
    gateway, sent = as_role["gateway"], "9" * 32
    for role in ("gateway", "worker", "operator", TASKS):
        request = keys.request(sent)
        gateway.delete(request)
        command = submit(keys, sent, [Start(stream, "0", [b"x"])], webhook=b"sealed")
        assert gateway.execute_command(*command) == b"OK"
        assert as_role[role].execute_command(*functions.close(request, sent, "c", b"")) == 1
        ((found, *_),) = gateway.execute_command(*functions.due(keys.webhooks, keys.webhook(""), "9"))
        assert found == sent.encode(), role
        settled = functions.settle(keys.webhooks, keys.webhook(sent), sent, 1, -1)
        assert gateway.execute_command(*settled) == b"OK"


def _end(as_role: dict[str, redis.Redis], keys: Keys, app: ApplicationRecord) -> None:
    """A cancelled call, a dead replica, and the end of the version."""
    deployer, gateway, worker = (as_role[role] for role in ROLES[:3])
    one, two = app.stream(keys, "One"), app.stream(keys, "Two")
    request = keys.request("b" * 32)
    moves: list[Any] = [Start(one, "0", [b"x"])]
    gateway.execute_command(*submit(keys, "b" * 32, moves))
    take_one(worker, one, "dead")
    assert worker.execute_command(*functions.reclaim(one, one, "dead", 3, b"lost", keys.request(""))) == 1
    assert gateway.execute_command(*functions.close(request, "b" * 32, "c", b"")) == 1
    assert worker.execute_command(*functions.retire([one, two], False, b"gone", keys.request(""))) == 1
    create_group(worker, one)
    assert worker.xinfo_consumers(one, GROUP) == []
    Registry(deployer, keys, SEAL).delete("app")
    assert Registry(gateway, keys, SEAL).names() == []


def test_an_operator_sees_gateways_workers_and_queues_and_a_program_what_it_may_read(
    guarded: Guarded, as_role: dict[str, redis.Redis]
) -> None:
    keys, (deployer, gateway, worker, operator) = Keys(), map(as_role.__getitem__, ROLES)
    registry, workers = Registry(deployer, keys, SEAL), FleetStore(worker, keys, SEAL)
    registry.stage(record())
    Registry(gateway, keys, SEAL).publish(keys.gateway("g-1"), registry.promote(record()))
    workers.offer(HostRecord("a-1", "a"))
    worker.zadd(keys.delayed_of(record().stream(keys, "One")), {"call": 1.0})
    gateway.xadd(record().stream(keys, "One"), {"h": "x"})

    seen, of_program = (
        status_of(Installation(guarded.settings(role), client))
        for role, client in (("operator", operator), ("gateway", gateway))
    )

    assert (seen.proxies["g-1"], seen.hosts.keys()) == ("HEALTHY", {"a-1"})
    assert [(one.waiting, one.delayed) for one in queues_of(Installation(guarded.settings("operator"), operator))] == [
        (1, 1),
        (0, 0),
    ]
    assert (of_program.proxies, of_program.hosts) == ({}, {})
    assert totals.publish(worker, keys, SEAL, "a-1", {}, False)
    assert totals.worker_totals(gateway, keys, SEAL).keys() == {"a-1"}
    facts = broker_facts(gateway, keys, SEAL, Registry(gateway, keys, SEAL))
    assert {*derived(facts), "serve_deployment_replica_healthy"} == {
        name for name, of in SOURCE.items() if of == BROKER
    }
    pictures = [
        Observer(Installation(guarded.settings(role), client)).look()
        for role, client in (("operator", operator), ("gateway", gateway))
    ]
    assert [(one.broker.is_up, one.applications[0].deployments[0].waiting) for one in pictures] == [(True, 1)] * 2
    assert [[host.worker for host in one.hosts] for one in pictures] == [["a-1"], []]
    assert totals.worker_totals(operator, keys, SEAL).keys() == {"a-1"}
    totals.withdraw(worker, keys, SEAL, "a-1")
    assert seen.applications["app"].deployments["One"].waiting_calls == 1
    assert of_program.applications.keys() == seen.applications.keys() == {"app"}
    worker.delete(keys.hosts, keys.delayed_of(record().stream(keys, "One")))
    gateway.delete(keys.gateway("g-1"), record().stream(keys, "One"))
    registry.delete("app")


def test_workers_keep_log_lines_and_operators_read_them(
    guarded: Guarded, as_role: dict[str, redis.Redis], caplog: pytest.LogCaptureFixture
) -> None:
    workers, operators, gateways = (
        Installation(guarded.settings(role), as_role[role]) for role in ("worker", "operator", "gateway")
    )
    record = logging.LogRecord("app", logging.INFO, __file__, 1, "a line", (), None)
    for installation in (workers, gateways):
        tail = LogTail(installation, "One-1", "app", "One")
        tail.handle(record)
        tail.send()  # whose user may not is told so once, and goes on

    assert [line.text for _, line in lines_of(operators, "app")] == ["a line"]
    (said,) = [one.getMessage() for one in caplog.records if "qserve logs" in one.getMessage()]
    assert said.endswith("see its user in `qserve doctor --acl`")
    as_role["worker"].delete(workers.keys.log_lines("app"))


def test_workers_say_what_runs_and_operators_and_deployers_what_is_wanted(as_role: dict[str, redis.Redis]) -> None:
    keys, (deployer, gateway, worker, operator) = Keys(), map(as_role.__getitem__, ROLES)
    own, *others = (FleetStore(client, keys, SEAL) for client in (worker, operator, deployer))
    own.offer(HostRecord("a-1", "a"))
    own.note("app", "One", Scaled(1))
    assert worker.execute_command(*functions.lead(keys.lead, b"", b"a-1", 60_000)) == b"OK"
    assert worker.execute_command(*functions.assign(keys.lead, keys.plan, b"a-1", ["a-1"], [b"x"])) == b"OK"
    for other in others:
        other.wish("app", "One", Wish(2))
        assert own.wishes("app")["One"].count == other.wishes("app")["One"].count == 2
        assert (other.hosts().keys(), other.scaled("app")["One"].count) == ({"a-1"}, 1)
    others[0].drain(Drain("a"))
    assert own.drains().keys() == {"a"}
    for client, forbidden in ((worker, keys.wishes("app")), (operator, keys.plan), (deployer, keys.hosts)):
        with pytest.raises(NoPermissionError):
            client.hset(forbidden, "a", "forged")
    with pytest.raises(NoPermissionError):
        gateway.hgetall(keys.plan)
    operator.delete(keys.drains, keys.wishes("app"))
    worker.delete(keys.lead, keys.hosts, keys.plan, keys.scaled("app"))


@pytest.mark.parametrize("role", ["gateway", "worker"])
def test_who_submits_may_read_how_long_a_full_queue_has_kept_others_waiting(
    as_role: dict[str, redis.Redis], role: str
) -> None:
    keys = Keys()
    stream = keys.stream("full", "v", "One")
    create_group(as_role["deployer"], stream)
    now_ms = int(as_role["deployer"].time()[0]) * 1000
    as_role["deployer"].xadd(stream, {"s": "0"}, id=f"{now_ms - 60_000}-0")
    take_one(as_role["worker"], stream)  # it runs, and says nothing of those that wait
    as_role["deployer"].xadd(stream, {"s": "0"}, id=f"{now_ms}-0")
    as_role["deployer"].set(EPOCH.key, EPOCH.value)
    move = [Start(stream, "0", [])]
    command = functions.submit(keys.request(FULL), FULL, EPOCH, b"", "", 1, 1, move, limits={stream: 1})
    try:
        reply, after_s = as_role[role].execute_command(*command)
        assert reply == b"FULL"
        assert after_s < 30  # which the one that runs would give
    finally:
        as_role["deployer"].delete(stream)


def test_an_operator_and_a_gateway_see_requests_and_the_operator_cancels_them(
    guarded: Guarded, as_role: dict[str, redis.Redis]
) -> None:
    keys, (deployer, gateway, worker, _) = Keys(), map(as_role.__getitem__, ROLES)
    registry = Registry(deployer, keys, SEAL)
    registry.stage(record())
    registry.promote(record())
    deployer.set(EPOCH.key, EPOCH.value)
    one, two = record().stream(keys, "One"), record().stream(keys, "Two")
    seen_by = [Installation(guarded.settings(role), as_role[role]) for role in ("operator", "gateway")]
    for number, stream in ((3, one), (4, two), (5, two)):
        request_id = f"{number}" * 32
        worker.delete(keys.request(request_id))  # of other tests
        moves: list[Any] = [Start(stream, "0", [b"x"])]
        header = seal_header(SEAL, Header(request_id, "app", None, 0).encode())
        submitted = functions.submit(
            keys.request(request_id), request_id, EPOCH, header, keys.mailbox("gateway"), 60_000, 60_000, moves,
            is_traced=True,
        )  # fmt: skip
        assert gateway.execute_command(*submitted) == b"OK"
    entry = take_one(worker, one)
    done = functions.commit(one, keys.request("3" * 32), entry, "3" * 32, EPOCH, "t", "0", state="d", payload=b"x")
    assert worker.execute_command(*done) == b"OK"
    entry = take_one(worker, two)
    delayed, request = keys.delayed_of(two), keys.request("4" * 32)
    worker.execute_command(*functions.postpone(two, request, delayed, entry, 9000, 1, 60_000, "replica", "no"))

    for installation in seen_by:
        states = {one.request_id[0]: one.state for one in list_requests(installation)}
        assert states == {"3": "done", "4": "retrying", "5": "waiting"}
        assert [trace(installation, number * 32).request.state for number in "35"] == ["done", "waiting"]
    assert [cancel(installation, number * 32) for installation, number in zip(seen_by, "45", strict=True)] == [True] * 2
    assert [request.state for request in list_requests(seen_by[0])] == ["cancelled", "cancelled", "done"]
    assert [request_of(one, "5" * 32).state for one in seen_by] == ["cancelled"] * 2
    worker.delete(keys.traces, delayed, *(keys.request(number * 32) for number in "345"))
    registry.delete("app")


@pytest.mark.parametrize("role", ["gateway", "worker"])
def test_who_submits_may_wait_for_the_result_of_another_request_and_cancel_both(
    as_role: dict[str, redis.Redis], role: str
) -> None:
    keys, first, second = Keys(), "c" * 32, "d" * 32
    stream = keys.stream("waits", "v", "One")
    as_role["deployer"].set(EPOCH.key, EPOCH.value)
    create_group(as_role["deployer"], stream)
    waits = [Awaited(keys.request(first), stream, "1", 2, 1)]
    join = [Join(stream, "1", 2, [(0, b"x")])]
    command = functions.submit(keys.request(second), second, EPOCH, b"", "", 60_000, 60_000, join, waits)
    try:
        begin = [Start(stream, "0", [b"x"])]
        awaited = functions.submit(keys.request(first), first, EPOCH, b"", "", 60_000, 60_000, begin)
        assert as_role[role].execute_command(*awaited) == b"OK"
        assert as_role[role].execute_command(*command) == b"OK"
        assert as_role[role].execute_command(*functions.close(keys.request(first), first, "c", b"")) == 1
        state, end = as_role[role].execute_command(*functions.look(keys.request(second)))
        assert (state, end[-len(first) :]) == (b"c", first.encode())
        assert as_role[role].execute_command(*functions.forget([keys.request(first), keys.request(second)])) == b"OK"
    finally:
        as_role["deployer"].delete(stream)


@pytest.mark.parametrize("role", ["gateway", "worker"])
def test_who_cancels_a_call_that_runs_may_take_it_from_its_replica(as_role: dict[str, redis.Redis], role: str) -> None:
    keys, request_id = Keys(), "e" * 32
    stream = keys.stream("runs", "v", "One")
    as_role["deployer"].set(EPOCH.key, EPOCH.value)
    create_group(as_role["deployer"], stream)
    begin = [Start(stream, "0", [b"x"])]
    command = functions.submit(keys.request(request_id), request_id, EPOCH, b"", "", 60_000, 0, begin)
    try:
        as_role[role].execute_command(*command)
        take_one(as_role["worker"], stream)
        assert as_role[role].execute_command(*functions.close(keys.request(request_id), request_id, "c", b"")) == 1
        assert as_role["worker"].xpending(stream, GROUP)["pending"] == 0
    finally:
        as_role["deployer"].delete(stream)


def test_the_deployer_may_see_what_gateways_serve_and_wait_for_it(
    guarded: Guarded, as_role: dict[str, redis.Redis]
) -> None:
    keys = Keys()
    installation = Installation(guarded.settings("deployer"), as_role["deployer"])
    sealed = installation.seal.seal(keys.gateway("one").encode(), b"5-0")
    as_role["gateway"].set(keys.gateway("one"), sealed, px=60_000)

    wait_for_gateways(installation, "4-1", 1)


@pytest.mark.slow
@pytest.mark.long  # every stack of tests/faults has the users of the sample ACL
def test_the_roles_apart_serve_the_example_each_with_a_user_of_its_own(site: Site) -> None:
    broker = Guarded(site, find_server())
    port = free_port()

    def start(role: str, *command: str, module: str = "qserve") -> Process:
        env = {"QSERVE_BROKER_URL": broker.url(role), "QSERVE_SECRET_KEY": "the-key-of-this-test"}
        return site.start([sys.executable, "-m", module, *command], env=env, cwd=ROOT / "examples")

    worker = start("worker", "worker", "hello:language_classifier")
    gateway = start("gateway", "gateway", "--port", str(port))
    deploy = start("deployer", "deploy", "hello:language_classifier")
    assert deploy.wait() == 0, deploy.output

    def answer() -> str:
        with contextlib.suppress(OSError):
            return Client(port).post("/", {"language": "spanish", "name": "Dora"}).text
        return ""

    wait_until(lambda: answer() == "Hola Dora", description="the example answers")

    again = start("deployer", "deploy", "hello:language_classifier")
    assert again.wait() == 0, again.output
    assert answer() == "Hola Dora"
    tasks = start(TASKS, "tasks")
    producer = Celery(broker=broker.url(TASKS), backend=broker.url(TASKS), set_as_current=False)
    greeting = producer.send_task("qserve.default.SpanishResponder.greet", ["Dora"], queue="qserve", countdown=1)
    assert greeting.get(timeout=60) == "Hola Dora"
    assert producer.control.ping(timeout=60, limit=1)
    producer.close()
    inspect = start("worker", "-A", "qserve_workers.app", "inspect", "ping", "--timeout", "1", module="celery")
    assert inspect.wait() == 0, inspect.output
    assert "pong" in inspect.stdout
    doctor = start("deployer", "doctor")
    assert doctor.wait() == 0, doctor.output
    status = start("deployer", "status")
    assert status.wait() == 0, status.output
    assert "LanguageClassifier" in status.stdout
    for process in (tasks, gateway, worker):
        process.stop()
        assert process.exit_code() == 0, process.output
        assert "permission" not in process.output.lower(), process.output
        assert "secret" not in process.output


@pytest.mark.parametrize("role", ["gateway", "worker", TASKS])
def test_who_sends_values_may_store_large_ones_and_read_them(guarded: Guarded, role: str) -> None:
    store = ValueStore(guarded.settings(role), lambda: "")

    claim = store.put([(0, memoryview(b"x" * 3_000_000))], 3_000_000)

    assert bytes(store.get(claim)) == b"x" * 3_000_000
    store.close()
