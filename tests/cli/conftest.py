"""A real broker, with a namespace of its own for each test."""

from __future__ import annotations

from broker_fixtures import client, desk, keys, no_key_outlives_its_purpose, settings

__all__ = ["client", "desk", "keys", "no_key_outlives_its_purpose", "settings"]
