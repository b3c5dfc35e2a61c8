"""A broker of its own for a benchmark, and a door with TLS in front of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

from harness.processes import free_port, wait_until
from qserve.machine.embedded_broker import server_command


@contextlib.contextmanager
def broker(folder: Path) -> Iterator[str]:
    """Run a broker with its data in a folder, and yield its socket."""
    command = [*server_command(folder), "--appendfsync", "always"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until((folder / "broker.sock").exists, "the broker listens", 10.0)
    try:
        yield str(folder / "broker.sock")
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def tls_door(folder: Path, unix_socket: str) -> Iterator[str]:
    """Run a process that ends TLS in front of the broker, and yield the address that it gives the broker."""
    port, cert, key = free_port(), folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    door = os.fork()
    if door == 0:
        asyncio.run(_serve_tls(port, cert, key, unix_socket))
    try:
        yield f"rediss://localhost:{port}/0?ssl_ca_certs={cert}"
    finally:
        os.kill(door, signal.SIGKILL)
        os.waitpid(door, 0)


async def _serve_tls(port: int, cert: Path, key: Path, unix_socket: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_unix_connection(unix_socket)
        await asyncio.gather(copy(reader, forth), copy(back, writer))

    server = await asyncio.start_server(join, "localhost", port, ssl=context)
    await server.serve_forever()
