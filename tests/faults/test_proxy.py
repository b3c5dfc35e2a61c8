"""The proxy does to a connection what its methods say."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from brokers import Broker
from processes import Site, new_site, wait_until
from proxy import Proxy

from qserve.broker.connection import connect


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with new_site() as site:
        yield Broker(site)


@pytest.fixture
def proxy(broker: Broker) -> Iterator[Proxy]:
    broker.client.flushall()
    proxy = Proxy(broker.port)
    yield proxy
    proxy.close()


def test_bytes_pass_through_unchanged(proxy: Proxy) -> None:
    client, value = connect(proxy.url), bytes(range(256)) * 4096

    client.set("key", value)

    assert client.get("key") == value


@pytest.mark.parametrize("setting", [{"piece": 1}, {"latency_s": 0.001, "piece": 7}])
def test_slow_and_torn_bytes_still_make_whole_commands(proxy: Proxy, setting: dict[str, float]) -> None:
    for name, value in setting.items():
        setattr(proxy, name, value)
    client = connect(proxy.url)

    client.set("key", "x" * 300)

    assert client.get("key") == b"x" * 300


def test_a_command_whose_reply_is_lost_was_carried_out_once(proxy: Proxy, broker: Broker) -> None:
    client = connect(proxy.url)
    proxy.drop_reply("INCR", nth=2)

    assert client.incr("count") == 1
    with pytest.raises(redis.ConnectionError):
        client.incr("count")

    assert broker.client.get("count") == b"2"
    assert client.incr("count") == 3
    assert proxy.dropped == 1


def test_a_reply_is_lost_in_the_middle_of_a_pipeline(proxy: Proxy, broker: Broker) -> None:
    client = connect(proxy.url)
    proxy.drop_reply("second")

    pipe = client.pipeline(transaction=False)
    for name in ("first", "second", "third"):
        pipe.incr(name)
    with pytest.raises(redis.ConnectionError):
        pipe.execute()

    assert broker.client.mget("first", "second") == [b"1", b"1"]


def test_a_black_hole_is_silent_and_what_was_sent_arrives_late(proxy: Proxy, broker: Broker) -> None:
    client = connect(proxy.url)
    client.connection_pool.connection_kwargs["socket_timeout"] = 1
    client.ping()  # a connection that is not yet open would not get as far as the command
    proxy.black_hole()

    with pytest.raises(redis.TimeoutError):
        client.incr("count")
    assert broker.client.get("count") is None
    proxy.restore()

    wait_until(lambda: broker.client.get("count") == b"1", description="the command arrives")


@pytest.mark.parametrize("reset", [True, False])
def test_cut_connections_are_noticed_at_once_and_made_anew(proxy: Proxy, broker: Broker, reset: bool) -> None:
    def reads() -> bool:  # before its command is sent, redis-py connects again by itself
        return any("b" in one["flags"] for one in broker.client.client_list())

    client = connect(proxy.url)
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(client.blpop, ["nothing"], 0)
        wait_until(reads, description="the command has come to the broker")

        proxy.cut(reset)

        assert isinstance(reading.exception(timeout=60), redis.ConnectionError)
    assert client.ping()


def test_a_broker_that_is_gone_is_a_closed_connection(site: Site) -> None:
    broker = Broker(site)
    proxy = Proxy(broker.port)
    client = connect(proxy.url)
    assert client.ping()

    broker.kill()

    with pytest.raises(redis.ConnectionError):
        client.ping()
    with pytest.raises(redis.ConnectionError):
        client.ping()
    broker.start()
    assert client.ping()
    proxy.close()
