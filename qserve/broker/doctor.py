"""Check a broker: find what would lose accepted requests, or let strangers in, before it does.

The rules are functions of ``BrokerFacts`` alone; only ``read_facts`` asks a server.
"""

from __future__ import annotations

import contextlib
import ipaddress
import mmap
import os
import ssl
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import redis
from redis.connection import SSLConnection, UnixDomainSocketConnection

from qserve.base.keyring import PUBLISHED_KEY
from qserve.base.log import get_logger
from qserve.base.settings import CHECKED, LOCAL, REPLICA, Settings
from qserve.broker.address import Address
from qserve.broker.connection import MEMORY_SETTING, Client, connect, refusal, sentinel_client
from qserve.broker.link import tls_of
from qserve.exceptions import BrokerError, BrokerUnavailable, BrokerUnsafe
from qserve.wire.replies import count_of, version

log: Final = get_logger(__name__)
Version = tuple[int, ...]

OLDEST: Version = (7, 0)
ENOUGH_SENTINELS = 3
CLOCK_TOLERANCE_S = 2.0
NEARLY_FULL = 0.75

_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")

# CVE-2025-49844, Lua: in each branch the first vulnerable version, and the first one that is fixed
_LUA_CVE: dict[str, tuple[tuple[Version, Version], ...]] = {
    "redis": (((7, 0), (7, 2, 11)), ((7, 3), (7, 4, 6)), ((8, 0), (8, 0, 4)), ((8, 2), (8, 2, 2))),
    "valkey": (((7, 2), (7, 2, 11)), ((8, 0), (8, 0, 6)), ((8, 1), (8, 1, 4))),
}
# CVE-2026-23479, a blocked client that is evicted
_EVICTED_CLIENT_CVE: tuple[Version, Version] = ((7, 2), (8, 6, 3))


@dataclass(frozen=True)
class BrokerFacts:
    """The facts that are known about a broker.

    Parameters:
      where: Its address, without credentials.
      local: Whether only this host can reach it: a Unix socket, or a loopback address.
      authenticated: Whether we present a password or a certificate.
      encrypted, verified: Whether the connection uses TLS, and whether the other side must prove its name.
      has_key, key_is_published: Whether a secret key is set here, and whether it is the one of docker-compose.yml.
      unreachable: Why it does not answer; "" when it does.
      refused: Whether it answers, and refuses our credentials.
      misspoken: Whether it answers, but the TLS handshake fails.
      unfit: Whether it answers, but will never serve as a broker.
      server, version, compatible: ``redis`` or ``valkey``, its version, and the version of Redis it is compatible with;
        empty when it may not be asked.
      role: ``master`` or ``slave``.
      replicas: How many replicas copy it now.
      lacks_replicas: Whether it takes writes only with replicas that are up to date, and has none.
      watched: Whether it is found by way of Sentinels.
      sentinels: How many Sentinels watch it; None when they may not be asked.
      durability: The setting of this name.
      maxmemory, policy: Its limit in bytes (0: none), and what it does when that is reached.
      used_memory: How many bytes of it are used.
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
    key_is_published: bool = False
    unreachable: str = ""
    refused: bool = False
    misspoken: bool = False
    unfit: bool = False
    server: str = "redis"
    version: Version = ()
    compatible: Version = ()
    role: str = "master"
    replicas: int = 0
    lacks_replicas: bool = False
    watched: bool = False
    sentinels: int | None = None
    durability: str = LOCAL
    maxmemory: int = 0
    used_memory: int = 0
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
        local=by_socket
        or all(_is_loopback(place.get("host") or "localhost") for place in address.sentinels or (options,)),
        authenticated=bool(options.get("password") or options.get("ssl_certfile")),
        encrypted=kind is SSLConnection,
        verified=options.get("ssl_cert_reqs") not in ("none", "optional") and names_checked,
        has_key=settings.secret_key is not None,
        key_is_published=PUBLISHED_KEY in (settings.secret_key, *settings.accepted_keys),
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
        why, unfit = str(error) or type(error).__name__, _is_unfit(error)
        if facts.encrypted and isinstance(error, redis.TimeoutError):
            why += " (a server without TLS is silent like this: does this port have it?)"
        elif not facts.encrypted and "closed by server" in why:
            why += " (a server with TLS does so: does this port need rediss://?)"
        return replace(facts, unreachable=why, refused=refused, misspoken=misspoken, unfit=unfit and not refused)
    ended, off_s = time.time(), None
    if not isinstance(clock, Exception):
        # the reply was made at some moment in between: only what lies outside of that is a difference
        theirs = clock[0] + clock[1] / 1e6
        off_s = theirs - min(max(theirs, began), ended)
    if facts.watched:
        facts = replace(facts, sentinels=_count_sentinels(settings))
    return replace(facts, clock_off_s=off_s, **({} if isinstance(info, Exception) else _of_info(info)))


def _is_unfit(error: Exception) -> bool:
    """Return whether the server is not a broker, or refuses us for good."""
    if isinstance(error, redis.InvalidResponse):
        return True
    return isinstance(error, redis.ResponseError) and not isinstance(refusal(error), BrokerUnavailable)


def _count_sentinels(settings: Settings) -> int | None:
    """Return how many Sentinels there are, from the first that replies; it counts itself."""
    address = Address.of(settings.broker_url or "")
    for options in address.sentinels:
        with contextlib.closing(sentinel_client(options)) as sentinel, contextlib.suppress(redis.RedisError, OSError):
            return 1 + count_of(sentinel.sentinel_master(address.service), "num-other-sentinels")
    return None


def _of_info(info: dict[str, Any]) -> dict[str, Any]:
    compatible = version(info.get("redis_version", ""))
    is_valkey = "valkey_version" in info or info.get("server_name") == "valkey"
    return {
        "server": "valkey" if is_valkey else "redis",
        "version": version(info.get("valkey_version", "")) or compatible,
        "compatible": compatible,
        "role": str(info.get("role", "master")),
        "replicas": count_of(info, "connected_slaves"),
        "lacks_replicas": "min_slaves_good_slaves" in info and not count_of(info, "min_slaves_good_slaves"),
        "maxmemory": count_of(info, "maxmemory"),
        "used_memory": count_of(info, "used_memory"),
        "policy": str(info.get("maxmemory_policy", "noeviction")),
        "evicted_clients": count_of(info, "evicted_clients"),
        "aof": bool(info.get("aof_enabled", 0)),
        "aof_status": str(info.get("aof_last_write_status", "ok")),
    }


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Parameters:
      level: ``error`` if the broker must not be used like this, ``warning`` if that may have a cost.
      what: What was found.
      remedy: What to do about it; "" if there is nothing to do.
    """

    level: Literal["ok", "warning", "error"]
    what: str
    remedy: str = ""


