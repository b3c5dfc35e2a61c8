"""Start-up checks of a broker: what would lose accepted requests, or let strangers in, is found before it does.

The rules are functions of ``BrokerFacts`` alone; ``read_facts`` is the only place that asks a server.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import redis
from redis.connection import SSLConnection, UnixDomainSocketConnection

from qserve.exceptions import BrokerError, BrokerUnavailable
from qserve.log import get_logger
from qserve.plane.address import public, read_address
from qserve.settings import Settings

log = get_logger(__name__)

Version = tuple[int, ...]

OLDEST: Version = (7, 0)
CLOCK_TOLERANCE_S = 2.0
CHECKED = "QSERVE_BROKER_CHECKED"
"""Set in the environment of processes whose parent has checked the broker already."""

# CVE-2025-49844, Lua: first version of each branch that has the hole, and the one that closes it
_LUA_HOLE: dict[str, tuple[tuple[Version, Version], ...]] = {
    "redis": (((7, 0), (7, 2, 11)), ((7, 3), (7, 4, 6)), ((8, 0), (8, 0, 4)), ((8, 2), (8, 2, 2))),
    "valkey": (((7, 2), (7, 2, 11)), ((8, 0), (8, 0, 6)), ((8, 1), (8, 1, 4))),
}
# CVE-2026-23479, a blocked client that is evicted
_EVICTED_CLIENT_HOLE: tuple[Version, Version] = ((7, 2), (8, 6, 3))


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Parameters:
      level: ``error`` for what must not be, ``warning`` for what may cost something.
      what: How it is.
      remedy: What to do about it; "" when there is nothing to do.
    """

    level: Literal["ok", "warning", "error"]
    what: str
    remedy: str = ""


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
      server, version, compatible: ``redis`` or ``valkey``, its version, and the version of Redis it stands for;
        empty when it may not be asked.
      role: ``master`` or ``slave``.
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
    server: str = "redis"
    version: Version = ()
    compatible: Version = ()
    role: str = "master"
    maxmemory: int = 0
    policy: str = "noeviction"
    evicted_clients: int = 0
    aof: bool = True
    aof_status: str = "ok"
    clock_off_s: float | None = 0.0


def examine(facts: BrokerFacts) -> list[Finding]:
    """Judge a broker by what is known of it."""
    findings = [_address(facts), _reachable(facts)]
    if not facts.unreachable:
        findings += [rule(facts) for rule in (_SERVER_RULES if facts.version else (_unknown,))]
        findings += [_clock(facts), _key(facts)]
    return findings


def _address(facts: BrokerFacts) -> Finding:
    where = facts.where
    if facts.local:
        return Finding("ok", f"{where} is reached from this host only")
    if not facts.authenticated:
        what = f"{where} is reached over the network without a password: whoever finds it can submit calls"
        remedy = "give it one (requirepass, or the ACL of docs/acl) and write redis://user:password@host:port/0"
        return Finding("error", what, remedy)
    if not facts.encrypted:
        remedy = "outside a private network write rediss://"
        return Finding("ok", f"{where} asks for a password; the connection is not encrypted", remedy)
    if not facts.verified:
        remedy = "remove ssl_cert_reqs and ssl_check_hostname from the URL; name a private CA by ssl_ca_certs"
        return Finding("warning", f"{where} need not prove who it is: its certificate is not verified", remedy)
    return Finding("ok", f"{where} asks for a password; the connection is encrypted")


def _reachable(facts: BrokerFacts) -> Finding:
    if facts.refused:
        what = f"the broker at {facts.where} refuses the password: {facts.unreachable}"
        return Finding("error", what, "put the user and the password that it knows into QSERVE_BROKER_URL")
    if facts.unreachable:
        what = f"the broker at {facts.where} cannot be reached: {facts.unreachable}"
        return Finding("error", what, "start it, or correct QSERVE_BROKER_URL")
    return Finding("ok", "it answers")


def _version(facts: BrokerFacts) -> Finding:
    name = f"{facts.server} {_dotted(facts.version)}"
    if facts.compatible < OLDEST:
        return Finding("error", f"{name} has no functions", f"use Redis {_dotted(OLDEST)} or later, or any Valkey")
    for first, fixed in _LUA_HOLE.get(facts.server, ()):
        if first <= facts.version < fixed:
            what = f"{name} has a hole in its Lua (CVE-2025-49844) unless your distribution has closed it"
            remedy = f"use {facts.server} {_dotted(fixed)} or later, and the ACL of docs/acl, which denies EVAL"
            return Finding("warning", what, remedy)
    first, fixed = _EVICTED_CLIENT_HOLE
    if facts.server == "redis" and facts.evicted_clients and first <= facts.version < fixed:
        what = f"{name} evicts clients, and may crash when one of them is waiting (CVE-2026-23479)"
        return Finding("warning", what, f"set maxmemory-clients 0, or use redis {_dotted(fixed)} or later")
    return Finding("ok", name)


def _role(facts: BrokerFacts) -> Finding:
    if facts.role == "master":
        return Finding("ok", "it is a primary")
    what = "it is a replica of another server, and takes no writes"
    return Finding("error", what, "name the primary in QSERVE_BROKER_URL")


def _eviction(facts: BrokerFacts) -> Finding:
    full = f"when its {facts.maxmemory} bytes are full"
    if facts.maxmemory == 0:
        return Finding("ok", "its memory is not limited")
    if facts.policy == "noeviction":
        return Finding("ok", f"it refuses new requests {full}")
    what = f"it throws accepted requests away {full} (maxmemory-policy {facts.policy})"
    return Finding("error", what, "set maxmemory-policy noeviction, by CONFIG SET and in its configuration file")


