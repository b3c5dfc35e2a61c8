"""The broker's address: how it is read, and what of it may be shown.

A password may stand before the host or among the parameters, and a password with a character that URLs give a
meaning to makes an address that cannot be read. The errors of the standard parser quote what they stumble over.
"""

from __future__ import annotations

from typing import Any

from redis.connection import parse_url

from qserve.exceptions import QserveException

_HIDDEN = "(not shown)"
_known: dict[str, str] = {}


def read_address(url: str) -> dict[str, Any]:
    """The options of a connection, by redis-py's names for them.

    Raises:
      QserveException: It is no broker's address.
    """
    try:
        return parse_url(url)  # type: ignore[no-any-return]
    except ValueError:
        raise QserveException(
            f"{public(url)} is no broker's address: write redis://host:6379/0, rediss:// for TLS, or unix:///path,"
            " with %-escapes for other characters than letters and digits in a password"
        ) from None


def public(url: str) -> str:
    """Host, port and database, or a socket's path; nothing where a password cannot be told from them."""
    before, _, parameters = url.partition("://")[2].partition("?")
    return _HIDDEN if "@" in parameters else before.rpartition("@")[2] or _HIDDEN


def concealed(url: str) -> str:
    """An alias for an address that may be shown; what it stands for is known to this process only."""
    alias = f"{url.partition('://')[0]}://{public(url)}"
    if _known.setdefault(alias, url) != url:  # the same broker, as another user
        alias = f"{alias}#{len(_known)}"
        _known[alias] = url
    return alias


def revealed(alias: str) -> str:
    """The address that ``concealed`` gave an alias for; any other one is itself."""
    return _known.get(alias, alias)
