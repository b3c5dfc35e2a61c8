"""What is known of a broker: from its address, and from its replies."""

from __future__ import annotations

import contextlib
import ipaddress
import ssl
import time
from dataclasses import dataclass, replace
from typing import Any

import redis
from redis.connection import SSLConnection, UnixDomainSocketConnection

from qserve.base.settings import LOCAL, Settings
from qserve.broker.address import Address
from qserve.broker.connection import sentinel_client

Version = tuple[int, ...]


@dataclass(frozen=True)
class BrokerFacts:
    """What is known of a broker.

    Parameters:
      where: Its address, without credentials.
      local: Whether only this host can reach it: a Unix socket, or a loopback address.
      authenticated: Whether we present a password or a certificate.
      encrypted, verified: Whether the connection uses TLS, and whether the other side must prove its name.
      has_key: Whether a secret key is set here.
      unreachable: Why it does not answer; "" when it does.
      refused: Whether it answers, and refuses our credentials.
      misspoken: Whether it answers, and TLS does not come about.
      server, version, compatible: ``redis`` or ``valkey``, its version, and the version of Redis it stands for;
        empty when it may not be asked.
      role: ``master`` or ``slave``.
      replicas: How many replicas copy it now.
      watched: Whether it is found by way of Sentinels.
      sentinels: How many Sentinels watch it; None when they may not be asked.
      durability: The setting of this name.
      maxmemory, policy: Its limit in bytes (0: none), and what it does when that is reached.
      evicted_clients: Connections that it has closed to get memory.
      aof, aof_status: Whether it writes an append-only file, and how the last write went.
      clock_off_s: Its clock minus this host's; None when it may not be asked.
    """

    where: str = ""
    local: bool = True
    authenticated: bool = False
    encrypted: bool = False
    verified: bool = True
    has_key: bool = True
    unreachable: str = ""
    refused: bool = False
    misspoken: bool = False
    server: str = "redis"
    version: Version = ()
    compatible: Version = ()
    role: str = "master"
    replicas: int = 0
    watched: bool = False
    sentinels: int | None = None
    durability: str = LOCAL
    maxmemory: int = 0
    policy: str = "noeviction"
    evicted_clients: int = 0
    aof: bool = True
    aof_status: str = "ok"
    clock_off_s: float | None = 0.0


def facts_of_address(settings: Settings) -> BrokerFacts:
    """Return what the settings alone say of their broker."""
    address = Address.of(settings.broker_url or "")
    options = address.options
    kind = options.get("connection_class")
    by_socket = kind is UnixDomainSocketConnection
    names_checked = str(options.get("ssl_check_hostname", True)).lower() not in ("false", "0", "no")
    return BrokerFacts(
        where=address.where,
        local=by_socket or all(_is_loopback(one.get("host") or "localhost") for one in address.sentinels or (options,)),
        authenticated=bool(options.get("password") or options.get("ssl_certfile")),
        encrypted=kind is SSLConnection,
        verified=options.get("ssl_cert_reqs") not in ("none", "optional") and names_checked,
        has_key=settings.secret_key is not None,
        watched=bool(address.sentinels),
        durability=settings.durability,
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def read_facts(client: redis.Redis, settings: Settings) -> BrokerFacts:
    """Ask a broker once for everything; that it does not answer is a fact as well."""
    facts = facts_of_address(settings)
    pipe = client.pipeline(transaction=False)
    pipe.info()
    pipe.time()
    began = time.time()
    try:
        info, clock = pipe.execute(raise_on_error=False)
    except (redis.RedisError, OSError) as error:
        refused = isinstance(error, redis.AuthenticationError)
        misspoken = isinstance(error.__context__, ssl.SSLError)
        why = str(error) or type(error).__name__
        if facts.encrypted and isinstance(error, redis.TimeoutError):
            why += " (a server without TLS is silent like this: does this port have it?)"
        return replace(facts, unreachable=why, refused=refused, misspoken=misspoken)
    ended, off_s = time.time(), None
    if not isinstance(clock, Exception):
        # the reply was made at some moment in between: only what lies outside of that is a difference
        theirs = clock[0] + clock[1] / 1e6
        off_s = theirs - min(max(theirs, began), ended)
    if facts.watched:
        facts = replace(facts, sentinels=_count_sentinels(settings))
    return replace(facts, clock_off_s=off_s, **({} if isinstance(info, Exception) else _of_info(info)))


def _count_sentinels(settings: Settings) -> int | None:
    """Return how many Sentinels there are, from the first that replies; it counts itself."""
    address = Address.of(settings.broker_url or "")
    for options in address.sentinels:
        with contextlib.closing(sentinel_client(options)) as sentinel, contextlib.suppress(redis.RedisError, OSError):
            return 1 + int(sentinel.sentinel_master(address.service)["num-other-sentinels"])
    return None


def _of_info(info: dict[str, Any]) -> dict[str, Any]:
    compatible = _parsed(info.get("redis_version", ""))
    is_valkey = "valkey_version" in info or info.get("server_name") == "valkey"
    return {
        "server": "valkey" if is_valkey else "redis",
        "version": _parsed(info.get("valkey_version", "")) or compatible,
        "compatible": compatible,
        "role": str(info.get("role", "master")),
        "replicas": int(info.get("connected_slaves", 0)),
        "maxmemory": int(info.get("maxmemory", 0)),
        "policy": str(info.get("maxmemory_policy", "noeviction")),
        "evicted_clients": int(info.get("evicted_clients", 0)),
        "aof": bool(info.get("aof_enabled", 0)),
        "aof_status": str(info.get("aof_last_write_status", "ok")),
    }


def _parsed(text: Any) -> Version:
    return tuple(int(part) for part in str(text).split(".") if part.isdigit())