def _persistence(facts: BrokerFacts) -> Finding:
    if not facts.aof:
        what = "it forgets requests and applications when it restarts: its append-only file is off"
        return Finding("warning", what, "set appendonly yes and appendfsync everysec")
    if facts.aof_status != "ok":
        what = f"its append-only file could not be written ({facts.aof_status}); it may refuse all writes"
        return Finding("warning", what, "make room on its disk")
    return Finding("ok", "it writes an append-only file")


def _unknown(facts: BrokerFacts) -> Finding:
    what = "it does not say how it is set up: INFO is not permitted"
    return Finding("warning", what, "permit +info, or see to maxmemory-policy noeviction yourself")


def _clock(facts: BrokerFacts) -> Finding:
    off_s = facts.clock_off_s
    if off_s is None:
        return Finding("warning", "its clock cannot be compared: TIME is not permitted", "permit +time")
    if abs(off_s) <= CLOCK_TOLERANCE_S:
        return Finding("ok", "its clock agrees with this host's")
    what = f"its clock is {abs(off_s):.1f} s {'ahead of' if off_s > 0 else 'behind'} this host's"
    return Finding("warning", what, "synchronise both (NTP): deadlines and heartbeats are off by as much")


def _key(facts: BrokerFacts) -> Finding:
    if facts.has_key:
        return Finding("ok", "QSERVE_SECRET_KEY is set")
    what = "QSERVE_SECRET_KEY is not set: only plain data travels, and no code by value"
    return Finding("warning", what, "set the same key in every process: openssl rand -hex 32")


_SERVER_RULES: tuple[Callable[[BrokerFacts], Finding], ...] = (_version, _role, _eviction, _persistence)


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def facts_of_address(settings: Settings) -> BrokerFacts:
    """What the settings alone say of their broker."""
    url = settings.broker_url or ""
    options = read_address(url)
    kind = options.get("connection_class")
    by_socket = kind is UnixDomainSocketConnection
    names_checked = str(options.get("ssl_check_hostname", True)).lower() not in ("false", "0", "no")
    return BrokerFacts(
        where=public(url),
        local=by_socket or _is_loopback(options.get("host") or "localhost"),
        authenticated=bool(options.get("password") or options.get("ssl_certfile")),
        encrypted=kind is SSLConnection,
        verified=options.get("ssl_cert_reqs") not in ("none", "optional") and names_checked,
        has_key=settings.secret_key is not None,
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def read_facts(client: redis.Redis, settings: Settings) -> BrokerFacts:
    """Ask a broker once, for everything; one that does not answer is a fact as well."""
    facts = facts_of_address(settings)
    pipe = client.pipeline(transaction=False)
    pipe.info()
    pipe.time()
    began = time.time()
    try:
        info, clock = pipe.execute(raise_on_error=False)
    except (redis.RedisError, OSError) as error:
        refused = isinstance(error, redis.AuthenticationError)
        return replace(facts, unreachable=str(error) or type(error).__name__, refused=refused)
    ended, off_s = time.time(), None
    if not isinstance(clock, Exception):
        # its answer was given at some moment in between: only what lies outside of that is a difference
        theirs = clock[0] + clock[1] / 1e6
        off_s = theirs - min(max(theirs, began), ended)
    return replace(facts, clock_off_s=off_s, **({} if isinstance(info, Exception) else _of_info(info)))


def _of_info(info: dict[str, Any]) -> dict[str, Any]:
    compatible = _parsed(info.get("redis_version", ""))
    is_valkey = "valkey_version" in info or info.get("server_name") == "valkey"
    return {
        "server": "valkey" if is_valkey else "redis",
        "version": _parsed(info.get("valkey_version", "")) or compatible,
        "compatible": compatible,
        "role": str(info.get("role", "master")),
        "maxmemory": int(info.get("maxmemory", 0)),
        "policy": str(info.get("maxmemory_policy", "noeviction")),
        "evicted_clients": int(info.get("evicted_clients", 0)),
        "aof": bool(info.get("aof_enabled", 0)),
        "aof_status": str(info.get("aof_last_write_status", "ok")),
    }


def _parsed(text: Any) -> Version:
    return tuple(int(part) for part in str(text).split(".") if part.isdigit())


_logged: set[str] = set()


def check_address(settings: Settings) -> None:
    """Refuse a broker whose address alone is reason enough; no connection is made.

    Raises:
      BrokerError: It is on the network and has no password.
    """
    _raise_for(_address(facts_of_address(settings)))


def check_or_raise(client: redis.Redis, settings: Settings) -> None:
    """Check a broker before it is used; warnings are logged, each once in a process.

    Raises:
      BrokerUnavailable: It does not answer; asking again later may help.
      BrokerError: It must not be used as it is; the message names the remedy.
    """
    check_address(settings)  # before the first byte is sent
    facts = read_facts(client, settings)
    if facts.unreachable and not facts.refused:
        raise BrokerUnavailable(_reachable(facts).what)
    for finding in examine(facts):
        _raise_for(finding)
        if finding.level == "warning" and finding.what not in _logged:
            _logged.add(finding.what)
            log.warning("broker: %s; remedy: %s", finding.what, finding.remedy)


def _raise_for(finding: Finding) -> None:
    if finding.level == "error":
        raise BrokerError(f"{finding.what}; remedy: {finding.remedy}")
