"""A real broker, with a namespace of its own for each test, and the live page of what is written there."""

from __future__ import annotations

from broker_fixtures import client, desk, keys, no_key_outlives_its_purpose, settings
from browsers import browser, page
from live_page import shop

__all__ = ["browser", "client", "desk", "keys", "no_key_outlives_its_purpose", "page", "settings", "shop"]