def refusals(client: redis.Redis, facts: BrokerFacts) -> list[Finding]:
    """Return why a broker refuses writes at this moment: a finding for each reason, and none if it takes them.

    Roles do not ask this when they start: they wait until it is over, or help to end it.
    """
    found = []
    try:
        client.ping()  # which a server refuses as it refuses writes while it cannot store them
    except redis.ResponseError as error:
        found.append(Finding("error", f"it refuses writes now: {error}", "make room on its disk, and read its log"))
    if facts.maxmemory and facts.used_memory >= facts.maxmemory:
        what = f"it refuses new requests now: all of its {facts.maxmemory} bytes are used"
        found.append(Finding("error", what, f"fetch or purge what it keeps, or raise the limit ({MEMORY_SETTING})"))
    if facts.lacks_replicas:
        what = "it refuses writes now: min-replicas-to-write asks for replicas, and it has none that is up to date"
        found.append(Finding("error", what, "start them, or lower min-replicas-to-write"))
    return found


def sample_acl(namespace: str) -> str:
    """Return an ACL file with one user for each role, whose passwords are placeholders such as ``WORKER_PASSWORD``."""
    lines = "".join(file.read_text() for file in sorted((Path(__file__).parent / "acl").iterdir()))
    return lines.replace("{qserve}:", f"{{{namespace}}}:")


def examine(facts: BrokerFacts) -> list[Finding]:
    """Return the result of every check that the facts allow."""
    if facts.unreachable:
        return [_address(facts), _reachable(facts)]
    what = "its configuration cannot be checked: INFO is not permitted"
    rules = [Finding("warning", what, "permit +info, or make sure of maxmemory-policy noeviction yourself")]
    if facts.version:
        rules = [_version(facts), _role(facts), eviction(facts), _persistence(facts)]
        rules += [_redundancy(facts)] if facts.watched or facts.durability == REPLICA else []
    return [_address(facts), _reachable(facts), *rules, _clock(facts), _key(facts)]


def _address(facts: BrokerFacts) -> Finding:
    where = facts.where
    if facts.local:
        return Finding("ok", f"{where} can be reached from this host only")
    if not facts.authenticated:
        what = f"{where} can be reached over the network without a password: any client can submit calls"
        remedy = "set one (requirepass, or the ACL that `qserve doctor --acl` prints) and use redis://user:password@host:port/0"
        return Finding("error", what, remedy)
    if not facts.encrypted:
        remedy = "outside a private network use rediss://"
        return Finding("ok", f"{where} requires a password; the connection is not encrypted", remedy)
    if not facts.verified:
        remedy = "remove ssl_cert_reqs and ssl_check_hostname from the URL; for a private CA set ssl_ca_certs"
        return Finding("warning", f"another server could pose as {where}: its certificate is not verified", remedy)
    return Finding("ok", f"{where} requires a password; the connection is encrypted")


