"""The files of a folder in processes of their own, for those in which gevent has replaced threads and event loops.

The libraries of object stores need real ones. Each process does one thing at a time, at the request of a line in JSON,
and replies with another one; pieces of files follow, each behind a line with its length, and an empty one at the end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import IO, Any

from qserve.base.process import die_with_parent
from qserve.payloads.folder_files import Found, FsspecFiles


class ProcessFiles:
    """The files of the folder at a URL, see ``Files``."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._idle: list[subprocess.Popen[bytes]] = []  # list.pop and list.append are atomic

    def _ask(self, command: list[Any], data: Iterable[bytes | memoryview] = ()) -> tuple[Any, bytes]:
        """Return the reply and the bytes that come with it.

        Raises:
          OSError: It failed, or the process has ended.
        """
        process = self._idle.pop() if self._idle else self._started()
        there, back = process.stdin, process.stdout
        assert there is not None
        assert back is not None
        try:
            _send(there, command, data)
            error, is_missing, result = json.loads(back.readline() or b'["its process has ended", false, null]')
            content = b"".join(_pieces(back)) if error is None else b""
        except BaseException:
            _end(process)
            raise
        if process.poll() is None:
            self._idle.append(process)
        if error is not None:
            raise FileNotFoundError(error) if is_missing else OSError(error)
        return result, content

    def _started(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "qserve.payloads.folder_process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin is not None
        _send(process.stdin, self._url)
        return process

    def write(self, name: str, data: Iterable[bytes | memoryview]) -> None:
        self._ask(["write", name], data)

    def read(self, name: str, begin: int, end: int) -> bytes:
        return self._ask(["read", name, begin, end])[1]

    def remove(self, name: str) -> None:
        self._ask(["remove", name])

    def found(self) -> list[Found]:
        return [Found(*one) for one in self._ask(["found"])[0]]

    def close(self) -> None:
        while self._idle:
            _end(self._idle.pop())


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()


def _send(stream: IO[bytes], head: Any, data: Iterable[bytes | memoryview] = ()) -> None:
    stream.write(json.dumps(head).encode() + b"\n")
    for piece in data:
        if len(piece):
            stream.write(b"%d\n" % len(piece))
            stream.write(piece)
    stream.write(b"0\n")
    stream.flush()


def _pieces(stream: IO[bytes]) -> Iterator[bytes]:
    while length := int(stream.readline()):
        yield stream.read(length)


def _serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    url = json.loads(requests.readline())
    list(_pieces(requests))
    files = FsspecFiles(url)
    while line := requests.readline():
        (act, *arguments), data, result, content = json.loads(line), _pieces(requests), None, b""
        try:
            if act == "write":
                files.write(arguments[0], data)
            elif act == "read":
                content = files.read(*arguments)
            elif act == "remove":
                files.remove(*arguments)
            else:
                result = files.found()
        except Exception as error:
            reply = [str(error) or type(error).__name__, isinstance(error, FileNotFoundError), None]
        else:
            reply = [None, False, result]
        for _ in data:  # what is left of them when it has failed
            pass
        _send(replies, reply, [content] if reply[0] is None else ())


def main() -> None:
    die_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who has started it ends it
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # for what libraries print
    _serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    main()
