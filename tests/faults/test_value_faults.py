"""Large values that are stored beside the messages, while processes die and stores are full, lost or away."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from installation import Installation
from memories import memory_of
from processes import QSERVE, Process, Site, wait_until
from rows import row

from qserve.calls.ref import Call, Ref
from qserve.exceptions import ValueLost, ValueUnreachable

MB = 1_000_000
SOURCE = """
import os, time
import qserve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.http_adapters import json_request

def note(folder, name):
    with open(os.path.join(folder, name), "a") as file:
        file.write(f"{os.getpid()}\\n")

@qserve.deployment
class Make:
    def go(self, job):
        note(job["folder"], "made")
        return {"job": job, "data": bytes([job["byte"]]) * job["size"]}

@qserve.deployment(graceful_shutdown_timeout_s=20)
class Check:
    def go(self, value):
        job, data = value["job"], value["data"]
        note(job["folder"], "begun")
        while job["gate"] and not os.path.exists(os.path.join(job["folder"], job["gate"])):
            time.sleep(0.01)
        assert data == bytes([job["byte"]]) * job["size"]
        note(job["folder"], "checked")
        return len(data)

with InputNode() as job:
    app = DAGDriver.bind(Check.bind().go.bind(Make.bind().go.bind(job)), http_adapter=json_request)
