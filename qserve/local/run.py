"""Local mode: an application in this very process, to try and test it without a broker, workers or HTTP."""

from __future__ import annotations

import atexit
import os
import threading
from dataclasses import replace

from qserve.base.settings import Settings
from qserve.calls.handles import RayServeSyncHandle
from qserve.calls.ref import Plane, current
from qserve.define.compile import CompiledApplication
from qserve.deploy.registration import Code, code_of, record_of
from qserve.local.instance import Instance
from qserve.local.plane import LocalPlane
from qserve.wire.application import ApplicationRecord


def run_local(
    built: CompiledApplication, *, route_prefix: str | None = None, timeout_s: float | None = None
) -> RayServeSyncHandle:
    """Run an application in this process: one instance of each deployment, and no HTTP.

    Arguments and results are encoded as they would be for a broker. Constructor arguments and code are used
    as they are, so that a test may bind what stands in for the real thing.

    Parameters:
      built: The compiled application; one that runs under the same name is replaced.
      route_prefix: Noted in its record; nothing answers there.
      timeout_s: Deadline of its requests; None takes the ingress deployment's, or the setting's.

    Returns:
      A handle for sync code, as ``qserve.run`` gives it.

    Raises:
      DeployError: A constructor raises; the message holds its traceback.
      PayloadError: A constant in a graph cannot travel.
    """
    plane = _ensure_plane()
    record = record_of(built, plane.codec, route_prefix=route_prefix, timeout_s=timeout_s)
    application = _Application(plane, record, code_of(built))
    retired = _applications.get(built.name)
    _applications[built.name] = application
    plane.activate(record)
    if retired is not None:
        retired.retire()
    return RayServeSyncHandle(built.ingress, built.name)


def delete_local(name: str) -> bool:
    """Remove an application: accepted requests finish, new ones are refused. False when there is none."""
    application = _applications.pop(name, None)
    if application is None:
        return False
    application.plane.deactivate(name)
    application.retire()
    return True


def shutdown_local() -> None:
    """Cancel what is open, end every local application, and give back the plane that was in use before."""
    global _plane, _before
    plane, _plane = _plane, None
    if plane is None:
        return
    atexit.unregister(shutdown_local)
    plane.close()
    for application in list(_running):
        application.stop()
    _applications.clear()
    if current.installed() is plane:
        current.install(_before)
    _before = None


def _ensure_plane() -> LocalPlane:
    global _plane, _before
    if _plane is None:
        _plane = LocalPlane(replace(Settings.from_env(), secret_key=os.urandom(32)))
        atexit.register(shutdown_local)
    if current.installed() is not _plane:
        _before = current.installed()
        current.install(_plane)
    return _plane


class _Application:
    """A running version of an application.

    Raises:
      DeployError: A constructor raises.
    """

    def __init__(self, plane: LocalPlane, record: ApplicationRecord, code: Code) -> None:
        self.plane = plane
        self._record = record
        self._instances: list[Instance] = []
        _running.add(self)
        try:
            for name, one in record.deployments.items():
                if one.replicated:
                    instance = Instance(plane, record, name, code[name])
                    self._instances.append(instance)
                    instance.start()
                    # at once, and children come first: a constructor may call what it was given
                    plane.attach(record, name, instance.accept)
        except BaseException:
            self.stop()
            raise

    def retire(self) -> None:
        """Stop as soon as no request is open."""
        self.plane.when_idle(self._record, lambda: threading.Thread(target=self.stop, daemon=True).start())

    def stop(self) -> None:
        """End all instances; what still runs is cancelled."""
        self.plane.detach(self._record)
        while self._instances:
            self._instances.pop().stop()
        _running.discard(self)


_plane: LocalPlane | None = None
_before: Plane | None = None
_applications: dict[str, _Application] = {}
_running: set[_Application] = set()
"""The applications that callers reach, and versions that still finish what they accepted."""
