"""What this worker offers to run, and which replicas it has to run of what was planned."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

from qserve.base import failpoints
from qserve.base.forks import on_fork
from qserve.base.log import get_logger
from qserve.base.memory import usable_bytes
from qserve.broker.connection import is_forbidden
from qserve.deploy.installation import Installation
from qserve.exceptions import BrokerError
from qserve.fleet.autoscale import Autoscaler
from qserve.fleet.lead import Leadership
from qserve.fleet.leader import GONE_S, Leader, Registered
from qserve.fleet.values import Key
from qserve.wire.fleet import HostRecord, Slot
from qserve.wire.replies import warn_once
from qserve.wire.status import RUNNING
from qserve_workers.process.heartbeat import Observer
from qserve_workers.supervisor.policies import PolicyHost

log = get_logger(__name__)
_BEAT_S = 1.0
_OFFER_AGAIN_S = 10.0
_RESIGN_AGAIN_S = 60.0
_LEAVE_S = 5.0
"""The longest that a worker which is to end waits for others to run what it has run."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Capacity:
    """What a worker has room for.

    Parameters:
      places: How many replicas it runs, each with one CPU; None for as many as it has cores, and more where a
        deployment would be without a replica otherwise.
      host: The name of its machine.
      devices: Its GPUs; None for those that the system shows.
      memory: In bytes, for replicas that have a limit; None for what this process may use.
      resources, labels: What its operator says that it has, and is.
    """

    places: int | None = None
    host: str = field(default_factory=socket.gethostname)
    devices: tuple[str, ...] | None = None
    memory: int | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def gpus(self) -> tuple[str, ...]:
        """Its GPUs, those that the system shows if nothing was said."""
        return _devices() if self.devices is None else self.devices

    def record(self, worker: str, app: str | None) -> HostRecord:
        """Return what a worker offers that may run anything of ``app``, or of all applications."""
        return HostRecord(
            worker,
            self.host,
            _cores() if self.places is None else self.places,
            self.places is None,
            self.gpus,
            usable_bytes() if self.memory is None else self.memory,
            dict(self.resources),
            dict(self.labels),
            app=app or "",
        )


