"""Local mode: run an application in this process, to try and test it without a broker, workers or HTTP."""

from __future__ import annotations

import atexit
import os
import threading
from dataclasses import replace

from qserve.base.settings import Settings
from qserve.calls.handles import RayServeSyncHandle
from qserve.calls.ref import current
from qserve.define.compile import CompiledApplication
from qserve.deploy.registration import Code, code_of, record_of
from qserve.local.instance import Instance
from qserve.local.memory import Queue
from qserve.local.plane import LocalPlane
from qserve.wire.application import ApplicationRecord


def run_local(built: CompiledApplication) -> RayServeSyncHandle:
    """Run an application in this process, with one instance of each deployment.

    Arguments and results are encoded as they would be for a broker. Constructor arguments and code are used as they
    are, so a test can bind fakes.

    Parameters:
      built: The compiled application; it replaces the one that runs under the same name.

    Returns:
      A handle for sync code, as from ``qserve.run``.

    Raises:
      DeployError: A constructor raised an exception; the message has its traceback.
      PayloadError: A constant in a graph cannot be encoded.
    """
    plane = current.installed
    if not isinstance(plane, _Plane):
        plane = _Plane()
        atexit.register(shutdown_local)
        current.installed = plane
    record = record_of(built, plane.codec)
    version = _Version(plane, record, code_of(built))
    retired = plane.applications.get(built.name)
    plane.applications[built.name] = version
    plane.records[built.name] = record
    if retired is not None:
        retired.retire()
    return RayServeSyncHandle(built.ingress.name, built.name)


def delete_local(name: str) -> bool:
    """Remove an application once its accepted requests have ended; return False if there is none of that name."""
    plane = current.installed
    version = plane.applications.pop(name, None) if isinstance(plane, _Plane) else None
    if version is None:
        return False
    version.plane.records.pop(name, None)
    version.retire()
    return True


def shutdown_local() -> None:
    """Cancel all open requests, stop the local applications, and reinstall the plane that was in use before."""
    plane = current.installed
    if not isinstance(plane, _Plane):
        return
    atexit.unregister(shutdown_local)
    plane.close()
    for version in list(plane.running):
        version.stop()
    plane.applications.clear()
    current.installed = plane.previous


class _Plane(LocalPlane):
    """The plane of local mode, with its applications and the plane that was in use before."""

    def __init__(self) -> None:
        super().__init__(replace(Settings.from_env(), secret_key=os.urandom(32)))
        self.previous = current.installed
        self.applications: dict[str, _Version] = {}
        self.running: set[_Version] = set()
        """All versions that have instances: retired ones stop once their requests have ended."""


class _Version:
    """A running version of an application.

    Raises:
      DeployError: A constructor raised an exception.
    """

    def __init__(self, plane: _Plane, record: ApplicationRecord, code: Code) -> None:
        self.plane = plane
        self._record = record
        self._instances: list[Instance] = []
        plane.running.add(self)
        try:
            for name, deployment in record.deployments.items():
                if deployment.replicated:
                    instance = Instance(plane, record, name, code[name])
                    self._instances.append(instance)
                    instance.start()
                    # at once, children first: a constructor may call the deployments that it is given
                    queue = Queue(record.version, deployment.max_ongoing, instance.accept)
                    plane.requests.queues[record.stream(plane.keys, name)] = queue
        except BaseException:
            self.stop()
            raise

    def retire(self) -> None:
        """Stop as soon as no request is open."""
        stopping = threading.Thread(target=self.stop, daemon=True)
        self.plane.operate(self.plane.requests.when_idle, self._record.version, stopping.start)

    def stop(self) -> None:
        """Stop all instances; calls that are running are cancelled."""
        for name in self._record.deployments:
            self.plane.requests.queues.pop(self._record.stream(self.plane.keys, name), None)
        while self._instances:
            self._instances.pop().stop()
        self.plane.running.discard(self)
