"""``run`` and what belongs to it: serve from a Python program, and reach what is served."""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from qserve.base.settings import DEFAULT_HOST, DEFAULT_PORT, Settings
from qserve.broker.connection import load_functions
from qserve.broker.registry import NO_CHANGE
from qserve.calls.client import ClientPlane
from qserve.calls.handles import DeploymentHandle, RayServeSyncHandle
from qserve.calls.ref import current
from qserve.define.application import Application
from qserve.define.compile import CompiledApplication, compile_application
from qserve.define.options import check_route_prefix
from qserve.deploy.code import code_of, pack_code
from qserve.deploy.gateways import wait_for_gateways
from qserve.deploy.records import code_digest, record_of
from qserve.deploy.replicas import Pool
from qserve.deploy.rollout import new_version, reconfigure, roll_out
from qserve.deploy.snapshot import ServeStatus, read_status
from qserve.exceptions import AppNotFound, PayloadError, QserveException
from qserve.local.plane import LocalPlane
from qserve.local.run import delete_local, run_local, shutdown_local
from qserve.machine.launch import Launch
from qserve.wire.application import ApplicationRecord

DEFAULT: Any = object()
"""Stands for "as the ingress deployment says"."""

_launch: Launch | None = None


def run(
    target: Any,
    _blocking: bool = True,
    *,
    blocking: bool = False,
    host: str | None = None,
    port: int | None = None,
    name: str = "default",
    route_prefix: Any = DEFAULT,
    request_timeout_s: float | None = None,
    local: bool = False,
    _local_testing_mode: bool = False,
) -> RayServeSyncHandle:
    """Serve a bound node, and go on once all of its replicas take calls.

    The first call starts a broker (unless the environment names one), the workers and the gateway; the
    program's end stops them. One of them that dies is started again. A later call replaces the application of
    the same name.

    Parameters:
      target: A class node or function node, from ``Deployment.bind``, or what ``build`` returned.
      blocking: Whether to wait for Ctrl-C instead of going on.
      _blocking: Taken for the sake of older programs; the replicas are always waited for.
      host, port: Where the gateway listens; None keeps what runs, or takes 127.0.0.1 and 8000.
      name: The application's name.
      route_prefix: Where it answers; None for no HTTP at all.
      request_timeout_s: Deadline of its requests.
      local: Run everything in this process, without a broker and without HTTP; for tests.

    Returns:
      A handle for sync code: ``qserve.get(handle.remote(...))``, ``handle.predict.remote(...)``.

    Raises:
      DeployError: A constructor raises; the message holds its traceback.
      TypeError, ValueError: The target is no graph that can be served.
      BrokerUnavailable: The broker does not answer.
    """
    if not name:
        raise QserveException("an application's name must not be empty: leave `name` out, or give it one")
    built = target.rebuild(name) if isinstance(target, Application) else compile_application(target, app_name=name)
    prefix = built.route_prefix if route_prefix is DEFAULT else route_prefix
    if prefix is not None:
        check_route_prefix(prefix)
    if local or _local_testing_mode:
        return run_local(built, route_prefix=prefix, timeout_s=request_timeout_s)
    launch = _ensure_launched(host, port)
    if blocking:
        _serve_until_interrupted(lambda: _roll_out(launch, built, prefix, request_timeout_s))
    else:
        _roll_out(launch, built, prefix, request_timeout_s)
    return RayServeSyncHandle(built.ingress, name)


def _roll_out(launch: Launch, built: CompiledApplication, prefix: str | None, timeout_s: float | None) -> None:
    plane = _client()
    if launch.settings.secret_key is None:
        raise PayloadError("code travels to its replicas signed: set QSERVE_SECRET_KEY to a secret of your own")
    code = pack_code(code_of(built), launch.settings.keyring)
    record = record_of(built, new_version(), plane.codec, route_prefix=prefix, timeout_s=timeout_s)
    record = replace(record, code_digest=code_digest(record, built, code))
    pool = Pool(plane.client, plane.keys, built.name)
    active = plane.registry.find(built.name)
    if active is not None and _keeps_replicas(active, record, built):
        record = replace(record, version=active.version)
        change = reconfigure(plane.registry, pool, record, check=launch.check)
    else:
        change = roll_out(plane.registry, pool, record, code, check=launch.check)
    plane.learn(record)
    _wait_for_gateway(launch, change)


def _wait_for_gateway(launch: Launch, change: str) -> None:
    plane = _client()
    wait_for_gateways(plane.client, plane.keys, change, launch.gateway_workers, launch.check)
    launch.keep()


def _keeps_replicas(active: ApplicationRecord, record: ApplicationRecord, built: CompiledApplication) -> bool:
    """Whether replicas go on: the code is the same, and either versions say so or only settings changed."""
    if active.code_digest != record.code_digest:
        return False
    return active.deployments != record.deployments or all(one.version is not None for one in built.deployments)