class Offer:
    """One worker's part in a fleet: it offers places, leads if no other does, and knows what it has to run.

    Parameters:
      app: The only application that it runs; None for all.
      is_pinned: Whether it runs what it was started for, whatever is planned.
      registered: Returns every application, also those that this worker does not run.
      policies: Asks scaling policies, while this worker leads.
      values_in: Returns the memory in which its replicas store large values; see ``HostRecord``.
    """

    def __init__(
        self,
        installation: Installation,
        capacity: Capacity,
        app: str | None,
        is_pinned: bool,
        registered: Callable[[], Registered],
        policies: PolicyHost,
        values_in: Callable[[], str] = str,
    ) -> None:
        self._values_in = values_in
        self._id = WorkerId(capacity.host, installation.settings.broker_url or "", installation.settings.namespace)
        self.worker = self._id.name
        self._installation = installation
        self._registered = registered
        self._store = installation.fleet
        record = capacity.record(self.worker, app)
        self._record = replace(record, places=0, is_soft=False) if is_pinned else record
        self._are_devices_chosen = capacity.devices is not None
        self.devices = record.devices
        """The GPUs that are for this worker's replicas."""
        self._leadership = Leadership(installation.client, installation.keys, installation.seal, self.worker)
        self._policies = policies
        self._leader = Leader(
            self._store,
            self._leadership,
            self.worker,
            self._running,
            Observer(GONE_S).update,
            Autoscaler(
                installation.client,
                installation.keys,
                ask=policies,
                reports=lambda app: installation.reports(app).replicas(),
            ),
        )
        self._lead_again_at = self._resign_at = 0.0
        self._offered: HostRecord | None = None
        self._offer_at = self._beat_at = self._put_back_at = 0.0
        self._leave_by: float | None = None
        self.slots: tuple[Slot, ...] = ()
        """What it has to run of what was planned; what it had before as long as that is not known."""

    @property
    def may_change(self) -> bool:
        """Whether what is planned for this worker is about to change, as far as it knows."""
        return self._leave_by is not None or (bool(self._leadership.mine) and not self._leader.is_idle)

    @property
    def is_alone(self) -> bool:
        """Whether this worker leads, and there is no other."""
        return bool(self._leadership.mine) and self._leader.is_alone

    def planned(self) -> tuple[Slot, ...]:
        """Return what is planned for this worker; the leader, which plans it, has what it planned last.

        Raises:
          BrokerError: It is not known; the worker goes on with what it runs.
        """
        found = None if self._leadership.mine else self._store.slots_of(self.worker)
        if found is None and self.slots and not self._leadership.mine and time.monotonic() >= self._put_back_at:
            # the broker has lost its data: whoever leads is told what runs here, before it plans anew
            self._put_back_at = time.monotonic() + _BEAT_S
            self._store.put_back(self.worker, self.slots)
            self._offer_at = 0.0
            self._leader.settle()
        return self.slots if found is None else found

    def take(self, slots: tuple[Slot, ...]) -> None:
        """Run what is planned from now on. Crash after it: the worker has the same name when it starts again."""
        if slots != self.slots:
            self.slots = slots
            if failpoints.ARMED:
                failpoints.hit("worker.after_plan")

    def tick(self, has: Sequence[str], pins: Mapping[str, int], is_new: bool) -> None:
        """Offer what this worker has, and lead if no other does.

        Parameters:
          has: The versions whose code it has, each as ``application:version``.
          pins: Replicas that it runs whatever is planned.
          is_new: Whether the registry has changed.

        Raises:
          BrokerError: The broker is away; the worker goes on with what it runs.
        """
        now = time.monotonic()
        is_leaving = self._leave_by is not None
        if now >= self._offer_at:
            self._share_devices()
        offer = replace(
            self._record,
            devices=self.devices,
            has=tuple(sorted(has)),
            pins=dict(pins),
            is_leaving=is_leaving,
            values_in=self._values_in(),
        )
        is_changed = offer != self._offered
        if now >= self._beat_at:
            self._beat_at = now + _BEAT_S
            self._store.beat(self.worker)
        if is_changed or now >= self._offer_at:
            self._store.offer(offer)
            self._offered, self._offer_at = offer, now + _OFFER_AGAIN_S
            if failpoints.ARMED:
                failpoints.hit("worker.after_offer")
        if not is_leaving and now >= self._lead_again_at:
            own = self._leader.tick(self._registered, offer, is_changed or is_new)
            if own is not None:
                self.take(own)
        self._keep_policies(now)

    def _share_devices(self) -> None:
        """Leave GPUs to the workers on this host whose names come before, unless an operator has said which to use."""
        mine = self._record
        others = [
            one
            for name, one in (self._store.hosts() if mine.devices else {}).items()
            if one.host == mine.host and name < self.worker and not set(mine.devices).isdisjoint(one.devices)
        ]
        taken = {device for one in others for device in one.devices}
        if others:
            names, rest = ", ".join(sorted(one.worker for one in others)), "so does this one, as it was told"
            if not self._are_devices_chosen:
                rest = "this one offers only others. Say with --devices which GPUs each worker is to use"
            shared = ", ".join(device for device in mine.devices if device in taken)
            warn_once(f"GPUs {shared} of host {mine.host} are offered by worker {names}; {rest}")
        if not self._are_devices_chosen:
            self.devices = tuple(device for device in mine.devices if device not in taken)

    def _keep_policies(self, now: float) -> None:
        """End the scaling policies that this worker is not to ask any more.

        Without the code of one, it lets another worker lead that has it: once a minute, since that one may be gone.
        """
        if not self._leadership.mine:
            self._policies.keep(())
        elif self._policies.versions:
            self._policies.keep({(record.name, record.version) for record in self._registered().records})
            lacking = {":".join(version) for version in self._policies.lacking}
            if lacking and now >= self._resign_at:
                self._resign_at = now + _RESIGN_AGAIN_S
                others = (one for name, one in self._store.hosts().items() if name != self.worker)
                if any(not one.is_leaving and not lacking.isdisjoint(one.has) for one in others):
                    log.info("another worker has the code of a scaling policy, and may lead")
                    self._leadership.resign()
                    self._lead_again_at = now + GONE_S

    def _running(self, app: str) -> Mapping[tuple[Key, str], int]:
        found: Counter[tuple[Key, str]] = Counter()
        for one in self._installation.reports(app).replicas():
            if one.state == RUNNING:
                found[Key(app, one.version, one.deployment), one.worker] += 1
        return found

    def is_needed(self) -> bool:
        """Return whether this worker, which is to end, goes on for a while: until others run what it has to run.

        It goes on for 5 s at most, and not at all where no other worker could run anything of that.
        """
        now = time.monotonic()
        if self._leave_by is None:
            self._leave_by = now
            with contextlib.suppress(BrokerError):
                self._leadership.resign()
                self._leave_by += _LEAVE_S if self._is_replaceable() else 0.0
        return now < self._leave_by and self.slots != ()

    def _is_replaceable(self) -> bool:
        versions = {f"{slot.app}:{slot.version}" for slot in self.slots}
        others = [one for name, one in self._store.hosts().items() if name != self.worker] if versions else []
        return any(one.places and not one.is_leaving and not versions.isdisjoint(one.has) for one in others)

    def withdraw(self) -> None:
        """Offer nothing any more. What this worker runs is placed elsewhere, where that was not done before.

        Crash before it: others notice that this worker's counter stands still.
        """
        with contextlib.suppress(BrokerError):
            self._store.offer(HostRecord(self.worker, self._record.host, is_leaving=True))


