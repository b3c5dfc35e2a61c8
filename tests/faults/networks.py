"""Hosts of their own on this machine: network namespaces, each with a link to the broker that can be cut."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

_numbers = itertools.count(1)


class Network:
    """A namespace that is linked to this host.

    Parameters:
      name: Its name.
      number: The third part of its addresses.
    """

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self._link = f"{name}-l"
        self._number = number
        self.address = f"10.213.{number}.1"
        """Of this host, as the namespace sees it."""

    @property
    def within(self) -> tuple[str, ...]:
        """What goes before a command that is to run there; its process is the command's."""
        return ("nsenter", f"--net=/run/netns/{self.name}")

    def make(self) -> None:
        """Make it, with its link."""
        _ip("netns", "add", self.name)
        _ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _ip("address", "add", f"{self.address}/24", "dev", self._link)
        _ip("link", "set", self._link, "up")
        for words in (
            ("address", "add", f"10.213.{self._number}.2/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
        ):
            _ip("-n", self.name, *words)

    def cut(self) -> None:
        """Let nothing pass in either direction; neither side is told."""
        _ip("-n", self.name, "link", "set", "eth0", "down")

    def join(self) -> None:
        """Let all pass again."""
        _ip("-n", self.name, "link", "set", "eth0", "up")

    def remove(self) -> None:
        """Remove it with its link, also if it was only half made."""
        for words in (("link", "delete", self._link), ("netns", "delete", self.name)):
            subprocess.run(["ip", *words], capture_output=True, check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def networks(count: int) -> Iterator[list[Network]]:
    """Make so many networks for one test.

    Raises:
      OSError, subprocess.CalledProcessError: This machine, or this user, may not.
    """
    made = [Network(f"qs{os.getpid()}{next(_numbers)}", os.getpid() % 60 * 4 + index) for index in range(count)]
    try:
        for one in made:
            one.make()
        yield made
    finally:
        for one in made:
            one.remove()
