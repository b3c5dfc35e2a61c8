"""Faults at random, one after the other, for as long as one likes: `make chaos-soak`.

``CHAOS_SEED`` repeats a run (its seed is printed), ``CHAOS_SECONDS`` says how long it lasts (60).
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgpack
import pytest
from invariants import check
from load import Load
from processes import frozen, wait_until
from proxy import Proxy
from stacks import Stack, kill, last

from qserve.base.keys import DEAD_LETTER, REQUEST
from qserve.wire.outcome import HOLDERS, Field

LASTS_S = float(os.environ.get("CHAOS_SECONDS", "60"))
SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
AT_ONCE = 100
STORES = ({}, {"QSERVE_PAYLOADS": "memory,broker", "QSERVE_PAYLOAD_THRESHOLD": "64"})
"""The second has nearly all values stored beside the messages."""


def memories() -> set[Path]:
    """The folders in which installations on this host store values."""
    return set(Path("/dev/shm").glob(f"qserve-{os.getuid()}-*"))


def files(others: set[Path]) -> set[str]:
    """The names of the values in memory, but for those of other installations."""
    return {path.name for folder in memories() - others for path in (folder / "v").glob("*")}


def held(stack: Stack) -> Counter[str]:
    """How many requests, kept results and dead letters hold each stored value, as they say themselves."""
    found: Counter[str] = Counter()
    for kind in (REQUEST, DEAD_LETTER):
        for key in stack.broker.client.scan_iter(stack.keys._name(kind, "*"), count=1000):
            found.update(list(msgpack.unpackb(stack.broker.client.hget(key, Field.VALUES) or b"\x80")))
    return found


def stored(stack: Stack) -> dict[str, int]:
    """How many hold each, as the broker has counted."""
    keys = list(stack.broker.client.scan_iter(stack.keys.value("*"), count=1000))
    counts = [(key.decode().rpartition(":")[2], stack.broker.client.hget(key, HOLDERS)) for key in keys]
    return {name: int(count) for name, count in counts if count}  # others are being stored, or were, and expire


@dataclass
class Faults:
    """What may happen to an installation.

    Parameters:
      proxy: Stands between its workers and the broker.
    """

    stack: Stack
    proxy: Proxy
    source: random.Random

    def kill_a_replica(self) -> None:
        kill(self.source.choice(self.stack.replicas()).pid)

    def freeze_a_replica(self) -> None:
        with frozen(self.source.choice(self.stack.replicas()).pid):
            last(self.source.uniform(0.1, 3.0))

    def kill_a_gateway_process(self) -> None:
        kill(self.source.choice(self.stack.gateway_workers()))

    def kill_the_supervisor(self) -> None:
        kill(self.stack.supervisor.pid)
        self.stack.supervisor = self.stack.worker()

    def restart_the_broker(self) -> None:
        self.stack.broker.kill()
        last(self.source.uniform(0.0, 1.0))
        self.stack.broker.start()

    def freeze_the_broker(self) -> None:
        with self.stack.broker.frozen():
            last(self.source.uniform(0.1, 2.0))

    def cut_all_workers_off(self) -> None:
        self.proxy.cut(reset=self.source.random() < 0.5)

    def lose_a_reply(self) -> None:
        self.proxy.drop_reply(self.source.choice(["qserve_commit", "qserve_look", "XREADGROUP", "qserve_reclaim"]))

    def be_silent_to_workers(self) -> None:
        self.proxy.black_hole()
        last(self.source.uniform(0.1, 3.0))
        self.proxy.restore()

    def flush_the_functions(self) -> None:
        self.stack.broker.client.execute_command("FUNCTION", "FLUSH")


@pytest.mark.soak
@pytest.mark.timeout(LASTS_S + 180)
@pytest.mark.parametrize("stores", STORES, ids=["messages", "stored values"])
def test_nothing_accepted_is_lost_whatever_happens_one_after_the_other(
    new_stack: Callable[..., Stack], stores: dict[str, str]
) -> None:
    print(f"CHAOS_SEED={SEED}")
    source = random.Random(SEED)
    stack = new_stack()
    proxy = Proxy(stack.broker.port)
    stack.env |= {"QSERVE_BROKER_URL": proxy.url, **stores}
    others = memories()
    stack.start(gateway={"QSERVE_BROKER_URL": stack.broker.url}, gateway_workers=2)
    faults = Faults(stack, proxy, source)
    kinds = [name for name in vars(Faults) if not name.startswith("_") and callable(getattr(Faults, name))]
    load, by_http = stack.load(), Load(stack.http(), rate=25).start()

    end, done = time.monotonic() + LASTS_S, []
    while time.monotonic() < end:
        last(source.uniform(2.0, 5.0))
        done.append(source.choice(kinds))
        print(done[-1])
        wait_until(stack.replicas, description="a replica runs")
        wait_until(stack.gateway_workers, description="a gateway process runs")
        getattr(faults, done[-1])()
    wait_until(stack.is_serving, description="the gateway is healthy")
    stack.wait_replicas()
    load.more(100)
    calls = [*load.stop(), *by_http.stop()]

    assert load.calls[-1].is_right
    assert by_http.calls[-1].is_right
    check(stack, calls, reruns=AT_ONCE * len(done), may_log=["."])
    wait_until(lambda: held(stack) == stored(stack), description="what is stored is what is held")
    wait_until(lambda: files(others) <= stored(stack).keys(), description="no file is left")
    proxy.close()
