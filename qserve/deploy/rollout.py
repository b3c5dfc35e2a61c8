"""Deploying: register a version, wait until its replicas run, and make it the active one."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from qserve.broker.registry import Registry
from qserve.deploy.replicas import FAILED, RUNNING, Pool, ReplicaStatus
from qserve.exceptions import DeployError
from qserve.wire.application import ApplicationRecord

READY_FOR_S = 60.0
_MIN_FAILURES = 3


@dataclass(frozen=True)
class Progress:
    """How far a deployment's start has come."""

    deployment: str
    running: int
    wanted: int


def new_version() -> str:
    """A version that no other deploy has."""
    return os.urandom(6).hex()


def wait_until_running(
    record: ApplicationRecord,
    pool: Pool,
    *,
    timeout_s: float = READY_FOR_S,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    check: Callable[[], None] = lambda: None,
    exact: bool = False,
) -> None:
    """Wait until every replica of a version has constructed its object and takes calls.

    Parameters:
      record: The version.
      pool: Where its replicas report.
      timeout_s: Longest wait.
      on_progress: Told of each deployment whenever its number of running replicas changes.
      check: Called while waiting; raises when waiting has become pointless.
      exact: Wait as well until replicas beyond the wanted number are gone.

    Raises:
      DeployError: A constructor failed as often as it is tried (the message holds the user's traceback), or
        the time ran out.
    """
    wanted = {name: one.num_replicas for name, one in record.deployments.items() if one.replicated}
    shown: dict[str, int] = {}
    give_up = time.monotonic() + timeout_s
    while True:
        replicas = [one for one in pool.replicas() if one.version == record.version]
        running = Counter(one.deployment for one in replicas if _is_up_to_date(one, record))
        for name, count in wanted.items():
            if shown.get(name) != running[name]:
                shown[name] = running[name]
                on_progress(Progress(name, running[name], count))
        if all(running[name] == count or (running[name] > count and not exact) for name, count in wanted.items()):
            return
        _raise_for_failures(replicas, wanted)
        check()
        if time.monotonic() > give_up:
            late = ", ".join(f"{name} ({running[name]} of {count})" for name, count in wanted.items())
            why = "".join(f"\n{one.deployment}: {one.message}" for one in replicas if one.state == FAILED)
            raise DeployError(f"not all replicas were ready within {timeout_s:.0f} s: {late}{why}")
        time.sleep(0.01)


def _is_up_to_date(replica: ReplicaStatus, record: ApplicationRecord) -> bool:
    known = record.deployments.get(replica.deployment)
    return replica.state == RUNNING and known is not None and replica.config == known.config


def _raise_for_failures(replicas: list[ReplicaStatus], wanted: dict[str, int]) -> None:
    failed = Counter(one.deployment for one in replicas if one.state == FAILED)
    for name, count in failed.items():
        # a constructor is tried three times for each replica that is wanted, as in Ray Serve
        if count >= max(_MIN_FAILURES, 3 * wanted.get(name, 1)):
            message = next(one.message for one in replicas if one.deployment == name and one.state == FAILED)
            raise DeployError(f"deployment {name!r} could not be started; its constructor failed:\n{message}")


def reconfigure(
    registry: Registry, pool: Pool, record: ApplicationRecord, *, check: Callable[[], None] = lambda: None
) -> str:
    """Give the running version another ``user_config`` or number of replicas; answers the registry's change.

    Raises:
      DeployError: Not all replicas took it.
    """
    change = registry.promote(record)
    wait_until_running(record, pool, check=check, exact=True)
    return change


def roll_out(
    registry: Registry,
    pool: Pool,
    record: ApplicationRecord,
    code: bytes = b"",
    *,
    timeout_s: float = READY_FOR_S,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    check: Callable[[], None] = lambda: None,
) -> str:
    """Stage a version, wait until it runs, promote it; answers the registry's change.

    Until then, and when it fails, the version that was active goes on serving.

    Raises:
      DeployError: See ``wait_until_running``.
    """
    registry.stage(record, code)
    try:
        wait_until_running(record, pool, timeout_s=timeout_s, on_progress=on_progress, check=check)
    except BaseException:
        registry.withdraw(record)
        raise
    return registry.promote(record)
