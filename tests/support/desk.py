"""A desk for tests of the function library: it submits, fetches and commits by hand, on two queues."""

from __future__ import annotations

from typing import Any

import redis

from qserve.base.keyring import Keyring
from qserve.base.keys import GROUP, Keys
from qserve.broker import functions
from qserve.broker.connection import create_group
from qserve.wire.envelope import Header
from qserve.wire.moves import Epoch, Model
from qserve.wire.sealing import Seal, seal_header

A, B = "a" * 32, "b" * 32


KEYRING = Keyring(b"the-key-of-this-test")
SEAL = Seal(KEYRING)


def header_of(request_id: str) -> bytes:
    """A header as it travels, with a deadline long past."""
    return seal_header(SEAL, Header(request_id, "app", None, 0).encode())


class Desk:
    """Runs the functions for one test, on two queues."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self.client, self.keys = client, keys
        self.mailbox = keys.mailbox("me")
        self.epoch = Epoch(keys.epoch, "1")
        client.set(keys.epoch, "1")
        self.one, self.two = keys.stream("app", "v", "one"), keys.stream("app", "v", "two")
        for stream in (self.one, self.two):
            create_group(client, stream)

    def submit(self, request_id: str, moves: list[Any], **options: Any) -> bytes:
        keep_ms = options.pop("keep_ms", 60_000)
        header = options.pop("header", header_of(request_id))
        command = functions.submit(
            self.keys.request(request_id),
            request_id,
            options.pop("epoch", self.epoch),
            header,
            options.pop("mailbox", self.mailbox),
            options.pop("ttl_ms", 120_000),
            keep_ms,
            moves,
            **options.pop("model", Model())._asdict(),
            **options,
        )
        reply = self.client.execute_command(*command)
        return reply[:2] if isinstance(reply, list) else reply  # what follows is the header of an open request

    def fetch(self, stream: str, consumer: str = "replica") -> list[tuple[bytes, dict[bytes, bytes]]]:
        found: Any = self.client.xreadgroup(GROUP, consumer, {stream: ">"}, count=10)
        return found[0][1] if found else []

    def commit(self, stream: str, entry: bytes, request_id: str, **options: Any) -> bytes:
        found: Any = self.client.xrange(stream, entry, entry)
        step = found[0][1].get(b"s", b"0").decode() if found else "0"
        command = functions.commit(
            stream,
            self.keys.request(request_id),
            entry,
            request_id,
            options.pop("epoch", self.epoch),
            options.pop("attempt", entry.decode()),
            options.pop("step", step),
            **options,
        )
        return self.client.execute_command(*command)

    def give_back(self, stream: str, *entries: bytes, to: str = "") -> int:
        command = functions.give_back(stream, to or stream, entries, self.keys.request(""))
        return int(self.client.execute_command(*command))

    def watch(self, request_id: str, mailbox: str = "") -> tuple[bytes, bytes]:
        request = self.keys.request(request_id)
        command = functions.watch(request, mailbox) if mailbox else functions.look(request)
        state, result, *_ = self.client.execute_command(*command)
        return state, result

    def mail(self) -> list[bytes]:
        return self.client.lrange(self.mailbox, 0, -1)

    def is_idle(self, stream: str) -> bool:
        pending: Any = self.client.xpending(stream, GROUP)
        return self.client.xlen(stream) == 0 and pending["pending"] == 0

    def dead_letter(
        self, stream: str, entry: bytes, request_id: str, why: str, failure: bytes, what: str = "it failed"
    ) -> bytes:
        request = self.keys.request(request_id)
        command = functions.dead_letter(stream, request, entry, request_id, why, failure, "replica", what)
        answer: bytes = self.client.execute_command(*command)
        return answer

    def reclaim(self, consumer: str, limit: int = 3, stream: str = "") -> int:
        command = functions.reclaim(
            stream or self.one, stream or self.one, consumer, limit, b"lost", self.keys.request("")
        )
        return self.client.execute_command(*command)
