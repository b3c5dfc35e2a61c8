#!/usr/bin/env python3
"""Measure how long 1,000 submissions take one by one and by ``submit_many``, near the broker and far from it.

    python benchmarks/submit.py [--delay-ms 5]

The clock stops when the broker has confirmed all of them. Both ways take turns in one run: quote their ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import threading
import time

from harness.serving import broker, serving

import qserve

CALLS, ROUNDS = 1000, 7


@qserve.deployment
class Model:
    async def predict(self, x: int) -> int:
        return x


async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    """Pass on what comes, each piece so much later."""
    loop = asyncio.get_running_loop()
    while data := await reader.read(1 << 20):
        loop.call_later(delay_s, writer.write, data)
    loop.call_later(delay_s, writer.close)


def far_broker(path: str, delay_s: float) -> str:
    """Return an address at which the broker answers later by twice the delay."""
    ready, ports = threading.Event(), []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_unix_connection(path)
        await asyncio.gather(forward(reader, ours, delay_s), forward(theirs, writer, delay_s))

    async def serve() -> None:
        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()
        await server.serve_forever()

    threading.Thread(target=asyncio.run, args=(serve(),), daemon=True).start()
    ready.wait()
    return f"redis://127.0.0.1:{ports[0]}/0"


def measure(what: str, url: str, secret_key: bytes | None) -> None:
    """Print the medians of both ways, and their ratio."""
    times: dict[str, list[float]] = {"one by one": [], "submit_many": []}
    with qserve.connect(url, secret_key=secret_key) as client:
        predict = client.get_app_handle().predict
        predict.remote(0).result()
        for _ in range(ROUNDS):
            for way in times:
                began = time.perf_counter()
                if way == "one by one":
                    calls = [predict.remote(number) for number in range(CALLS)]
                else:
                    calls = client.submit_many(predict, [(number,) for number in range(CALLS)])
                qserve.accepted(calls)
                times[way].append(time.perf_counter() - began)
                qserve.get(calls)
    one, many = (statistics.median(times[way]) for way in times)
    print(f"{what}: one by one {one * 1e3:.0f} ms, submit_many {many * 1e3:.0f} ms, ratio {one / many:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay-ms", type=float, default=5.0, help="how far away the far broker is, one way")
    delay_ms = parser.parse_args().delay_ms
    with serving(Model.bind()):
        url, secret_key = broker()
        measure("near", url, secret_key)
        far = far_broker(url.removeprefix("unix://"), delay_ms / 1e3)
        measure(f"{2 * delay_ms:g} ms away", far, secret_key)


if __name__ == "__main__":
    main()
