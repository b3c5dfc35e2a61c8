"""A TCP proxy in front of a broker, which loses what a test wants to be lost."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable

import hiredis

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: closing then sends RST instead of FIN."""


class Proxy:
    """Passes bytes on between clients and a broker, and does what a bad network does.

    Parameters:
      port: The broker's port on this host.

    Attributes:
      port: Where clients connect.
      latency_s: How long each piece waits before it is passed on.
      piece: The most bytes that are passed on at once; 0 for as many as came.
      dropped: How many replies were lost.
      accepts: While it is cleared, new connections reach nobody.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self.latency_s = 0.0
        self.piece = 0
        self.dropped = 0
        self._passing = threading.Event()
        self._passing.set()
        self.accepts = threading.Event()
        self.accepts.set()
        self._wanted: tuple[list[bytes], int] | None = None
        self._content: bytes | None = None
        self._lock = threading.Lock()
        self._pairs: list[_Pair] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    @property
    def url(self) -> str:
        """The broker's address by way of this proxy."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        with self._lock:
            return len(self._pairs)

    @property
    def addresses(self) -> set[str]:
        """Where the connections come from that are open now, as the broker names it."""
        with self._lock:
            return {"{}:{}".format(*pair.source) for pair in self._pairs}

    def drop_reply(self, *texts: str, nth: int = 1) -> None:
        """Lose the reply of the ``nth`` command from now on that contains all texts, and cut its connection.

        The command itself reaches the broker and is carried out.
        """
        with self._lock:
            self._wanted = ([text.encode() for text in texts], nth)

    def drop_reply_with(self, content: bytes) -> None:
        """Lose the next reply that holds these bytes, and cut its connection."""
        with self._lock:
            self._content = content

    def fall_silent(self) -> None:
        """Carry nothing more over the connections there are now, and keep them open."""
        with self._lock:
            for pair in self._pairs:
                pair.silent = True

    def black_hole(self) -> None:
        """Pass nothing on until ``restore``; nobody is told, and what was sent arrives late."""
        self._passing.clear()

    def restore(self) -> None:
        """End a black hole."""
        self._passing.set()

    def cut(self, reset: bool = True) -> int:
        """Close all connections, by RST or by FIN, and tell how many they were; new ones are accepted."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            pair.close(reset)
        return len(pairs)

    def close(self) -> None:
        """End the proxy."""
        with contextlib.suppress(OSError):  # the thread that accepts would take one connection more
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._passing.set()
        self.accepts.set()
        self.cut()

    def is_wanted(self, command: list[bytes]) -> bool:
        """Count a command; whether it is the one whose reply is to be lost."""
        with self._lock:
            if self._wanted is None or not all(any(text in part for part in command) for text in self._wanted[0]):
                return False
            texts, left = self._wanted
            self._wanted = (texts, left - 1) if left > 1 else None
            return left == 1

    def is_unwanted(self, reply: bytes) -> bool:
        """Whether a reply is the one that is to be lost for what it holds."""
        with self._lock:
            if self._content is None or self._content not in reply:
                return False
            self._content = None
            return True

    def pass_on(self, data: bytes, send: Callable[[bytes], None]) -> None:
        """Send data as the network does now."""
        step = self.piece or len(data)
        for start in range(0, len(data), step):
            if self.latency_s:
                time.sleep(self.latency_s)
            self._passing.wait()
            send(data[start : start + step])

    def forget(self, pair: _Pair) -> None:
        """A connection has ended."""
        with self._lock, contextlib.suppress(ValueError):
            self._pairs.remove(pair)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepts.wait()
            try:
                server = socket.create_connection(self._target, timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = _Pair(self, client, server)
            with self._lock:
                self._pairs.append(pair)
            pair.start()


class _Pair:
    """One client's connection and the one to the broker that stands behind it."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self.source = server.getsockname()
        self._commands, self._replies = hiredis.Reader(), hiredis.Reader()
        self._sent = self._answered = 0
        self._lose: int | None = None
        self.silent = False

    def start(self) -> None:
        """Pass on in both directions, until one of them ends."""
        for pump in (self._upwards, self._downwards):
            threading.Thread(target=self._run, args=(pump,), daemon=True).start()

    def close(self, reset: bool) -> None:
        """End both connections."""
        for sock in (self._client, self._server):
            with contextlib.suppress(OSError):
                if reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    # another thread may be blocked in `recv`, which keeps the socket open: wake it
                    sock.shutdown(socket.SHUT_RD)
                else:
                    sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _run(self, pump: Callable[[], None]) -> None:
        with contextlib.suppress(OSError, ValueError):
            pump()
        if not self.silent:
            self._proxy.forget(self)
            self.close(reset=False)

    def _upwards(self) -> None:
        while data := self._client.recv(65536):
            self._commands.feed(data)
            while (command := self._commands.gets()) is not False:
                self._sent += 1
                if self._lose is None and self._proxy.is_wanted(_parts(command)):
                    self._lose = self._sent
            if not self.silent:
                self._proxy.pass_on(data, self._server.sendall)

    def _downwards(self) -> None:
        while data := self._server.recv(65536):
            self._replies.feed(data)
            while self._replies.gets() is not False:
                self._answered += 1
            is_answer = self._lose is not None and self._answered >= self._lose
            if is_answer or self._proxy.is_unwanted(data):
                self._proxy.dropped += 1
                self.close(reset=True)
                return
            if not self.silent:
                self._proxy.pass_on(data, self._client.sendall)


def _parts(command: object) -> list[bytes]:
    return [part for part in command if isinstance(part, bytes)] if isinstance(command, list) else []
