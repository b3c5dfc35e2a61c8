"""Another process that runs what a test tells it, line by line, until it is killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LOOP = """
import json, sys
scope, said = {}, sys.stdout
sys.stdout = sys.stderr
for line in sys.stdin:
    scope["result"] = None
    try:
        exec(json.loads(line), scope)
        reply = [None, scope["result"]]
    except Exception as error:
        reply = [f"{type(error).__name__}: {error}", None]
    print(json.dumps(reply), file=said, flush=True)
"""


class Remote:
    """A Python process with names of its own, which last from one ``run`` to the next."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", _LOOP]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def send(self, code: str) -> None:
        """Have it run some code; ``reply`` waits for that."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()

    def reply(self) -> Any:
        """Wait for the end of the code, and return what it has called ``result``; AssertionError if it has failed."""
        assert self.process.stdout is not None
        error, result = json.loads(self.process.stdout.readline())
        assert error is None, error
        return result

    def run(self, code: str) -> Any:
        """Send code and wait for its end."""
        self.send(code)
        return self.reply()

    def kill(self) -> None:
        """Kill it, as the kernel would."""
        self.process.kill()
        self.process.wait()


@contextmanager
def remotes(count: int) -> Iterator[list[Remote]]:
    """Start so many processes; they are killed at the end."""
    started = [Remote() for _ in range(count)]
    try:
        yield started
    finally:
        for one in started:
            one.kill()
            for stream in (one.process.stdin, one.process.stdout):
                if stream is not None:
                    stream.close()