"""
IN_MEMORY = {"QSERVE_PAYLOADS": "memory,broker"}


class Values(Installation):
    """A chain of two steps, of which the first passes a large value to the second."""

    def __init__(self, site: Site) -> None:
        super().__init__(site, SOURCE)
        self.folder = site.folder / "ledger"
        self.folder.mkdir()

    def start(self, **env: str) -> Process:
        process = self.worker(**env)
        deploy = self.deploy()
        assert deploy.wait() == 0, deploy.output + process.output
        return process

    def begin(self, size: int = 2 * MB, gate: str = "", byte: int = 7) -> Ref[Any]:
        job = {"size": size, "folder": str(self.folder), "gate": gate, "byte": byte}
        return self.plane.submit(Call("default", "DAGDriver", "predict", (job,)))

    def lines(self, name: str) -> list[int]:
        """Which processes have come to a point, by their ids."""
        path = self.folder / name
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def open(self, gate: str) -> None:
        (self.folder / gate).touch()

    def kept(self) -> list[str]:
        """What is stored of values: files in the memory of this host, and keys in the broker."""
        files = [str(path) for path in (self.memory / "v").glob("*")]
        return files + [key.decode() for key in self.client.scan_iter("*:y:*", count=1000)]

    @cached_property
    def memory(self) -> Path:
        return memory_of(self.url)

    def is_clean(self) -> bool:
        return not self.kept()


@pytest.fixture
def values(site: Site) -> Iterator[Values]:
    installation = Values(site)
    try:
        yield installation
    finally:
        memory = installation.memory
        installation.close()
        shutil.rmtree(memory, ignore_errors=True)


def once(values: Values, point: str) -> dict[str, str]:
    return {"QSERVE_FAILPOINT": f"{point}:kill9", "QSERVE_FAILPOINT_ONCE": str(values.folder / "fired")}


@row("F66")
@pytest.mark.parametrize("point", ["commit.before_send", "commit.after_send"])
def test_a_replica_that_is_killed_around_the_commit_of_a_value_loses_none_and_leaves_none(
    values: Values, point: str
) -> None:
    values.start(**IN_MEMORY, **once(values, point))

    assert values.begin().result(60) == 2 * MB

    assert (values.folder / "fired").exists()
    assert len(values.lines("made")) == (2 if point == "commit.before_send" else 1)
    wait_until(values.is_clean, description="no file and no key is left")


@row("F67")
def test_a_replica_that_is_killed_while_it_reads_a_value_leaves_it_to_the_next(values: Values) -> None:
    values.start(**IN_MEMORY)
    ref = values.begin(gate="open")
    (reader,) = wait_until(lambda: values.lines("begun"), description="it is being read")

    os.kill(reader, signal.SIGKILL)
    wait_until(lambda: len(values.lines("begun")) == 2, description="another replica reads it")
    values.open("open")

    assert ref.result(60) == 2 * MB
    wait_until(values.is_clean, description="no file and no key is left")


@row("F68")
def test_what_finds_no_room_in_memory_goes_to_the_next_store_and_no_request_fails(values: Values) -> None:
    worker = values.start(**IN_MEMORY, QSERVE_SHM_LIMIT="8m")

    refs = [values.begin(6 * MB, gate="open", byte=byte) for byte in range(4)]
    wait_until(lambda: len(values.lines("made")) == 4, description="all of them are stored")
    assert [*values.client.scan_iter("*:y:*")]
    values.open("open")

    assert [ref.result(60) for ref in refs] == [6 * MB] * 4
    assert worker.output.count("memory takes no more large values") == 1
    wait_until(values.is_clean, description="no file and no key is left")


def can_unshare() -> bool:
    """Whether this user may make a host of its own, with another name and other memory."""
    probe = ["unshare", "--mount", "--uts", "sh", "-c", "hostname other && mount -t tmpfs tmpfs /dev/shm"]
    return (
        shutil.which("unshare") is not None and subprocess.run(probe, capture_output=True, check=False).returncode == 0
    )


elsewhere = pytest.mark.skipif(not can_unshare(), reason="it takes the rights to make a host with memory of its own")


def worker_elsewhere(values: Values, *options: str, **env: str) -> Process:
    """Start a worker on a host of its own, with 64 MB of memory for files, as a container has."""
    set_up = 'hostname other; mount -t tmpfs -o size=64m tmpfs /dev/shm; exec "$@"'
    command = ["unshare", "--mount", "--uts", "sh", "-euc", set_up, "sh", *QSERVE, "worker", "shop:app", *options]
    return values.site.start(command, env={**values.env, **env})


@row("F68")
@elsewhere
def test_a_container_with_64_mb_of_memory_passes_larger_values_by_the_next_store(values: Values) -> None:
    worker = worker_elsewhere(values, **IN_MEMORY)
    assert values.deploy().wait() == 0

    assert [values.begin(size * MB).result(60) for size in (20, 40, 80)] == [20 * MB, 40 * MB, 80 * MB]

    inside = Path(f"/proc/{worker.pid}/root") / "dev/shm"
    assert [*inside.glob("qserve-*/v")]
    wait_until(lambda: not [*inside.glob("qserve-*/v/*")], description="no file is left there")
    wait_until(values.is_clean, description="no key is left")


@row("F69")
@elsewhere
def test_a_step_on_a_host_that_cannot_read_the_value_fails_with_the_setting_that_helps(values: Values) -> None:
    values.worker("--deployment", "Make", **IN_MEMORY)
    worker_elsewhere(values, "--deployment", "Check", **IN_MEMORY)
    assert values.deploy().wait() == 0

    with pytest.raises(
        ValueUnreachable, match=f"the memory of the host '{socket.gethostname()}'.*QSERVE_PAYLOADS=broker"
    ):
        values.begin().result(60)

    doctor = values.command("doctor", **IN_MEMORY)
    assert doctor.wait() == 1
    assert "memories that the others cannot read" in doctor.output
    wait_until(values.is_clean, description="no file and no key is left")


@row("F69")
def test_a_value_that_is_lost_with_the_memory_of_its_host_fails_its_request_with_a_word_that_says_so(
    values: Values,
) -> None:
    values.start(**IN_MEMORY)
    first = values.begin(gate="open")
    wait_until(lambda: values.lines("begun"), description="the first is being read")
    second = values.begin(gate="open", byte=8)
    wait_until(lambda: len(values.lines("made")) == 2, description="the second waits")
    wait_until(lambda: len(list(values.client.scan_iter("*:y:*"))) == 2, description="and its value is held")

    for path in (values.memory / "v").glob("*"):
        path.unlink()
    values.open("open")

    assert first.result(60) == 2 * MB  # it was open already
    with pytest.raises(ValueLost, match=f"no longer in the memory of the host '{socket.gethostname()}'"):
        second.result(60)
    assert len(values.lines("begun")) == 1
    assert not values.client.exists(values.keys.dead_letters)
    wait_until(values.is_clean, description="no key is left")


@row("F70")
@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_broker_that_is_away_while_values_are_stored_there_costs_no_request(values: Values, how: str) -> None:
    values.start()
    refs = [values.begin(4 * MB, byte=byte) for byte in range(8)]
    wait_until(lambda: values.lines("made"), description="values are being stored")

    if how == "killed":
        os.kill(values.broker.pid, signal.SIGKILL)
        values.broker.wait()
        values.broker = values.start_broker()
    else:
        os.kill(values.broker.pid, signal.SIGSTOP)
        stands_still = Path(f"/proc/{values.broker.pid}/stat")
        wait_until(lambda: ") T " in stands_still.read_text(), description="it stands still")
        os.kill(values.broker.pid, signal.SIGCONT)

    assert [ref.result(90) for ref in refs] == [4 * MB] * 8
    wait_until(values.is_clean, description="no key is left", timeout_s=60)


@row("F70")
def test_a_folder_that_is_away_is_waited_for_until_the_deadline(values: Values) -> None:
    store = values.site.folder / "store"
    store.write_text("it is not mounted")
    worker = values.start(QSERVE_PAYLOADS=f"file://{store}")
    ref = values.begin()
    wait_until(lambda: "waits for a store of large values" in worker.output, description="the store is missed")

    store.unlink()
    store.mkdir()

    assert ref.result(60) == 2 * MB
    wait_until(lambda: not [path for path in store.rglob("*") if path.is_file()], description="no file is left")
    wait_until(values.is_clean, description="no key is left")
