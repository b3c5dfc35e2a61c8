"""The scope of a supervisor: the registered applications, and its own part of them."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from qserve.base.clock import clock
from qserve.base.log import get_logger
from qserve.base.turns import Turns
from qserve.broker.changes import ChangeFeed
from qserve.broker.connection import if_permitted, load_functions
from qserve.broker.registry import ACTIVE, NEXT, NO_CHANGE
from qserve.deploy.installation import Installation
from qserve.deploy.sources import Sources
from qserve.exceptions import BrokerError, DeployError, PayloadError, WrongType
from qserve.fleet.leader import Registered
from qserve.fleet.place import devices_of_pins
from qserve.fleet.values import Key, Need
from qserve.wire.application import ApplicationRecord, DeploymentRecord
from qserve.wire.fleet import Slot, Wish
from qserve.wire.replies import warn_once
from qserve_workers.supervisor.own_code import OwnCode

log = get_logger(__name__)
_READ_AGAIN_S = 4.0
"""How often the registry is read although no change was announced: it may have been changed without an announcement."""


_ABANDONED_S = 30.0
"""How long the claim of a deploy may stand still before what it has staged ends."""


@dataclass(frozen=True)
class Scope:
    """The deployments that a supervisor runs.

    Parameters:
      app: The application; None for all that are registered.
      deployment: One deployment; None for all of them.
      replicas: Replicas on this host, whatever the deployment's options say; None for what is planned for this worker,
        or for one deployment the number in its options.
      target: ``module:node`` to import instead of what was deployed.
    """

    app: str | None = None
    deployment: str | None = None
    replicas: int | None = None
    target: str = ""

    @property
    def is_pinned(self) -> bool:
        """Whether what runs here was said when the worker was started, and is not planned."""
        return self.deployment is not None or self.replicas is not None

    def counts(self, record: ApplicationRecord) -> Iterator[tuple[str, int]]:
        """Yield the deployments of a version that may run here, each with the number of replicas that is pinned."""
        if self.app not in (None, record.name):
            return
        for name, deployment in record.replicated.items():
            if self.deployment in (None, name):
                count = deployment.num_replicas if self.replicas is None else self.replicas
                yield name, count if self.is_pinned else 0


class Target(NamedTuple):
    """A deployment to run here, the GPUs of each of its replicas, and the code that they import."""

    record: ApplicationRecord
    deployment: str
    replicas: Counter[tuple[str, ...]]
    sources: Sources


class Applications:
    """The applications as they are registered, of which the supervisor's scope is run.

    The active ones are kept here with their code, for a broker that loses its data.

    Attributes:
      devices: The GPUs for replicas that are pinned.
    """

    def __init__(self, installation: Installation, scope: Scope, turns: Turns, devices: tuple[str, ...] = ()) -> None:
        self._client = installation.client
        self._keys = installation.keys
        self._registry = installation.registry
        self._feed = ChangeFeed(installation.client, installation.keys)
        self._scope = scope
        self.devices = devices
        self._turns = turns
        self._change = ""
        self._all: Registered | None = None
        self._read_again_at = 0.0
        self._unread: set[str] = set()
        self._targets: dict[str, Target] = {}
        self._said: set[str] = set()
        self._code = OwnCode(installation, scope.target)
        self._fleet = installation.fleet
        self._records: dict[tuple[str, str], ApplicationRecord] = {}
        self._kept: dict[str, tuple[ApplicationRecord, bytes]] = {}
        self._old: dict[str, list[ApplicationRecord]] = {}
        self._wishes: dict[str, dict[str, Wish]] = {}
        self._staged: dict[str, tuple[tuple[str, int], float]] = {}

    def wait_for_change(self, timeout_s: float, others: Collection[int] = ()) -> set[int] | None:
        """Wait as ``ChangeFeed.wait`` does, from the last change that was read."""
        return self._feed.wait(self._change or NO_CHANGE, timeout_s, others)

    @property
    def state(self) -> tuple[str, frozenset[str]]:
        """The change of the registry that was read last, and the applications that are unread."""
        return self._change, frozenset(self._unread)

    def find(self, name: str, version: str) -> ApplicationRecord | None:
        return self._records.get((name, version))

    def active(self, name: str) -> ApplicationRecord | None:
        """Return the version of an application that callers get."""
        return self._kept[name][0] if name in self._kept else None

    def served(self) -> dict[str, str]:
        """Return the version of each application that callers get."""
        return {name: record.version for name, (record, _) in self._kept.items()}

    @property
    def is_settled(self) -> bool:
        """Whether all that is registered was read, and nothing of it is being deployed."""
        return not self._unread and all(record.place == ACTIVE for record in self._records.values())

    def scales_by_load(self) -> bool:
        """Return whether the number of replicas of some deployment may change at any time."""
        return any(one.scaling for record in self._records.values() for one in record.replicated.values())

    def is_paused(self, name: str, deployment: str) -> bool:
        """Return whether the replicas of a deployment are to take no calls."""
        return self._wishes.get(name, {}).get(deployment, Wish()).is_paused

    def old(self) -> list[ApplicationRecord]:
        """Return the versions that were replaced and may not be finished."""
        return [record for records in self._old.values() for record in records]

    def forget(self, record: ApplicationRecord) -> None:
        """Note that an old version is finished."""
        self._old[record.name].remove(record)

    def registered(self) -> Registered:
        """Return every application, also those out of scope; of some only that they are there."""
        if self._all is None:
            names = self._registry.names()
            mine = [record for (name, _), record in self._records.items() if name in names]
            others = {*names} - {self._scope.app} if self._scope.app else set()
            read = [one for name in sorted(others) for one in self._registry.readable(name, ACTIVE, NEXT)]
            # also one that was deleted a moment ago: it is known here as active, until the next round reads all of it
            known = {*names} | {name for name, _ in self._records}
            unread = known - {record.name for record in (*mine, *read)}
            self._all = Registered((*mine, *read), unread | self._unread)
        return self._all

    def code(self, record: ApplicationRecord) -> tuple[Sources, bytes] | None:
        """Return the modules of a version, and its code if that travels by value; None if this worker has neither.

        Raises:
          BrokerError: It cannot be read.
        """
        sources = self._code.find(record, ())
        return None if sources is None else (sources, b"" if record.target else self._code_of(record))

    def having(self) -> list[ApplicationRecord]:
        """Return the versions that may run here, and whose code this worker has."""
        return [
            record
            for record in self._records.values()
            if (names := [name for name, _ in self._scope.counts(record)]) and self._code.find(record, names)
        ]

    def targets(self, planned: Sequence[Slot]) -> dict[str, Target]:
        """Return what is to run here, by its queue: of the versions whose code this worker has.

        Parameters:
          planned: What this worker is to run beside what is pinned.
        """
        found: dict[str, Target] = {}
        for key, record in self._records.items():
            # of one that could not be read nothing changes: it may be that what is planned belongs to what it is now
            is_read = record.name not in self._unread
            if not is_read or not self._turns.attempt(
                f"the code of application {record.name}", self._add_targets, record, planned, found
            ):
                found |= {
                    stream: target
                    for stream, target in self._targets.items()
                    if (target.record.name, target.record.version) == key
                }
        self._targets = found
        return found

    def _add_targets(self, record: ApplicationRecord, planned: Sequence[Slot], found: dict[str, Target]) -> None:
        counts = [*self._scope.counts(record)]
        # any deployment may be planned for this worker
        names = [deployment for deployment, count in counts if count or not self._scope.is_pinned]
        sources = self._code.find(record, names)
        if sources is not None:
            mine: defaultdict[str, list[Slot]] = defaultdict(list)
            for slot in planned:
                if (slot.app, slot.version) == (record.name, record.version):
                    mine[slot.deployment].append(slot)
            needs = [
                Need(Key(record.name, record.version, name), count, resources=record.deployments[name].resources)
                for name, count in counts
            ]
            for (_, _, deployment), replicas in devices_of_pins(self.devices, needs).items():
                if replicas[()] and record.deployments[deployment].resources.gpus:
                    warn_once(
                        f"{replicas[()]} of {replicas.total()} replicas of deployment {deployment!r} were assigned no"
                        f" GPU. This worker has {len(self.devices)}; CUDA_VISIBLE_DEVICES stays as it is for them"
                    )
                if replicas:
                    _warn_of_what_pins_ignore(record.deployments[deployment], replicas.total())
                for slot in mine[deployment]:
                    replicas[slot.devices] += slot.count
                found[record.stream(self._keys, deployment)] = Target(record, deployment, replicas, sources)

    def close(self) -> None:
        """Stop reporting what this worker waits for, and waiting for changes."""
        self._feed.close()
        with contextlib.suppress(BrokerError):
            self._code.keep(())

    def refresh(self) -> None:
        """Read the applications if they have changed; one that cannot be read stays as it was."""
        try:
            return self._refresh()
        except WrongType as error:
            warn_once(f"the applications cannot be read, and run as they are: {error}")
            self._unread |= {name for name, _ in self._records}
        try:
            self._registry.announce("")
        except BrokerError as error:
            # where this role may only read, the next deploy mends it
            warn_once(f"what was overwritten in the registry cannot be removed from here: {error}")

    def _refresh(self) -> None:
        newest = self._registry.last_change()
        if newest == NO_CHANGE != (self._change or NO_CHANGE):
            self._change = NO_CHANGE
            if self._restore():
                newest = self._registry.last_change()
        now = time.monotonic()
        if newest != NO_CHANGE and (newest != self._change or now >= self._read_again_at):
            self._read_again_at = now + _READ_AGAIN_S
            if newest != self._change:
                load_functions(self._client)
            names = self._registry.names() if self._scope.app is None else [self._scope.app]
            self._records = {key: record for key, record in self._records.items() if key[0] in names}
            self._kept = {name: kept for name, kept in self._kept.items() if name in names}
            self._old = {name: old for name, old in self._old.items() if name in names}
            self._unread, self._change, self._all = set(names), newest, None
            self._code.keep(self._records)
            if self._kept:  # only this may have been removed
                with contextlib.suppress(BrokerError):
                    self._registry.keep_epoch()
        for name in sorted(self._unread):
            if self._turns.attempt(f"application {name}", self._read, name):
                self._unread.discard(name)
                self._all = None

    def _read(self, name: str) -> None:
        try:
            versions = self._registry.versions(name)  # in one act: what is active now may be what another one replaces
        except PayloadError as error:  # only a deploy can change that
            is_run = any(key[0] == name for key in self._records)
            self._say_once(f"application {name!r} {'runs as it was' if is_run else 'is not run'}: {error}")
            return
        self._wishes[name] = if_permitted(partial(self._fleet.wishes, name))
        abandoned = [record for record in versions if self._is_abandoned(record)]
        versions = [record for record in versions if record not in abandoned]
        active = next((record for record in versions if record.place == ACTIVE), None)
        kept = None if active is None else (active, self._code_of(active))
        self._warn_if_unknown(versions)
        self._records = {key: record for key, record in self._records.items() if key[0] != name}
        self._records |= {(name, record.version): record for record in versions}
        self._code.keep(self._records)
        self._kept.pop(name, None)
        if kept is not None:
            self._kept[name] = kept
        old = [*self._registry.old(name), *(record for record in abandoned if record.share_until_ms)]
        self._old[name] = [record for record in old if (name, record.version) not in self._records]
        self._repair(name)

    def _is_abandoned(self, record: ApplicationRecord) -> bool:
        """Return whether nobody deploys a version any more that is staged: its deployer has died."""
        if record.place != NEXT:
            return False
        if record.share_until_ms:
            return record.share_until_ms < clock.judge_ms()
        _, rollout = self._fleet.rollout(record.name)
        if rollout is None or rollout.version != record.version:  # an older qserve deploys
            return False
        now, state = time.monotonic(), (rollout.version, rollout.beat)
        before, since = self._staged.get(record.name, (None, now))
        self._staged[record.name] = state, (since if before == state else now)
        is_abandoned = before == state and now - since > _ABANDONED_S
        if is_abandoned:
            warn_once(
                f"the deploy of application {record.name!r}, version {record.version}, stands still: what runs of that"
                " version ends, and the version before goes on"
            )
        return is_abandoned

    def _repair(self, name: str) -> None:
        try:
            self._registry.repair(name)
        except BrokerError as error:
            # where this role may only read, somebody has to deploy again
            self._say_once(f"application {name!r} cannot be registered again: {error}; deploy it again")

    def _code_of(self, record: ApplicationRecord) -> bytes:
        """Return what is stored of an application's code."""
        before, code = self._kept.get(record.name, (record, None))
        if code is not None and before.version == record.version:
            return code
        return b"" if record.target and not record.sent_for else self._registry.code(record.name, record.version)

    def _warn_if_unknown(self, versions: Sequence[ApplicationRecord]) -> None:
        name = self._scope.deployment
        if name is not None and versions and not any(name in record.deployments for record in versions):
            app, known = versions[0].name, ", ".join(versions[0].deployments)
            warn_once(
                f"application {app!r} has no deployment {name!r}; it has: {known}. Waiting for a version that has it"
            )

    def _say_once(self, error: str) -> None:
        if error not in self._said:
            self._said.add(error)
            log.error("%s", error)

    def _restore(self) -> bool:
        """Register the applications again, and return whether there were any and it was permitted.

        The requests that the broker had accepted are lost, and their callers get an error; new ones are served.

        Crash on the way: the next tick finds the rest missing, or another supervisor registers it.
        """
        if not self._kept:
            return False
        log.error("the broker has lost its data; the applications are registered again")
        try:
            load_functions(self._client)
            for record, code in self._kept.values():
                try:
                    self._registry.restore(record, code)
                except DeployError as error:
                    log.error("%s", error)
        except BrokerError as error:
            # where this role may only read, somebody has to deploy again
            log.error("the applications cannot be registered again: %s; deploy them again", error)
            return False
        return True


def _warn_of_what_pins_ignore(deployment: DeploymentRecord, count: int) -> None:
    takes = deployment.resources
    ignored = {
        "label_selector or accelerator_type": bool(takes.labels),
        "resources": bool(takes.other),
        "max_replicas_per_node": takes.per_host is not None and count > takes.per_host,
    }
    names = ", ".join(name for name, is_ignored in ignored.items() if is_ignored)
    if names:
        warn_once(
            f"this worker runs {count} replicas of deployment {deployment.name!r}, as it was started for, whatever its"
            f" options say: {names}. Leave out --deployment and --replicas for a worker that obeys them"
        )
