"""A broker behind Sentinels: found by their word, and left when it is the primary no longer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import hiredis
import pytest
import redis
from desk import Desk
from processes import Site, new_site, wait_until
from redis import ConnectionError as RedisConnectionError
from sentinels import PASSWORD, SERVICE, Watched

from qserve.base.keys import Keys
from qserve.base.settings import Settings
from qserve.broker.connection import connect, create_group, load_functions
from qserve.broker.doctor import examine, read_facts
from qserve.broker.link import Link
from qserve.calls.client import ClientPlane
from qserve.calls.ref import Call
from qserve.exceptions import BrokerUnavailable, NotReplicated
from qserve.wire.application import ApplicationRecord, DeploymentRecord
from qserve.wire.moves import Start


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    with new_site() as site:
        yield Watched(site)


def by_link(url: str, *commands: tuple[str, ...]) -> list[Any]:
    async def run() -> list[Any]:
        link = await Link.open(url)
        try:
            return [await link.call(command) for command in commands]
        finally:
            link.close()

    return asyncio.run(run())


def test_both_kinds_of_connection_are_led_to_the_primary(watched: Watched) -> None:
    with contextlib.closing(connect(watched.url)) as client:
        assert client.info("server")["tcp_port"] == watched.primary()
        assert client.set("test", "1", px=1000)
    assert by_link(watched.url, ("ROLE",))[0][0] == b"master"


def test_a_sentinel_that_does_not_answer_is_passed_over(watched: Watched) -> None:
    url = watched.url.replace(f"@127.0.0.1:{watched.sentinel_port}", f"@127.0.0.1:1,127.0.0.1:{watched.sentinel_port}")
    with contextlib.closing(connect(url)) as client:
        assert client.ping()
    assert by_link(url, ("PING",)) == [b"PONG"]


def test_a_service_that_no_sentinel_knows_is_named(watched: Watched) -> None:
    url = watched.url.replace(f"/{SERVICE}/", "/nothing/")
    with pytest.raises(BrokerUnavailable, match="does not know 'nothing'"):
        by_link(url, ("PING",))
    with contextlib.closing(connect(url)) as client, pytest.raises(RedisConnectionError) as caught:
        client.ping()
    place = f"127.0.0.1:{watched.sentinel_port}"
    assert str(caught.value) == f"no Sentinel names a primary of 'nothing': {place} watches '{SERVICE}'"


def test_sentinels_of_which_none_answers_are_listed_in_words() -> None:
    url = "sentinel://:secret@127.0.0.1:1,localhost:2/mymaster/0"
    with contextlib.closing(connect(url)) as client, pytest.raises(RedisConnectionError) as caught:
        client.ping()

    text = str(caught.value)
    assert text.startswith("no Sentinel names a primary of 'mymaster': 127.0.0.1:1 cannot be reached: ")
    assert "; localhost:2 cannot be reached: " in text
    assert "<" not in text
    assert "secret" not in text


def demote(client: Any) -> None:
    client.replicaof("127.0.0.1", "1")


def test_a_client_leaves_a_server_that_was_demoted(site: Site) -> None:
    url = site.broker()
    with contextlib.closing(connect(url)) as client, contextlib.closing(connect(url)) as admin:
        demote(admin)
        with pytest.raises(RedisConnectionError, match="replica now"):
            client.set("test", "1")
        first = client.client_id()
        pipe = client.pipeline(transaction=False)
        pipe.set("test", "1").get("test")
        with pytest.raises(RedisConnectionError, match="replica now"):
            pipe.execute(raise_on_error=False)
        assert client.client_id() != first


def test_a_link_leaves_a_server_that_was_demoted_and_reports_it_once(site: Site) -> None:
    url = site.broker()
    lost: list[Any] = []

    async def run() -> None:
        link = await Link.open(url)
        link.when_lost(lost.append)
        with contextlib.closing(connect(url)) as admin:
            demote(admin)
        with pytest.raises(hiredis.ReplyError, match="READONLY"):
            await asyncio.wait_for(link.call(("SET", "test", "1")), 5)
        while not lost:
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(run(), 10))
    assert lost == [[]]


def test_a_replica_is_refused_by_a_link_whoever_names_it(watched: Watched) -> None:
    replica = next(port for port in watched.ports if port != watched.primary())
    with pytest.raises(BrokerUnavailable, match="it is a replica now"):
        by_link(f"redis://:{PASSWORD}@127.0.0.1:{replica}/0", ("PING",))


def test_the_doctor_looks_at_the_primary_and_at_what_could_take_over(watched: Watched) -> None:
    settings = Settings(broker_url=watched.url, secret_key=b"the-key-of-this-test")
    with contextlib.closing(connect(watched.url)) as client:
        facts = read_facts(client, settings)
    assert (facts.role, facts.replicas, facts.sentinels) == ("master", 1, 1)
    found = {finding.what: finding for finding in examine(facts)}
    assert found["it is a primary"].level == "ok"
    (redundancy,) = [one for one in found.values() if "Sentinel" in one.what]
    assert redundancy.level == "warning"
    assert "1 Sentinel" in redundancy.what
    assert PASSWORD not in str(found)


# -- durability=replica ----------------------------------------------------------------------------


def test_a_request_that_a_replica_has_is_accepted_and_one_that_none_has_is_refused_and_ended(site: Site) -> None:
    watched = Watched(site, guarded=False)
    settings = Settings(broker_url=watched.url_of(watched.ports[0]), durability="replica")
    plane = ClientPlane(settings)
    load_functions(plane.client)
    app = ApplicationRecord("app", "v", "One", deployments={"One": DeploymentRecord("One")})
    stream = app.stream(plane.keys, "One")
    create_group(plane.client, stream)
    plane.cache_application(app, for_s=1000)
    primary, replica = (watched.node(port) for port in watched.ports)
    try:
        accepted = plane.submit(Call("app", "One", args=(1,)))
        assert accepted.acceptance.wait(60)
        assert replica.exists(plane.keys.request(accepted.request_id)), "a replica has it when it counts as accepted"

        replica.replicaof("NO", "ONE")
        wait_until(lambda: primary.info("replication")["connected_slaves"] == 0, description="no replica is left")
        refused = plane.submit(Call("app", "One", args=(2,), owned=True))
        with pytest.raises(NotReplicated, match="send it again"):
            refused.result(timeout_s=60)
        assert not accepted.done.is_set()
        key = plane.keys.request(refused.request_id)
        wait_until(lambda: primary.hget(key, "st") in (b"c", None), description="it was ended")
        assert primary.xlen(stream) == 1, "and will not run"
    finally:
        plane.close()


def test_a_submission_that_is_sent_again_waits_for_a_replica_as_well(client: redis.Redis, keys: Keys) -> None:
    desk = Desk(client, keys)
    moves = [Start(desk.one, "0", [b"x"])]
    assert desk.submit("a" * 32, moves) == b"OK"
    before = client.info("persistence")["rdb_changes_since_last_save"]
    assert desk.submit("a" * 32, moves) == b"DUP"
    assert client.info("persistence")["rdb_changes_since_last_save"] > before, "only a write moves what WAIT looks at"
    assert client.xlen(desk.one) == 1
