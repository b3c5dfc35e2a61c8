"""Where a broker is, and which part of its address may be shown: one server, or the primary that Sentinels watch.

A URL may contain a password before the host or among the parameters, and a password with a character that has a meaning
in URLs makes an address that cannot be parsed. The errors of the standard parser quote what they could not read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from redis.connection import URL_QUERY_ARGUMENT_PARSERS, parse_url

from qserve.base.numbers import number, whole_number
from qserve.exceptions import QserveException

_HIDDEN = "(not shown)"
_known: dict[str, str] = {}
_READERS: dict[Any, Callable[[str], float]] = {int: whole_number, float: number}

SENTINEL_PORT = 26379
_HOW = (
    "write redis://host:6379/0, rediss:// for TLS, unix:///path, or sentinel://host:26379,host2:26379/SERVICE/0"
    " (sentinels:// for TLS), with %-escapes for other characters than letters and digits in a password"
)


@dataclass(frozen=True)
class Address:
    """A broker's URL, parsed.

    Parameters:
      where: The address without credentials, for messages.
      options: redis-py's options for a connection: credentials, database, TLS, and the place of a single server.
      service: The name that Sentinels give the broker; "" for a single server.
      sentinels: The options for a connection to each Sentinel.
    """

    where: str
    options: dict[str, Any] = field(repr=False)
    service: str = ""
    sentinels: tuple[dict[str, Any], ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, url: str) -> Address:
        """Parse a URL.

        Raises:
          QserveException: It is not the address of a broker; the message does not contain its password.
        """
        where = public(url)
        try:
            _check_numbers(url)
            if url.startswith(("sentinel://", "sentinels://")):
                return _of_sentinels(url, where)
            return cls(where, parse_url(url))
        except ValueError as error:
            reason = f" ({error})" if isinstance(error, _Wrong) else ""
        # outside of the handler: the parser's error, which may quote a password, must not be its context
        raise QserveException(f"{where} is not a broker address{reason}: {_HOW}")


class _Wrong(ValueError):
    """Raised with a text that is safe to show."""


def _check_numbers(url: str) -> None:
    """Refuse numbers that redis-py would take although only Python writes them, or would silently ignore."""
    place = urlsplit(url)
    given = parse_qsl(place.query)
    if place.scheme in ("redis", "rediss"):
        given.append(("db", place.path.replace("/", "") or "0"))
    for name, text in given:
        read = _READERS.get(URL_QUERY_ARGUMENT_PARSERS.get(name))
        try:
            if read is not None:
                read(text)
        except ValueError:
            raise _Wrong(f"{name} is not a number") from None


def _of_sentinels(url: str, where: str) -> Address:
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    place, _, path = rest.partition("/")
    credentials, _, hosts = place.rpartition("@")
    service, _, database = path.partition("/")
    if not service:
        raise _Wrong("the name of the service is missing")
    try:
        whole_number(database or "0")
    except ValueError as error:
        raise _Wrong(f"the database {error}") from None
    server = scheme.replace("sentinel", "redis")
    options = parse_url(f"{server}://{credentials}@/{database or 0}?{query}")
    # Sentinels have users and passwords of their own
    own = {name: options.pop(f"sentinel_{name}") for name in ("username", "password") if f"sentinel_{name}" in options}
    shared = {name: value for name, value in options.items() if name.startswith("ssl_") or name == "connection_class"}
    return Address(where, options, service, tuple({**shared, **own, **_place(host)} for host in hosts.split(",")))


def _place(host: str) -> dict[str, Any]:
    found = parse_url(f"redis://{host}")
    if "host" not in found:
        raise _Wrong("the host of a Sentinel is missing")
    return {"host": found["host"], "port": found.get("port", SENTINEL_PORT)}


def public(url: str) -> str:
    """Return host, port and database, or a socket's path; a placeholder where a password may be among them."""
    before, _, parameters = url.partition("://")[2].partition("?")
    return _HIDDEN if "@" in parameters else before.rpartition("@")[2] or _HIDDEN


def concealed(url: str) -> str:
    """Return an alias for an address that may be shown; only this process can resolve it."""
    alias = f"{url.partition('://')[0]}://{public(url)}"
    if _known.setdefault(alias, url) != url:  # the same broker, as another user
        alias = f"{alias}#{len(_known)}"
        _known[alias] = url
    return alias


def revealed(alias: str) -> str:
    """Return the address that ``concealed`` gave an alias for; any other address as it is."""
    return _known.get(alias, alias)