def explain_refusal(error: BrokerError) -> str:
    """Return what to do where the broker's ACL forbids a worker its part; "" for any other error."""
    if not is_forbidden(error.__cause__):
        return ""
    return (
        "this worker's user may not write what workers offer and are to run ({qserve}:hosts, plan, lead and s:*):"
        " take the worker's line of `qserve doctor --acl` into the broker's ACL"
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def device_names(text: str) -> tuple[str, ...]:
    """Return the GPUs that an option or a variable names, in CUDA's words."""
    return tuple(dict.fromkeys(name for one in text.split(",") if (name := one.strip()) not in _NO_DEVICE))


_NO_DEVICE = ("", "none", "void", "-1", "NoDevFiles")


def _devices() -> tuple[str, ...]:
    """Return the GPUs that this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return device_names(named)
    found = len([*Path("/dev").glob("nvidia[0-9]*")])
    return tuple(map(str, range(found)))  # CUDA counts from 0, also in a container that has only nvidia3


class WorkerId:
    """A worker's name, which no other worker has as long as this one lives, and which it has again after a restart.

    The kernel holds it: a socket without a file, which is free when the process has ended, however it did.
    """

    def __init__(self, host: str, broker: str, namespace: str) -> None:
        self._held: socket.socket | None = None
        self.name = f"{host}-{os.urandom(4).hex()}"
        if sys.platform != "linux":
            return
        self._held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        # in the name too: another user of this host, or another address of the same broker, begins to count anew
        place = f"{os.getuid()}|{broker}|{namespace}|{_BOOT_ID.read_text()}"
        digest = hashlib.sha256(place.encode()).hexdigest()[:8]
        for number in count():
            try:
                self._held.bind(f"\0qserve-worker-{digest}-{host[:40]}-{number}")
            except OSError:
                continue
            self.name = f"{host}-{digest}-{number}"
            break
        on_fork(self)

    def leave_to_parent(self) -> None:
        """Let go of the name in a replica: it may live longer than its supervisor, whose successor has it again."""
        if self._held is not None:
            self._held.close()

    __del__ = leave_to_parent
