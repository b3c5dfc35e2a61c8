"""Find the versions of an application whose code this worker has: it runs these, and waits for the others."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection, Sequence
from typing import NamedTuple

from qserve.base.clock import clock
from qserve.base.log import get_logger
from qserve.define.target import split_target
from qserve.deploy.installation import Installation
from qserve.deploy.sources import Module, Sources, difference, read_sources
from qserve.exceptions import PayloadError
from qserve.wire.application import DIFFERING, MISSING, ApplicationRecord, digest_of
from qserve.wire.modules import unpack_modules
from qserve.wire.status import WAITING, ReplicaStatus

log = get_logger(__name__)
_CHECK_AGAIN_S = 1.0
"""How often the files are compared while the worker waits for a version with their content."""
_REPORT_FOR_MS = 10_000
_NOTHING = Sources({})
_HOST = socket.gethostname()


class OwnCode:
    """The code of this host, as the versions of applications need it.

    What was found for a version is kept until that is retired: its replicas import it from memory, even if its files
    are replaced meanwhile.

    Parameters:
      target: ``module:node`` that this worker imports; "" for what a version names.
    """

    def __init__(self, installation: Installation, target: str) -> None:
        self._installation = installation
        self._target = target
        self._found: dict[tuple[str, str], Sources] = {}
        self._waits: dict[tuple[str, str], _Wait] = {}

    def keep(self, versions: Collection[tuple[str, str]]) -> None:
        """Forget the code of all other versions, and wait for them no more."""
        self._found = {key: sources for key, sources in self._found.items() if key in versions}
        for key in [*self._waits]:
            if key not in versions:
                self._end_wait(key)

    def find(self, record: ApplicationRecord, deployments: Sequence[str]) -> Sources | None:
        """Return the code of a version; None while this worker does not have it, which these deployments report.

        Raises:
          BrokerUnavailable: It cannot be reported.
        """
        key = record.name, record.version
        wait = self._waits.get(key)
        if key in self._found or not deployments or (wait and time.monotonic() < wait.check_again_at):
            return self._found.get(key)
        sources, why = self._compare(record)
        if not why:
            self._found[key] = sources
            if wait:
                log.info("application %r: this worker has the code of version %s now", record.name, record.version)
                self._end_wait(key)
            return sources
        if not wait:
            log.warning("application %r: this worker does not run version %s: %s", record.name, record.version, why)
        self._waits[key] = _Wait(time.monotonic() + _CHECK_AGAIN_S, [*map(self._name, deployments)])
        reports, until_ms = self._installation.reports(record.name), clock.stamp_ms() + _REPORT_FOR_MS
        for name in deployments:
            status = ReplicaStatus(
                self._name(name), name, record.version, WAITING, os.getpid(), _HOST, why, until_ms=until_ms
            )
            reports.report(status)
        return None

    def _name(self, deployment: str) -> str:
        return f"{deployment}-{_HOST}-{os.getpid()}"

    def _end_wait(self, key: tuple[str, str]) -> None:
        app, _ = key
        still = {name for other, wait in self._waits.items() if other != key for name in wait.names}
        for name in self._waits[key].names:
            if name not in still:
                self._installation.reports(app).remove(name)
        del self._waits[key]

    def _compare(self, record: ApplicationRecord) -> tuple[Sources, str]:
        """Return the code that this worker has for a version, and why that is not the version's; "" when it is."""
        target, version = record.target, self._installation.settings.code_version
        if self._target and self._target.replace(":", ".") != target.replace(":", "."):
            return _NOTHING, f"it imports {self._target}, and the version is {target or 'code that a program has sent'}"
        if not target:
            return _NOTHING, ""
        if record.code_version and record.code_version != version:
            here = f"code version {version!r}" if version else "no QSERVE_CODE_VERSION"
            return _NOTHING, f"it has {here}, and the version needs {record.code_version!r}"
        try:
            sources = read_sources(target, record.modules)
        except Exception as error:
            return _NOTHING, f"its code cannot be read: {type(error).__name__}: {error}"
        if record.code_version or not record.modules or sources.digests == record.modules:
            return sources, ""
        module, _ = split_target(target)
        if not self._target and (
            record.sent_for == DIFFERING or (record.sent_for == MISSING and module not in sources.modules)
        ):
            return self._sent(record)
        here = digest_of(sources.digests)
        differs = difference(record.modules, sources.digests)
        return sources, f"it has code {here}, and the version needs {record.code} ({differs})"

    def _sent(self, record: ApplicationRecord) -> tuple[Sources, str]:
        """Return the code that was sent with a version, as ``_compare`` does."""
        data = self._installation.registry.code(record.name, record.version)
        if not data:
            return _NOTHING, f"it does not have {record.target}, and what was sent of it is not in the broker any more"
        try:
            modules = unpack_modules(data, self._installation.settings.keyring)
        except PayloadError as error:
            return _NOTHING, f"it does not have {record.target}: {error}"
        sources = Sources({name: Module(*module) for name, module in modules.items()}, are_sent=True)
        if sources.digests != record.modules:
            return _NOTHING, f"it does not have {record.target}, and what was sent of it is of another version"
        log.info("application %r: this worker runs the code that was sent with version %s", record.name, record.version)
        return sources, ""


class _Wait(NamedTuple):
    """A version that this worker waits for.

    Parameters:
      names: Those of the reports that say so.
    """

    check_again_at: float
    names: list[str]