def _ensure_launched(host: str | None, port: int | None) -> Launch:
    global _launch
    shutdown_local()
    if _launch is not None:
        moved = (host or _launch.host, port or _launch.port) != (_launch.host, _launch.port)
        if not moved:
            _launch.check()
            return _launch
        shutdown()
    _launch = Launch(
        Settings.from_env(),
        host=host or DEFAULT_HOST,
        port=port or DEFAULT_PORT,
        import_paths=tuple(path or str(Path.cwd()) for path in sys.path),
    )
    atexit.register(shutdown)
    plane = ClientPlane(_launch.settings)
    current.install(plane)
    try:
        load_functions(plane.client)
    except BaseException:
        shutdown()
        raise
    return _launch


def _serve_until_interrupted(begin: Callable[[], None]) -> None:
    try:
        begin()
        while _launch is not None:
            _launch.check()
            time.sleep(0.2)
    except KeyboardInterrupt:
        shutdown()


def start(
    detached: bool = True,
    http_options: Any = None,
    *,
    host: str | None = None,
    port: int | None = None,
    **ignored: Any,
) -> None:
    """Start the broker, the workers and the gateway without an application; nothing when they run already.

    Parameters:
      http_options: A dict, or an object, that may have ``host`` and ``port``; a later start changes nothing by it.
      host, port: Where the gateway listens.
      detached, ignored: Taken for the sake of programs written for Ray Serve.
    """
    if http_options is not None and _launch is None:
        options = http_options if isinstance(http_options, dict) else vars(http_options)
        host, port = host or options.get("host"), port or options.get("port")
    _wait_for_gateway(_ensure_launched(host, port), NO_CHANGE)


def shutdown() -> None:
    """Stop everything that this program started; nothing when nothing runs."""
    global _launch
    shutdown_local()
    plane = current.installed()
    if isinstance(plane, ClientPlane):
        plane.close()
        current.install(None)
    launch, _launch = _launch, None
    if launch is not None:
        atexit.unregister(shutdown)
        launch.stop()


def delete(name: str) -> None:
    """Remove an application: accepted requests finish, new ones are refused.

    Raises:
      AppNotFound: There is none of that name.
    """
    if delete_local(name):
        return
    plane = _client()
    plane.registry.get(name)
    change = plane.registry.delete(name)
    plane.unlearn(name)
    if _launch is not None:
        _wait_for_gateway(_launch, change)


def status() -> ServeStatus:
    """The state of every application: RUNNING, DEPLOYING or UNHEALTHY, with deployments and replicas.

    Raises:
      BrokerUnavailable: Nothing runs here and no broker is named.
    """
    plane = _client()
    return read_status(plane.client, plane.keys, plane.seal)


def get_app_handle(name: str = "default") -> DeploymentHandle:
    """A handle to an application's ingress, without importing its code.

    The broker is the one of this process's ``run``, or of ``QSERVE_BROKER_URL``.

    Raises:
      AppNotFound: No application of that name is deployed.
    """
    record = _application(name)
    return DeploymentHandle(record.ingress, name)


def get_deployment_handle(deployment_name: str, app_name: str = "default") -> DeploymentHandle:
    """A handle to one deployment of an application.

    Raises:
      AppNotFound: There is no such application, or it has no such deployment.
    """
    record = _application(app_name)
    if deployment_name not in record.deployments:
        known = ", ".join(record.deployments)
        raise AppNotFound(f"application {app_name!r} has no deployment {deployment_name!r}; it has: {known}")
    return DeploymentHandle(deployment_name, app_name)


def _application(name: str) -> ApplicationRecord:
    plane = current.plane()
    return plane.application(name) if isinstance(plane, LocalPlane) else _client().application(name)


def _client() -> ClientPlane:
    plane = current.plane()
    if not isinstance(plane, ClientPlane):
        raise QserveException(
            "this needs the broker: inside a deployment use the handles that its constructor is given, and in local"
            " mode the handles that run() returned"
        )
    return plane


def connect() -> ClientPlane:
    """A client of the broker that the environment names, for a handle that is used before anything was started.

    Raises:
      BrokerUnavailable: The environment names none.
    """
    return ClientPlane(Settings.from_env())


def _after_fork() -> None:
    """In the child of a program that serves: what was started belongs to its parent; calls take a way of their own."""
    global _launch
    _launch = None
    atexit.unregister(shutdown)
    plane = current.installed()
    if isinstance(plane, ClientPlane):
        current.connect_with(partial(ClientPlane, plane.settings))
        current.install(None)


os.register_at_fork(after_in_child=_after_fork)
