"""Parse large JSON bodies in their own process, so that the gateway's only loop goes on meanwhile.

A thread would not do: ``json`` and msgpack hold the interpreter, and a body of 10 MiB takes up to two seconds. The
process follows the rules of ``strict_json``, and returns only what the graph reads of the body, encoded as it will
travel. It parses one body at a time, is started for the first large one, and ends with the gateway, because its input
ends then.
"""

from __future__ import annotations

import builtins
import gc
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO, Any

import msgpack

from qserve import exceptions
from qserve.exceptions import PayloadError
from qserve.graph.advance import ReadInput, read_input
from qserve.graph.plan import InputKey
from qserve.http.message import BadRequest
from qserve.http.strict_json import loads
from qserve.wire.codec import Codec, Encoded
from qserve_gateway.request.environ import Refused

_LENGTH_BYTES = 4
_ANY_LENGTH = 1 << 31
"""What is long is stored by the gateway."""
_ANSWER_FOR_S = 30.0
"""Ten times as long as the worst document takes on a slow machine."""


class JsonProcess:
    """Parses bodies, one at a time; callers wait for their turn."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def parse(self, body: bytes, keys: Sequence[InputKey], timeout_s: float) -> ReadInput:
        """Return what a graph reads of a body.

        Raises:
          BadRequest: The body is not JSON as ``strict_json`` wants it.
          PayloadError: A part of it cannot be sent.
          Refused: There was no turn in time, or the process ended (503).
        """
        if not self._turn.acquire(timeout=timeout_s):
            raise Refused(
                "this gateway process is still parsing other large bodies", "parser_busy", 503, retry_after_s=1
            )
        try:
            parts = self._ask(body, keys)
        finally:
            self._turn.release()
        read: dict[InputKey, Any] = {}
        for key, (kind, value) in zip(keys, parts, strict=True):
            if kind == "refused":
                raise BadRequest(value[0], value[1])
            error = getattr(exceptions, kind, None) or getattr(builtins, kind, None) if kind else None
            if isinstance(error, type) and issubclass(error, PayloadError):
                raise error(*value)
            read[key] = Encoded(value) if error is None else error(*value)
        return ReadInput(read, sum(len(part.data) for part in read.values() if isinstance(part, Encoded)))

    def close(self) -> None:
        """End the process; the next body starts another one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _ask(self, body: bytes, keys: Sequence[InputKey]) -> list[Any]:
        process = self._process
        if process is None or process.poll() is not None:
            command = [sys.executable, "-P", "-m", __name__]
            # in its own group: Ctrl-C in a terminal is for the gateway, with which it ends
            process = self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
        assert process.stdin is not None and process.stdout is not None
        watch = threading.Timer(_ANSWER_FOR_S, process.kill)
        watch.start()
        try:
            _write(process.stdin, msgpack.packb([(key.kind, key.key) for key in keys]))
            _write(process.stdin, body)
            parts: list[Any] = msgpack.unpackb(_read(process.stdout))
        except BaseException as error:
            # a reply that still comes would be taken for the reply to the next body
            self.close()
            if isinstance(error, OSError | EOFError):
                message = "the process that parses large JSON bodies ended; send the request again"
                raise Refused(message, "parser_lost", 503, retry_after_s=1) from error
            raise
        finally:
            watch.cancel()
        return parts


def _write(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(len(data).to_bytes(_LENGTH_BYTES, "big"))
    pipe.write(data)
    pipe.flush()


def _read(pipe: IO[bytes]) -> bytes:
    length = int.from_bytes(_read_exactly(pipe, _LENGTH_BYTES), "big")
    return _read_exactly(pipe, length)


def _read_exactly(pipe: IO[bytes], length: int) -> bytes:
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError
    return data


# -- in the process --------------------------------------------------------------------------------


def main() -> None:
    """Parse bodies until the input ends."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.disable()  # JSON has no cycles, and the collector would walk through every document again and again
    while True:
        try:
            keys = [InputKey(kind, key) for kind, key in msgpack.unpackb(_read(sys.stdin.buffer))]
            body = _read(sys.stdin.buffer)
        except EOFError:
            return
        answer = msgpack.packb(_parts(body, keys))
        del body
        _write(sys.stdout.buffer, answer)


def _parts(body: bytes, keys: Sequence[InputKey]) -> list[tuple[str, Any]]:
    """Return each part as "" and its encoding, or as the name of an error and its arguments."""
    try:
        value = loads(body)
    except BadRequest as error:
        return [("refused", (str(error), error.code))] * len(keys)
    codec = Codec(max_bytes=_ANY_LENGTH)
    parts: list[tuple[str, Any]] = []
    for key in keys:
        try:
            parts.append(("", codec.encode(read_input(key, (value,), {}))))
        except Exception as error:
            parts.append((type(error).__name__, error.args))
    return parts


if __name__ == "__main__":
    main()
