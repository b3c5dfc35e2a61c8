"""The URL of a receiver of webhooks, as far as its text tells whether there may be one."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit

_URL_LIMIT = 2048
_URL = re.compile(r"[!-~]+")  # printable ASCII without spaces


def parts_of(url: str) -> SplitResult:
    """Return the parts of a URL to which a webhook may be sent.

    Raises:
      ValueError: None may be sent there.
    """
    if len(url) > _URL_LIMIT or _URL.fullmatch(url) is None:
        raise ValueError(f"a URL has at most {_URL_LIMIT} characters, of ASCII and without spaces")
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in ("https", "http") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise ValueError(f"it is not a URL: {error}") from error
    if not is_whole:
        raise ValueError("it must be a URL such as https://example.com/done")
    if "@" in parts.netloc or parts.fragment:
        raise ValueError("its URL must have neither a user nor a fragment")
    return parts
