"""A real broker for the tests that ask for one, with a namespace of its own for each test."""

from __future__ import annotations

from broker_fixtures import client, keys, settings

__all__ = ["client", "keys", "settings"]
