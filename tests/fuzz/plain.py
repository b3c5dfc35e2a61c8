"""Feeds random bytes to everything that reads foreign bytes, without any tool: CI runs this for a minute.

``fuzz.py`` finds more, guided by the branches that are taken, but atheris has wheels for some versions of Python only.
An input that is found here is printed, and belongs in ``corpus/<target>/`` once its reader is mended.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time
from collections.abc import Callable

import msgpack
from targets import TARGETS, Target

TOO_LONG_S = 1.0
_TOKENS = (
    *(b"", b"\0", b"\xff", b"\xc1", b"\x90", b"\xed\xa0\x80", b"-1", b"1_0", b"|", b"nan", b"1" * 30),
    *(b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\1", b"\xc7\0\1"),
    *(b"[" * 100, b"{" * 100, b"\x91" * 300, b"\xd4\1" * 300),
)
Change = Callable[[random.Random, bytes, list[bytes]], bytes]


def _flip(chance: random.Random, data: bytes, corpus: list[bytes]) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(chance.randint(1, 4)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def _cut(chance: random.Random, data: bytes, corpus: list[bytes]) -> bytes:
    first, last = sorted(chance.choices(range(len(data) + 1), k=2))
    return data[:first] + data[last:]


def _insert(chance: random.Random, data: bytes, corpus: list[bytes]) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + chance.choice(_TOKENS) + data[at:]


def _cross(chance: random.Random, data: bytes, corpus: list[bytes]) -> bytes:
    other = chance.choice(corpus)
    return data[: chance.randrange(len(data) + 1)] + other[chance.randrange(len(other) + 1) :]


def _wrap(chance: random.Random, data: bytes, corpus: list[bytes]) -> bytes:
    for _ in range(chance.choice((1, 2, 130, 260))):
        data = b"\x91" + data if chance.random() < 0.5 else msgpack.packb(msgpack.ExtType(chance.randrange(45), data))
    return data


def _random(chance: random.Random, data: bytes, corpus: list[bytes]) -> bytes:
    return chance.randbytes(chance.randrange(80))


_CHANGES: tuple[Change, ...] = (_flip, _flip, _cut, _insert, _cross, _wrap, _random)


def fuzz(target: Target, chance: random.Random, seconds: float) -> tuple[int, bytes | None]:
    """Try one target for so long; return how many inputs were tried, and the one that it fails with."""
    corpus, tried, end = target.corpus(), 0, time.monotonic() + seconds
    while time.monotonic() < end:
        data = chance.choice(corpus)
        for _ in range(chance.randint(1, 3)):
            data = chance.choice(_CHANGES)(chance, data, corpus)
        began = time.process_time()
        try:
            target.run(data)
        except BaseException as error:
            print(f"{target.name}: {type(error).__name__}: {error}: {data!r}")
            return tried, data
        if time.process_time() - began > TOO_LONG_S:
            print(f"{target.name} takes longer than {TOO_LONG_S} s: {data!r}")
            return tried, data
        tried += 1
    return tried, None


def main() -> int:
    """Try all targets one after another; return how many fail."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together (default: 60)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32), help="repeats a run")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    logging.disable()  # a line for each request that failed would be a million lines
    failing = []
    for target in TARGETS:
        chance = random.Random(f"{arguments.seed} {target.name}")
        tried, found = fuzz(target, chance, arguments.seconds / len(TARGETS))
        print(f"{target.name}: {tried} inputs", flush=True)
        failing += [] if found is None else [target.name]
    print(f"failing: {', '.join(failing) or 'none'}")
    return len(failing)


if __name__ == "__main__":
    sys.exit(main())
