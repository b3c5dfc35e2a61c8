"""The faults, and how long a contender takes to recover from one."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from peers.contenders import Contender
from peers.ledger import Ledger
from peers.load import Load, ask

REPLICAS = 2
CALM_S = 1.0
"""A contender has recovered once every request of this time had a response in normal time."""

_FRESH_S = 0.005
_BEGUN_FOR_S = 5.0
_SPIN_FOR_S = 1.0


@dataclass
class Fault:
    """A fault that was injected.

    Parameters:
      began: The time of the fault, from which recovery counts.
      acted: The time at which all its actions were complete, such as the end of a deployment.
      killed: The processes of the middle step that it killed.
      gone: The processes of the middle step that do not count as capacity afterwards.
      normal_at: The time from which everything was normal again; None until then.
    """

    began: float
    acted: float = 0.0
    killed: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)
    normal_at: float | None = None


def kill_replica(contender: Contender, ledger: Ledger) -> Fault:
    """Kill a process of the middle step while it runs a call."""
    pid = _process_in_mid_call(ledger)
    os.kill(pid, signal.SIGKILL)
    return Fault(time.monotonic(), killed={pid}, gone={pid})


def kill_worker(contender: Contender, ledger: Ledger) -> Fault:
    """Kill all processes of the middle step and their supervisor while they run calls."""
    while not contender.is_of_worker(_process_in_mid_call(ledger)):
        pass
    pids = {line.pid for line in ledger.middle() if contender.is_of_worker(line.pid)}
    contender.kill_worker()
    return Fault(time.monotonic(), killed=pids, gone=pids)


def _process_in_mid_call(ledger: Ledger) -> int:
    """Return a process of the middle step that has just started a call.

    Raises:
      TimeoutError: No process started a call.
    """
    give_up = time.monotonic() + _BEGUN_FOR_S
    while time.monotonic() < give_up:
        line = ledger.middle()[-1]
        if time.monotonic() - line.at < _FRESH_S:
            return line.pid
        time.sleep(0.001)
    raise TimeoutError(f"no call of the middle step started within {_BEGUN_FOR_S:g} s")


def kill_http(contender: Contender, ledger: Ledger) -> Fault:
    """Kill the process that holds the clients' connections."""
    os.kill(contender.http_process(), signal.SIGKILL)
    return Fault(time.monotonic())


def restart_broker(contender: Contender, ledger: Ledger) -> Fault:
    """Kill the broker."""
    fault = Fault(time.monotonic())
    contender.restart_broker()
    return fault


def update(contender: Contender, ledger: Ledger) -> Fault:
    """Deploy new code."""
    lines = ledger.middle()
    contender.place.write_version(f"v{int(lines[-1].version[1:]) + 1}")
    fault = Fault(time.monotonic(), gone={line.pid for line in lines})
    contender.update()
    return fault


def block(contender: Contender, ledger: Ledger) -> Fault:
    """Send a request that blocks its replica for ever."""
    id = f"spin{len(ledger.lines())}"
    fault = Fault(time.monotonic())
    asyncio.run(ask(contender.port, id, _SPIN_FOR_S, spin=True))  # without waiting for a response
    fault.gone = {line.pid for line in ledger.middle() if line.id == id}
    if not fault.gone:
        raise TimeoutError(f"the request that blocks did not reach its step within {_SPIN_FOR_S:g} s")
    return fault


FAULTS: dict[str, tuple[str, Callable[[Contender, Ledger], Fault]]] = {
    "replica": ("kill -9 of a replica in mid-call", kill_replica),
    "worker": ("kill -9 of a whole worker, restarted after 1 s", kill_worker),
    "http": ("kill -9 of the HTTP process", kill_http),
    "broker": ("kill -9 of the broker, restarted after 1 s", restart_broker),
    "update": ("rolling update", update),
    "blocked": ("a call that never returns (`while True: pass`)", block),
}


class Recovery:
    """Watch the load after a fault.

    Parameters:
      normal_s: The longest response time without a fault.
    """

    def __init__(self, load: Load, ledger: Ledger, normal_s: float) -> None:
        self._load = load
        self._ledger = ledger
        self._normal_s = normal_s

    def watch(self, fault: Fault, cap_s: float) -> None:
        """Wait until everything is normal again, at most ``cap_s``, and record the time in the fault."""
        fault.acted = time.monotonic()
        while time.monotonic() < fault.began + cap_s:
            fault.normal_at = self._normal_since(fault)
            if fault.normal_at is not None:
                return
            time.sleep(0.05)

    def _normal_since(self, fault: Fault) -> float | None:
        calm_at = self._calm_since(fault)
        whole_at = self._whole_since(fault)
        return None if calm_at is None or whole_at is None else max(calm_at, whole_at)

    def _calm_since(self, fault: Fault) -> float | None:
        """Return the time of the last request without a response in normal time, if that was ``CALM_S`` ago."""
        known = time.monotonic() - self._normal_s  # later requests may still have a response in time
        calls = [call for call in self._load.calls if fault.began - self._normal_s <= call.due < known]
        disturbed = [call.due for call in calls if not (call.ok and call.latency_s <= self._normal_s)]
        last = max(disturbed, default=fault.began)
        # an update may disturb requests long after it began, so nothing counts before its end
        return last if known - max(last, fault.acted) >= CALM_S else None

    def _whole_since(self, fault: Fault) -> float | None:
        """Return the time at which as many processes as before had calls of the middle step."""
        if not fault.gone:
            return fault.began
        seen: set[int] = set()
        for line in self._ledger.middle():
            if line.at > fault.began and line.pid not in fault.gone:
                seen.add(line.pid)
                if len(seen) == REPLICAS:
                    return line.at
        return None
