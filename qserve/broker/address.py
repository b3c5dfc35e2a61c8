"""The address of a broker, one server or the primary that Sentinels watch, and the part of it that may be shown.

A URL may contain a password before the host or among the parameters, and a password with a character that has a meaning
in URLs makes an address that cannot be parsed. The errors of the standard parser quote what they could not read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.connection import parse_url

from qserve.base.numbers import whole_number
from qserve.exceptions import QserveException

_HIDDEN = "(not shown)"
_known: dict[str, str] = {}
_OPTIONS = ("db", "username", "password")
_TLS_OPTIONS = (
    "ssl_ca_certs", "ssl_ca_path", "ssl_ca_data", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname", "ssl_ciphers",
    "ssl_keyfile", "ssl_password",
)  # fmt: skip
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")
_CHOICES = {
    "ssl_cert_reqs": ("none", "optional", "required"),
    "ssl_check_hostname": ("true", "false", "1", "0", "yes", "no"),
}
_PLACE = re.compile(r"(?:(?:\[[0-9A-Fa-f:.%]+\]|[^:/#]*)(?::[0-9]*)?(?:,|$|(?=/)))*(?:/.*)?")
"""Hosts with ports, and a path: what may be shown although no @ marks the end of a password."""
_BARE = re.compile(r"[\w.-]+(?::[0-9]{1,5})?(?:/[0-9]*)?")
"""A host with port and database, and nothing before it; a password would be followed by an @."""
_LONGEST_SOCKET_PATH = 107

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
        if _BARE.fullmatch(url):
            raise QserveException(f"{url!r} is not a broker address: it has no scheme. Write redis://host:6379/0")
        try:
            _check(url)
            if url.startswith(("sentinel://", "sentinels://")):
                return _of_sentinels(url, where)
            return cls(where, parse_url(url))
        except ValueError as error:
            reason = f" ({error})" if isinstance(error, _Wrong) else ""
        # outside of the handler: the parser's error, which may quote a password, must not be its context
        raise QserveException(f"{where} is not a broker address{reason}: {_HOW}")


class _Wrong(ValueError):
    """Raised with a text that is safe to show."""


def _check(url: str) -> None:
    """Refuse what redis-py would pass on to places that do not know it, silently ignore, or take for something else."""
    scheme, _, rest = url.partition("://")
    place = re.split("[/?#]", rest, maxsplit=1)[0]
    is_socket, is_watched = scheme == "unix", scheme.startswith("sentinel")
    if "#" in rest or ("@" in rest[len(place) :] and not (is_socket and not place)):
        raise _Wrong("it has a # or @ after the host. If that is part of the password, write it as %23 or %40")
    if not is_watched:  # newer versions of Python refuse an IPv6 address in a list of hosts
        parts = urlsplit(url)
        if is_socket:
            _check_socket(place, unquote(parts.path))
        else:
            _check_host(parts.hostname, parts.port)
            _check_database(parts.path.removeprefix("/"))
    allowed = [*_OPTIONS, *(_TLS_OPTIONS if scheme in ("rediss", "sentinels") else ())]
    _check_options(rest.partition("?")[2], [*allowed, *(_SENTINEL_OPTIONS if is_watched else ())])


def _check_host(host: str | None, port: int | None) -> None:
    if re.search(r"[\s,]", host or ""):
        raise _Wrong("the host has a blank or a comma; several hosts are for sentinel://")
    if port == 0:
        raise _Wrong("the port is not a number from 1 to 65535")


def _check_socket(place: str, path: str) -> None:
    if place and "@" not in place:
        raise _Wrong("a path has three slashes, as in unix:///path")
    if not path.strip("/"):
        raise _Wrong("the path of the socket is missing")
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        raise _Wrong(f"the path of a socket has at most {_LONGEST_SOCKET_PATH} bytes")


def _check_database(text: str) -> None:
    try:
        whole_number(text or "0")
    except ValueError:
        raise _Wrong("the database is not a whole number") from None


def _check_options(query: str, allowed: Sequence[str]) -> None:
    given = parse_qsl(query, keep_blank_values=True)
    for name, value in given:
        if name not in allowed:
            # it may be a part of a password that has an & or a ?
            shown = "" if "password" in query else f" {name!r}"
            raise _Wrong(f"the option{shown} is not one of {', '.join(allowed)}")
        if not value or [name for name, _ in given].count(name) > 1:
            raise _Wrong(f"{name} is empty or given twice")
        if name == "db":
            _check_database(value)
        if value.lower() not in _CHOICES.get(name, (value.lower(),)):
            raise _Wrong(f"{name} is not one of {', '.join(_CHOICES[name])}")


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
    parts, found = urlsplit(f"redis://{host}"), parse_url(f"redis://{host}")
    _check_host(parts.hostname, parts.port)
    if "host" not in found:
        raise _Wrong("the host of a Sentinel is missing")
    return {"host": found["host"], "port": found.get("port", SENTINEL_PORT)}


def public(url: str) -> str:
    """Return host, port and database, or a socket's path; a placeholder where a password may be among them."""
    before, _, parameters = url.partition("://")[2].partition("?")
    if "@" in parameters or ("@" not in before and not _PLACE.fullmatch(before)):
        return _HIDDEN
    place = before.rpartition("@")[2]
    return _HIDDEN if "#" in place else place or _HIDDEN


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
