"""Start-up checks of a broker: what would lose accepted requests, or let strangers in, is found before it does.

The rules are functions of ``BrokerFacts`` alone; ``broker_facts.read_facts`` is the only place that asks a server.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from qserve.base.log import get_logger
from qserve.base.settings import REPLICA, Settings
from qserve.broker.connection import Client, connect
from qserve.broker.facts import BrokerFacts, Version, facts_of_address, read_facts
from qserve.exceptions import BrokerError, BrokerUnavailable, BrokerUnsafe

log = get_logger(__name__)

OLDEST: Version = (7, 0)
ENOUGH_SENTINELS = 3
CLOCK_TOLERANCE_S = 2.0

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


def examine(facts: BrokerFacts) -> list[Finding]:
    """Judge a broker by what is known of it."""
    findings = [_address(facts), _reachable(facts)]
    if not facts.unreachable:
        findings += [rule(facts) for rule in (_SERVER_RULES if facts.version else (_unknown,))]
        if facts.version and (facts.watched or facts.durability == REPLICA):
            findings.append(_redundancy(facts))
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
    if facts.misspoken:
        what = f"the broker at {facts.where} cannot be spoken to over TLS: {facts.unreachable}"
        return Finding("error", what, "without TLS write redis:// or sentinel://; name a private CA by ssl_ca_certs")
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


def _redundancy(facts: BrokerFacts) -> Finding:
    if facts.durability == REPLICA and not facts.replicas:
        what = "no replica copies it, and durability=replica refuses each request that is on one server only"
        return Finding("error", what, "start a replica of it, or set QSERVE_DURABILITY=local")
    if not facts.watched:
        return Finding("ok", f"replicas that copy it: {facts.replicas}")
    seen = "an unknown number of Sentinels" if facts.sentinels is None else _counted(facts.sentinels, "Sentinel")
    what = f"{seen} watch it, {_counted(facts.replicas, 'replica')} can take over"
    if not facts.replicas:
        return Finding("warning", what, "start a replica of it: without one there is nothing to fail over to")
    if facts.sentinels is not None and facts.sentinels < ENOUGH_SENTINELS:
        return Finding("warning", what, "run three Sentinels on hosts of their own: two cannot outvote a lost third")
    return Finding("ok", what)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def eviction(facts: BrokerFacts) -> Finding:
    """Whether accepted requests are safe when its memory is full."""
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
        return Finding("warning", what, "set appendonly yes and appendfsync always")
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
    return Finding("warning", what, "synchronise both (NTP), or their logs cannot be compared")


def _key(facts: BrokerFacts) -> Finding:
    if facts.has_key:
        return Finding("ok", "QSERVE_SECRET_KEY is set")
    what = "QSERVE_SECRET_KEY is not set: only plain data travels, and no code by value"
    return Finding("warning", what, "set the same key in every process: openssl rand -hex 32")


_SERVER_RULES: tuple[Callable[[BrokerFacts], Finding], ...] = (_version, _role, eviction, _persistence)


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


_logged: set[str] = set()


def check_address(settings: Settings) -> None:
    """Refuse a broker whose address alone is reason enough; no connection is made.

    Raises:
      BrokerError: It is on the network and has no password.
    """
    _raise_for(_address(facts_of_address(settings)))


def check_or_raise(client: Client, settings: Settings) -> None:
    """Check a broker before it is used; warnings are logged, each once in a process.

    Raises:
      BrokerUnavailable: It does not answer; asking again later may help.
      BrokerError: It must not be used as it is; the message names the remedy.
    """
    check_address(settings)  # before the first byte is sent
    facts = read_facts(client, settings)
    if facts.unreachable and not (facts.refused or facts.misspoken):
        raise BrokerUnavailable(_reachable(facts).what)
    findings = examine(facts)
    for finding in findings:
        _raise_for(finding)
    _log_warnings(findings)


def check(settings: Settings) -> None:
    """Check the broker that settings name; raises as ``check_or_raise`` does."""
    assert settings.broker_url is not None
    with contextlib.closing(connect(settings.broker_url)) as client:
        check_or_raise(client, settings)


def look_again(client: Client, settings: Settings) -> None:
    """Look at a broker that is in use: somebody may have changed its settings since; warnings are logged once.

    Raises:
      BrokerUnavailable: It does not answer.
      BrokerUnsafe: It would throw accepted requests away.
    """
    facts = read_facts(client, settings)
    if facts.unreachable:
        raise BrokerUnavailable(_reachable(facts).what)
    if not facts.version:
        return  # it may not be asked, which was said at the start
    finding = eviction(facts)
    if finding.level == "error":
        raise BrokerUnsafe(f"{finding.what}; remedy: {finding.remedy}")
    _log_warnings([_persistence(facts)])


def _log_warnings(findings: Iterable[Finding]) -> None:
    for finding in findings:
        if finding.level == "warning" and finding.what not in _logged:
            _logged.add(finding.what)
            log.warning("broker: %s; remedy: %s", finding.what, finding.remedy)


def _raise_for(finding: Finding) -> None:
    if finding.level == "error":
        raise BrokerError(f"{finding.what}; remedy: {finding.remedy}")
