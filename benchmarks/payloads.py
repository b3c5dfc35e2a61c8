#!/usr/bin/env python3
"""Measure how long a large value takes from one process to another: by each store, and as bytes that are set and got.

    python benchmarks/payloads.py [--rounds 15]

Each round encodes a value here, and decodes it in a second process, which reads all of it. What it takes to read it
again is subtracted, and printed. Quote ratios of one run.
"""

from __future__ import annotations

import argparse
import os
import pickle
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy

from qserve.base.settings import Settings
from qserve.broker.connection import connect
from qserve.machine.embedded_broker import EmbeddedBroker
from qserve.payloads.shm_folder import SHM
from qserve.payloads.store import ValueStore
from qserve.wire.claim import claim_in
from qserve.wire.codec import Codec

MB = 1 << 20
VALUES: dict[str, Any] = {
    "bytes, 64 KB": os.urandom(MB // 16),
    "bytes, 1 MB": os.urandom(MB),
    "array, 1 MB": numpy.random.rand(MB // 8),
    "array, 8 MB": numpy.random.rand(MB),
    "array, 64 MB": numpy.random.rand(8 * MB),
}


def total(value: Any) -> float:
    """Read all of a value."""
    return float(numpy.frombuffer(value, "u1").max()) if isinstance(value, bytes) else float(value.sum())


def read_values(stores: dict[str, Settings]) -> None:
    """Decode what comes on the standard input, and answer each value with the time that it took to read it again."""
    url = next(iter(stores.values())).named_broker
    codecs = {name: Codec(values=ValueStore(settings, lambda: url)) for name, settings in stores.items()}
    client = connect(url)
    while header := sys.stdin.buffer.read(12):
        name = header[:8].strip().decode()
        data = sys.stdin.buffer.read(*struct.unpack("=I", header[8:]))
        value = client.get(data) if name == "set+get" else codecs[name].decode(data)
        total(value)
        began = time.perf_counter()
        total(value)
        took = time.perf_counter() - began
        del value
        sys.stdout.buffer.write(struct.pack("=d", took))
        sys.stdout.buffer.flush()


def main() -> None:
    """Start the reader, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="of which the median is taken (default: 15)")
    parser.add_argument("--reader", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.reader:
        read_values(pickle.loads(bytes.fromhex(arguments.reader)))
        return
    broker = EmbeddedBroker(8 << 30)
    broker.wait_ready()
    with tempfile.TemporaryDirectory() as folder:
        stores = {
            name: Settings(broker_url=broker.url, payloads=(url,), namespace="benchmark")
            for name, url in (("memory", "memory"), ("broker", "broker"), ("folder", f"file://{folder}"))
        }
        command = [sys.executable, __file__, "--reader", pickle.dumps(stores).hex()]
        reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            measure(stores, reader, broker.url, arguments.rounds)
        finally:
            reader.kill()
            broker.stop()


def measure(stores: dict[str, Settings], reader: subprocess.Popen[bytes], url: str, rounds: int) -> None:
    client = connect(url)
    made = {name: ValueStore(settings, lambda: url) for name, settings in stores.items()}

    def by_store(name: str) -> Callable[[Any], None]:
        store, codec = made[name], Codec(values=made[name])

        def once(value: Any) -> float:
            data = codec.encode(value)
            took = send(reader, name, data)
            claim = claim_in(data)
            assert claim is not None
            store.settled([claim])
            store.forget([claim])
            if name == "broker":
                client.unlink(f"{{benchmark}}:y:{claim.name}")
            return took

        return once

    def set_and_get(value: Any) -> float:
        client.set("k", memoryview(value).cast("B"))
        return send(reader, "set+get", b"k")

    ways = {**{name: by_store(name) for name in stores}, "set+get": set_and_get}
    print(
        f"{'':16}"
        + "".join(f"{name:>16}" for name in ways)
        + f"{'reading it':>16}   milliseconds, median of {rounds} (least)"
    )
    for what, value in VALUES.items():
        times: dict[str, list[float]] = {name: [] for name in ways}
        read = []
        for _ in range(rounds + 3):
            for name, once in ways.items():
                began = time.perf_counter()
                took = once(value)
                times[name].append(time.perf_counter() - began - took)
                read.append(took)
        columns = [one[3:] for one in times.values()] + [read]
        shown = [f"{statistics.median(one) * 1000:.2f} ({min(one) * 1000:.2f})" for one in columns]
        print(f"{what:16}" + "".join(f"{one:>16}" for one in shown), flush=True)
    folder = SHM / made["memory"].place.rpartition("/")[2]
    made["memory"].close()
    shutil.rmtree(folder)


def send(reader: subprocess.Popen[bytes], name: str, data: bytes) -> float:
    """Have the reader read a value; return what it takes to read it again."""
    assert reader.stdin is not None
    assert reader.stdout is not None
    reader.stdin.write(name.encode().ljust(8) + struct.pack("=I", len(data)) + data)
    reader.stdin.flush()
    return float(struct.unpack("=d", reader.stdout.read(8))[0])


if __name__ == "__main__":
    main()