def _reachable(facts: BrokerFacts) -> Finding:
    if facts.refused:
        what = f"the broker at {facts.where} refuses the password: {facts.unreachable}"
        return Finding("error", what, "correct the user and the password in QSERVE_BROKER_URL")
    if facts.misspoken:
        what = f"no TLS connection to the broker at {facts.where}: {facts.unreachable}"
        return Finding("error", what, "without TLS use redis:// or sentinel://; for a private CA set ssl_ca_certs")
    if facts.unfit:
        what = f"the server at {facts.where} cannot be used as a broker: {facts.unreachable}"
        return Finding("error", what, "correct QSERVE_BROKER_URL: host, port, user and database")
    if facts.unreachable:
        what = f"the broker at {facts.where} cannot be reached: {facts.unreachable}"
        return Finding("error", what, "start it, or correct QSERVE_BROKER_URL")
    return Finding("ok", "it replies")


def _version(facts: BrokerFacts) -> Finding:
    name = f"{facts.server} {_dotted(facts.version)}"
    if facts.compatible < OLDEST:
        return Finding("error", f"{name} has no functions", f"use Redis {_dotted(OLDEST)} or later, or any Valkey")
    for first, fixed in _LUA_CVE.get(facts.server, ()):
        if first <= facts.version < fixed:
            what = f"{name} has a vulnerability in Lua (CVE-2025-49844) unless your distribution has fixed it"
            remedy = (
                f"use {facts.server} {_dotted(fixed)} or later, and the ACL of `qserve doctor --acl`, which denies EVAL"
            )
            return Finding("warning", what, remedy)
    first, fixed = _EVICTED_CLIENT_CVE
    if facts.server == "redis" and facts.evicted_clients and first <= facts.version < fixed:
        what = f"{name} evicts clients, and may crash if one of them is blocked (CVE-2026-23479)"
        return Finding("warning", what, f"set maxmemory-clients 0, or use redis {_dotted(fixed)} or later")
    return Finding("ok", name)


def _role(facts: BrokerFacts) -> Finding:
    if facts.role == "master":
        return Finding("ok", "it is a primary")
    what = "it is a replica of another server and accepts no writes"
    return Finding("error", what, "set QSERVE_BROKER_URL to the primary")


def _redundancy(facts: BrokerFacts) -> Finding:
    if facts.durability == REPLICA and not facts.replicas:
        what = "it has no replica, and durability=replica refuses every request that is on one server only"
        return Finding("error", what, "start a replica, or set QSERVE_DURABILITY=local")
    if not facts.watched:
        return Finding("ok", f"it has {_counted(facts.replicas, 'replica')}")
    seen = "an unknown number of Sentinels" if facts.sentinels is None else _counted(facts.sentinels, "Sentinel")
    what = f"{seen} watch it, {_counted(facts.replicas, 'replica')} can take over"
    if not facts.replicas:
        return Finding("warning", what, "start a replica: without one there is nothing to fail over to")
    if facts.sentinels is not None and facts.sentinels < ENOUGH_SENTINELS:
        return Finding("warning", what, "run three Sentinels, each on its own host: one of two is not a majority")
    return Finding("ok", what)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def eviction(facts: BrokerFacts) -> Finding:
    """Check whether accepted requests are safe when its memory is full."""
    full = f"when its {facts.maxmemory} bytes are full"
    if facts.maxmemory == 0:
        return Finding("ok", "its memory is not limited")
    if facts.policy == "noeviction":
        share = facts.used_memory / facts.maxmemory
        if share < NEARLY_FULL:
            return Finding("ok", f"it refuses new requests {full}; {share:.0%} of them are used")
        what = f"{share:.0%} of its {facts.maxmemory} bytes are used, and it refuses new requests when they are full"
        return Finding("warning", what, f"fetch or purge what it keeps, or raise the limit ({MEMORY_SETTING})")
    what = f"it deletes accepted requests {full} (maxmemory-policy {facts.policy})"
    return Finding("error", what, "set maxmemory-policy noeviction, with CONFIG SET and in its configuration file")


