"""What several processes have counted, added up by the first of them, over a socket that they share."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Final

from qserve.base.forks import give_up, on_fork
from qserve.base.log import get_logger
from qserve.exceptions import PayloadError
from qserve.metrics.names import Names
from qserve.metrics.recorder import Recorder, limited
from qserve.wire.replies import warn_once
from qserve.wire.totals import Distribution, Family, Kind, Snapshot, decode, encode, pieces

log: Final = get_logger(__name__)
_LONGEST_MESSAGE = 1 << 16
_LATER = 100
"""How many messages wait in a process for room in the socket, before it counts on without telling."""
_ANSWER_S = 1.0
_MOST = 2000
"""How many metrics are added up, of all programs that have run here."""


class Totals:
    """The sums of what processes have counted; those of a process that ends stay, and its gauges go."""

    def __init__(self) -> None:
        self._names = Names()
        self._counted: Snapshot = {}
        self._gauges: dict[str, Snapshot] = {}
        self.changes: int = 0

    def add(self, sender: str, added: Snapshot) -> None:
        """Add what a process has counted since the last time; its gauges replace those that it said before."""
        self.changes += 1
        for name, family in added.items():
            if len(self._counted) >= _MOST and name not in self._counted:
                warn_once(f"{name!r} of {sender} is not counted: there are {_MOST} metrics already")
                continue
            other = self._names.take(family.about)
            if other is not None:
                warn_once(
                    f"the {family.about.kind} {name!r} of {sender} is not counted: another program has a {other.kind}"
                    f" {other.name!r} with the labels {other.labels}"
                )
            elif family.about.kind is Kind.GAUGE:
                self._gauges.setdefault(sender, {})[name] = family
            else:
                _add(self._counted, name, family)

    def forget(self, sender: str) -> None:
        """Remove the gauges of a process that has ended."""
        if self._gauges.pop(sender, None) is not None:
            self.changes += 1

    def snapshot(self) -> Snapshot:
        """Return all sums as they are now."""
        found = {name: Family(family.about, dict(family.values)) for name, family in self._counted.items()}
        for gauges in self._gauges.values():
            for name, family in gauges.items():
                _add(found, name, family)
        return found


def _add(totals: Snapshot, name: str, family: Family) -> None:
    known = totals.setdefault(name, Family(family.about)).values
    for given, value in family.values.items():
        labels = limited(family.about, given, known, {"application": "", "deployment": "", "replica": ""})
        before = known.get(labels)
        if isinstance(value, Distribution):
            known[labels] = before.plus(value) if isinstance(before, Distribution) else value
        else:
            known[labels] = value + before if isinstance(before, (int, float)) else value


class Channel:
    """The socket by which the processes that one has forked tell it what they have counted.

    Messages are whole and in order, and a process that is killed in the middle of one leaves nothing behind. Create it
    before the fork; ``receive`` in the parent, and give ``told`` to a ``Reporter`` in the children.

    Parameters:
      totals: What the messages are added to.
    """

    def __init__(self, totals: Totals) -> None:
        self.totals = totals
        self.heard: socket.socket
        self.told: socket.socket
        self.heard, self.told = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.heard.setblocking(False)
        self.told.setblocking(False)
        on_fork(self)

    def leave_to_parent(self) -> None:
        give_up(self.heard.fileno())

    def receive(self) -> None:
        """Add up all that was told."""
        while True:
            try:
                message, fds, _, _ = socket.recv_fds(self.heard, _LONGEST_MESSAGE, 1)
            except (BlockingIOError, InterruptedError):
                return
            if fds:
                self._reply(socket.socket(fileno=fds[0]))
                continue
            try:
                self.totals.add(*decode(message))
            except PayloadError as error:  # user code may write to what it inherits
                warn_once(f"a process said what cannot be counted: {error}")

    def close(self) -> None:
        """Close it, here."""
        self.heard.close()
        self.told.close()

    def _reply(self, asked: socket.socket) -> None:
        with asked, contextlib.suppress(OSError):  # it may be gone
            asked.settimeout(_ANSWER_S)
            asked.sendall(encode("", self.totals.snapshot()))


def ask(told: socket.socket) -> Snapshot | None:
    """Ask the process that adds up for all sums; None when it does not reply in time.

    Parameters:
      told: The ``told`` of its channel.
    """
    with contextlib.suppress(OSError, PayloadError):
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                socket.send_fds(told, [b"?"], [theirs.fileno()])
            ours.settimeout(_ANSWER_S)
            parts = []
            while part := ours.recv(1 << 16):
                parts.append(part)
            return decode(b"".join(parts))[1]
    return None


class Reporter:
    """Tells what this process has counted.

    Parameters:
      sender: This process's name, unique among those that tell.
      told: The ``told`` of the channel.
    """

    def __init__(self, recorder: Recorder, sender: str, told: socket.socket) -> None:
        self._recorder = recorder
        self._sender = sender
        self._told = told
        self._later: list[bytes] = []
        on_fork(self)

    def leave_to_parent(self) -> None:
        give_up(self._told.fileno())

    def flush(self) -> None:
        """Tell what is new; what finds no room in the socket is told the next time."""
        if len(self._later) < _LATER:
            self._later += self._messages()
        with contextlib.suppress(OSError):
            while self._later:
                self._told.send(self._later[0])
                del self._later[0]

    def _messages(self) -> Iterator[bytes]:
        for piece in pieces(self._recorder.take()):
            message = encode(self._sender, piece)
            if len(message) <= _LONGEST_MESSAGE:
                yield message
            else:
                warn_once(f"the metrics {', '.join(piece)} are not counted: the values of their tags are too long")


reporter: Reporter | None = None
"""That of this process."""


def install(new: Reporter | None) -> None:
    """Have ``flush`` tell by ``new`` from now on."""
    global reporter
    reporter = new


def flush() -> None:
    """Tell what this process has counted, before it ends."""
    if reporter is not None:
        with contextlib.suppress(Exception):
            reporter.flush()