def _persistence(facts: BrokerFacts) -> Finding:
    if not facts.aof:
        what = "it loses requests and applications when it restarts: its append-only file is off"
        return Finding("warning", what, "set appendonly yes and appendfsync always")
    if facts.aof_status != "ok":
        what = f"its append-only file could not be written ({facts.aof_status}); it may refuse all writes"
        return Finding("warning", what, "free space on its disk")
    return Finding("ok", "it writes an append-only file")


def _clock(facts: BrokerFacts) -> Finding:
    off_s = facts.clock_off_s
    if off_s is None:
        return Finding("warning", "its clock cannot be compared: TIME is not permitted", "permit +time")
    if abs(off_s) <= CLOCK_TOLERANCE_S:
        return Finding("ok", "its clock agrees with this host's")
    what = f"its clock is {abs(off_s):.1f} s {'ahead of' if off_s > 0 else 'behind'} this host's"
    return Finding("warning", what, "synchronise both (NTP), so that their logs can be compared")


def _key(facts: BrokerFacts) -> Finding:
    if facts.key_is_published:
        what = "QSERVE_SECRET_KEY is the key of docker-compose.yml, which is public"
        return Finding("warning", what, "set one of your own in every process, for example from: openssl rand -hex 32")
    if facts.has_key:
        return Finding("ok", "QSERVE_SECRET_KEY is set")
    what = "QSERVE_SECRET_KEY is not set: only plain data can travel, and no code by value"
    return Finding("warning", what, "set the same key in every process, for example from: openssl rand -hex 32")


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


_logged = mmap.mmap(-1, 4096)
"""The warnings that were logged, by a checksum; shared with all processes that are forked from this one."""


def _is_first(what: str) -> bool:
    place = zlib.crc32(what.encode()) % len(_logged)
    was_logged, _logged[place] = _logged[place], 1
    return not was_logged


def check_address(settings: Settings) -> None:
    """Check what the broker's address alone says, without connecting.

    Raises:
      BrokerError: It is on the network and has no password, or its settings for TLS cannot be used.
    """
    facts, address = facts_of_address(settings), Address.of(settings.broker_url or "")
    _raise_for(_address(facts))
    for options in (address.options, *address.sentinels[:1]):
        try:
            tls_of(options)
        except (OSError, ValueError, redis.RedisError) as error:
            unread = [name for name in _FILES if name in options and not Path(options[name]).exists()]
            why = "".join(f"{name}: there is no {options[name]}" for name in unread[:1]) or error
            _raise_for(Finding("error", f"no TLS to {facts.where} is possible: {why}", "correct QSERVE_BROKER_URL"))


def check(client: Client, settings: Settings) -> None:
    """Check a broker before it is used, and log each warning once in a process.

    Raises:
      BrokerUnavailable: It does not reply; trying again later may help.
      BrokerError: It must not be used as it is; the message contains the remedy.
    """
    check_address(settings)  # before the first byte is sent
    facts = read_facts(client, settings)
    if facts.unreachable and not (facts.refused or facts.misspoken or facts.unfit):
        raise BrokerUnavailable(_reachable(facts).what)
    findings = examine(facts)
    for finding in findings:
        _raise_for(finding)
    _log_warnings(findings)


def check_unless_parent_did(client: Client, settings: Settings) -> None:
    """Check a broker like ``check``, unless the process that started this one has checked it."""
    if not os.environ.get(CHECKED):
        check(client, settings)


def check_broker_of(settings: Settings) -> None:
    """Check the broker of the settings like ``check``, over its own connection."""
    with contextlib.closing(connect(settings.named_broker)) as client:
        check(client, settings)


def recheck(client: Client, settings: Settings) -> None:
    """Check a broker that is in use, whose configuration may have changed; each warning is logged once.

    Raises:
      BrokerUnavailable: It does not reply.
      BrokerUnsafe: It would delete accepted requests.
    """
    facts = read_facts(client, settings)
    if facts.unreachable:
        raise BrokerUnavailable(_reachable(facts).what)
    if not facts.version:
        return  # INFO is not permitted, which was logged at the start
    finding = eviction(facts)
    if finding.level == "error":
        raise BrokerUnsafe(_with_remedy(finding))
    finding = _persistence(facts)
    if os.environ.pop(CHECKED, ""):
        _is_first(finding.what)  # the process that started this one has logged it
    _log_warnings([finding])


def _log_warnings(findings: Iterable[Finding]) -> None:
    for finding in findings:
        if finding.level == "warning" and _is_first(finding.what):
            log.warning("broker: %s", _with_remedy(finding))


def _raise_for(finding: Finding) -> None:
    if finding.level == "error":
        raise BrokerError(_with_remedy(finding))


def _with_remedy(finding: Finding) -> str:
    return f"{finding.what}; remedy: {finding.remedy}"
