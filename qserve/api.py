"""Serve applications from a Python program, and call those that are served."""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from qserve.base import context, unused
from qserve.base.clock import Clock
from qserve.base.import_path import is_importing_user_code
from qserve.base.promise import T
from qserve.base.settings import DEFAULT_HOST, DEFAULT_PORT, Settings
from qserve.broker.connection import load_functions
from qserve.broker.registry import NO_CHANGE
from qserve.calls.client import NO_BROKER, ClientPlane
from qserve.calls.compose import ComposingPlane
from qserve.calls.handles import DeploymentHandle, RayServeSyncHandle
from qserve.calls.mailbox import BROKER_STOPPED
from qserve.calls.program_end import fail, is_ending, report
from qserve.calls.ref import Ref, current
from qserve.client import Client, deployment_handle, ref_by_id
from qserve.define.application import compiled, set_defaults
from qserve.define.drivers import DAGDriver, is_driver
from qserve.define.http_options import HTTPOptions, gateway_variables
from qserve.define.options import LoggingConfig, check_key
from qserve.deploy.claim import Claim
from qserve.deploy.installation import Installation
from qserve.deploy.registration import check_external_scaler, release_of
from qserve.deploy.removal import remove
from qserve.deploy.rollout import READY_TIMEOUT_S, roll_out, wait_for_gateways
from qserve.deploy.status import ServeStatus, status_of
from qserve.exceptions import BrokerUnavailable, QserveException
from qserve.graph.nodes import ClassNode, DAGNode, Target
from qserve.local.run import delete_local, run_local, shutdown_local
from qserve.machine.local_cluster import LocalCluster
from qserve.machine.running import none_found, settings_of_run
from qserve.wire.application import ApplicationRecord

DEFAULT: Any = object()
"""Stands for the route prefix of the ingress deployment."""

_cluster: LocalCluster | None = None


def run(
    target: Target[T],
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
    logging_config: Any = None,
    external_scaler_enabled: bool = False,
) -> RayServeSyncHandle[..., T]:
    """Serve a bound node, and return once all of its replicas take calls.

    The first call starts a broker (unless the environment names one), the workers and the gateway, which are
    restarted if they die and stopped when the program ends. A later call replaces the application of the same name.

    Parameters:
      target: A class node or function node, from ``Deployment.bind``, or the result of ``build``.
      blocking: Whether to wait for Ctrl-C before returning.
      _blocking: Accepted for compatibility and ignored; ``run`` always waits for the replicas.
      host, port: The address of the gateway; None keeps the current one, at first 127.0.0.1 and 8000.
      name: The name of the application, which is not empty.
      route_prefix: Its URL path, such as ``"/shop"``; None for no HTTP at all. Without it, the ingress deployment's
        own, and else ``"/"``.
      request_timeout_s: The deadline of its requests in seconds; None for that of its ingress deployment, or else for
        ``QSERVE_REQUEST_TIMEOUT_S`` (60).
      local: Run everything in this process, without a broker and without HTTP; for tests.
      _local_testing_mode: Ray Serve's name of ``local``.
      logging_config: A dict or a ``LoggingConfig`` for the replicas of deployments that have none of their own.
      external_scaler_enabled: Leave the numbers of replicas to operators, or to what starts workers; then no
        deployment may have an autoscaling_config.

    Returns:
      A handle for sync code: ``qserve.get(handle.remote(...))``, ``handle.predict.remote(...)``.

    Raises:
      DeployError: A constructor raises; the message holds its traceback.
      RuntimeError: A deployment calls this, or a module while it is imported to be served.
      TypeError, ValueError: The target is not a graph that can be served, or an argument is not valid.
      QserveException: The name is empty.
      BrokerUnavailable: The broker does not reply.

    Example:
      @serve.deployment
      class Doubler:
          def __call__(self, number: int) -> int:
              return 2 * number

      doubler = serve.run(Doubler.bind(), name="doubler", route_prefix="/double")
      print(doubler.remote(21).result())  # 42
    """
    if not name:
        raise QserveException("the name of an application must not be empty: leave `name` out, or set it")
    built = compiled(target, name)
    if external_scaler_enabled:
        check_external_scaler(built)
    set_defaults(built, LoggingConfig.of(logging_config))
    if route_prefix is not DEFAULT:
        built.ingress.set_options(route_prefix=route_prefix)
    if request_timeout_s is not None:
        built.ingress.set_options(request_timeout_s=request_timeout_s)
    if local or _local_testing_mode:
        return run_local(built)
    cluster = _ensure_cluster(host, port)
    try:
        release = release_of(built, cluster.settings.keyring, external_scaler=external_scaler_enabled)
        record = roll_out(_installation(), release, gateways=cluster.gateway_workers, check=cluster.check)
        _client().cache_application(record)
        cluster.serve_tasks(release.tasks)
        cluster.keep_running()
        while blocking and _cluster is not None:
            _cluster.wait()
    except KeyboardInterrupt:
        if not blocking:
            raise
        shutdown()
    return RayServeSyncHandle(built.ingress.name, name)


def _ensure_cluster(
    host: str | None,
    port: int | None,
    timeout_s: float | None = None,
    variables: Mapping[str, str] = MappingProxyType({}),
    of_gateway: Mapping[str, str] = MappingProxyType({}),
) -> LocalCluster:
    global _cluster
    _check_is_program()
    shutdown_local()
    if _cluster is not None:
        address = (_cluster.host, _cluster.port)
        if (host or _cluster.host, port or _cluster.port) == address:
            _cluster.check()
            return _cluster
        shutdown()
    _cluster = LocalCluster(
        Settings.from_env({**os.environ, **variables}, request_timeout_s=timeout_s),
        host=host or DEFAULT_HOST,
        port=port or DEFAULT_PORT,
        gateway_env=of_gateway,
        import_paths=tuple(path or str(Path.cwd()) for path in sys.path),
    )
    atexit.register(shutdown)
    try:
        _cluster.start()
        plane = ClientPlane(_cluster.settings, is_of_program=True)
        current.installed = plane
        load_functions(plane.client)
    except BaseException:
        shutdown()
        raise
    return _cluster


def _check_is_program() -> None:
    """Refuse to start processes in code that qserve runs, which is run again in all that they start."""
    if is_importing_user_code():
        raise RuntimeError(
            "qserve.run() was called while qserve was importing this module to serve it."
            ' Put the call under `if __name__ == "__main__":`'
        )
    if current.in_replica():
        raise RuntimeError(
            "qserve.run() and qserve.start() are for programs: a deployment cannot serve others. Call them in the"
            " program that serves this one, or use `qserve deploy`"
        )


def start(
    detached: bool | None = None,
    http_options: Any = None,
    logging_config: Any = None,
    *,
    host: str | None = None,
    port: int | None = None,
    http_host: str | None = None,
    http_port: int | None = None,
    **given: Any,
) -> None:
    """Start the broker, the workers and the gateway without an application, unless they are running already.

    Parameters:
      http_options: A dict or an object with the fields of ``HTTPOptions``; ignored if they are running already.
      logging_config: A dict or a ``LoggingConfig`` with the level and the encoding of all logs, as
        ``QSERVE_LOG_LEVEL`` and ``QSERVE_LOG_FORMAT`` say them; ignored if they are running already.
      host, port: The address of the gateway; None keeps the current one, at first 127.0.0.1 and 8000.
      http_host, http_port: Older names of ``host`` and ``port``.
      detached, given: Ray Serve's other arguments; a warning says that they have no effect.

    Raises:
      TypeError: An argument, or a key of ``http_options``, does not exist.
      RuntimeError: A deployment calls this, or a module while it is imported to be served.

    Example:
      serve.start(http_options={"request_timeout_s": 30})
    """
    middlewares = given.pop("http_middlewares", None)
    for name in given:
        check_key(name, unused.START, "an argument of `start`")
    given["detached"] = detached
    unused.warn("start()", [name for name, value in given.items() if value], unused.START)
    options, logs = HTTPOptions.of(http_options), LoggingConfig.of(logging_config)
    of_gateway = options.variables | gateway_variables(middlewares)
    if logs is not None:
        unused.warn("logging_config of start()", sorted({*logs.given} - {"encoding", "log_level"}), unused.OF_REPLICAS)
    host, port = host or http_host, port or http_port
    if _cluster is None:
        set_here = options.model_fields_set
        host = host or (options.host if "host" in set_here else None)
        port = port or (options.port if "port" in set_here else None)
    cluster = _ensure_cluster(host, port, options.request_timeout_s, {} if logs is None else logs.variables, of_gateway)
    _wait_for_gateways(cluster, NO_CHANGE)


def init(*addresses: Any, **given: Any) -> None:
    """Do nothing, for programs that call ``ray.init()``: ``run`` starts what it needs on this host.

    Parameters:
      addresses, given: Ray's arguments; a warning says that they have no effect.

    Example:
      serve.init()
    """
    names = [*("address" for _ in addresses), *(name for name, value in given.items() if value is not None)]
    unused.warn("init()", names, unused.INIT)


def is_initialized() -> bool:
    """Return whether this program has started something, or is connected to a broker.

    Returns:
      True after ``run``, ``start`` or the first use of a handle, until ``shutdown``.

    Example:
      print(serve.is_initialized())  # True
    """
    return _cluster is not None or current.installed is not None


_executed: WeakKeyDictionary[DAGNode, RayServeSyncHandle] = WeakKeyDictionary()


def execute(node: DAGNode, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref[Any]:
    """Run a node in local mode; see ``DAGNode.execute``."""
    if isinstance(current.installed, ClientPlane) or current.in_replica():
        raise QserveException(
            "node.execute() runs a graph in this process, but this program serves applications: call the handle that"
            " serve.run(...) returned"
        )
    handle = _executed.get(node)
    if handle is None:
        is_root = isinstance(node, ClassNode) and is_driver(node.get_body())
        handle = _executed[node] = run(
            node if is_root else DAGDriver.bind(node), name=f"execute-{id(node):x}", local=True
        )
    return handle.predict.remote(*args, **kwargs)


class RunTarget(NamedTuple):
    """One application of ``run_many``.

    Parameters:
      target: A node, or the result of ``build``.
      name: The name of the application.
      route_prefix: Its URL path; None for no HTTP at all.
      logging_config: A dict or a ``LoggingConfig`` for its replicas.

    Example:
      target = serve.RunTarget(Greeter.bind(), name="english", route_prefix="/english")
    """

    target: Any
    name: str = "default"
    route_prefix: Any = DEFAULT
    logging_config: Any = None


def run_many(targets: Sequence[RunTarget], blocking: bool = False, **options: Any) -> list[RayServeSyncHandle]:
    """Run several applications, one after the other.

    Parameters:
      targets: The applications, each a ``RunTarget``.
      blocking: Whether to wait for Ctrl-C when all of them run.
      options: Further arguments of ``run``, for all of them.

    Returns:
      Their handles, in the order of ``targets``.

    Raises:
      DeployError: One cannot be started; those before it run. Other errors are those of ``run``.

    Example:
      targets = [serve.RunTarget(Greeter.bind(), name, f"/{name}") for name in ("morning", "evening")]
      morning, evening = serve.run_many(targets)
      print(evening.remote("Dora").result())  # Hello Dora
    """
    handles: list[RayServeSyncHandle] = []
    for number, target in enumerate(targets, 1):
        handles.append(run(**target._asdict(), blocking=blocking and number == len(targets), **options))
    return handles


async def shutdown_async() -> None:
    """Do the same as ``shutdown`` without blocking the event loop.

    Example:
      async def stop() -> None:
          await serve.shutdown_async()
          print(serve.is_initialized())  # False

      asyncio.run(stop())
    """
    await asyncio.to_thread(shutdown)


def _wait_for_gateways(cluster: LocalCluster, change: str) -> None:
    wait_for_gateways(_installation(), change, cluster.gateway_workers, cluster.check)
    cluster.keep_running()


def shutdown() -> None:
    """Stop everything that this program has started.

    Calls that are running finish first, for as long as ``graceful_shutdown_timeout_s`` of their deployment allows. A
    program that ends does the same by itself.

    Example:
      serve.shutdown()
      print(serve.is_initialized())  # False
    """
    global _cluster
    shutdown_local()
    _executed.clear()
    plane = current.installed
    cluster, _cluster = _cluster, None
    if isinstance(plane, ClientPlane) and not plane.end():
        fail()
    if cluster is not None:
        atexit.unregister(shutdown)
        had_broker = cluster.has_broker
        if isinstance(plane, ClientPlane):
            plane.stops_with_broker = had_broker
        cluster.stop()  # calls that run are finished meanwhile, and their results received
        if had_broker and isinstance(plane, ClientPlane):
            _report_unfinished(plane)
            plane.mailbox.settle_all(BROKER_STOPPED)
    if isinstance(plane, ClientPlane):
        plane.close()
        current.installed = None


def _report_unfinished(plane: ClientPlane) -> None:
    unfinished = plane.unfinished()
    if unfinished:
        report("not finished when the broker that this program had started was stopped", unfinished)
        if is_ending():
            fail()


def delete(name: str) -> None:
    """Remove an application: requests that were accepted finish, new ones are refused.

    Where no worker is left to finish them, they fail with AppNotFound. While requests are open, this waits for the
    heartbeats of workers that were started elsewhere, for ``QSERVE_LEASE_S`` and two seconds at most.

    Parameters:
      name: The name of the application, as ``run`` and `qserve deploy` take it.

    Raises:
      AppNotFound: There is no application of that name.
      DeployError: It is being deployed, and that has not ended for a minute.
      QserveException: A deployment calls this.

    Example:
      serve.run(Greeter.bind(), name="old", route_prefix="/old")
      serve.delete("old")
      print("old" in serve.status().applications)  # False
    """
    if delete_local(name):
        return
    plane = _client()
    plane.registry.get(name)
    # workers that this program has started are restarted when they die, and finish everything
    if _cluster is None:
        change = remove(_installation(), name)
    else:
        with Claim(_installation(), name, "", READY_TIMEOUT_S) as claim:
            change = claim.delete()
    plane.uncache_application(name)
    if _cluster is not None:
        _wait_for_gateways(_cluster, change)


def status() -> ServeStatus:
    """Return the status of every application, of its deployments and replicas, in the words of Ray Serve.

    Returns:
      A ``ServeStatus``, whose ``applications`` is a dict by name.

    Raises:
      BrokerUnavailable: No broker is set, and this user runs nothing here; or the broker does not reply.
      QserveException: A deployment calls this.

    Example:
      application = serve.status().applications["default"]
      print(application.status.value)  # RUNNING
      print(application.deployments["Greeter"].replica_states)  # {'RUNNING': 1}
    """
    return status_of(_installation())


def get_app_handle(name: str = "default") -> DeploymentHandle:
    """Return a handle to an application's ingress, without importing its code.

    The broker is that of this process's ``run``, or of ``QSERVE_BROKER_URL``, or of the `qserve run` of this user.

    Parameters:
      name: The name of the application.

    Returns:
      A handle with one await: ``value = await handle.remote(...)``, or ``handle.remote(...).result()`` in sync code.

    Raises:
      AppNotFound: No application of that name is deployed.
      BrokerUnavailable: No broker is set, and this user runs nothing here; or the broker does not reply.

    Example:
      print(serve.get_app_handle("default").remote("Dora").result())  # Hello Dora
    """
    return DeploymentHandle(_application(name).ingress, name)


def get_deployment_handle(deployment_name: str, app_name: str | None = None) -> DeploymentHandle:
    """Return a handle to one deployment of an application.

    Parameters:
      deployment_name: The name of the deployment: its option ``name``, or else the name of its class or function.
      app_name: The application; None for the one whose deployment the calling code runs in, elsewhere ``"default"``.

    Returns:
      A handle with one await, as ``get_app_handle`` returns it.

    Raises:
      AppNotFound: There is no such application, or it has no such deployment.
      BrokerUnavailable: No broker is set, and this user runs nothing here; or the broker does not reply.

    Example:
      print(serve.get_deployment_handle("Greeter").remote("Dora").result())  # Hello Dora
    """
    if app_name is None:
        here = context.replica_here.get() or context.replica
        app_name = "default" if here is None else here.app_name
    return deployment_handle(_application(app_name), deployment_name)


def get_ref(request_id: str) -> Ref[Any]:
    """Return the ref of a request by its ID, in any program that has the broker's address and the key.

    ``qserve.get_ref(request_id).result()`` waits for the value, as the ref that ``remote`` returned does. The value of
    a request that came by HTTP is its response: a tuple with ``status``, ``headers`` and ``body``.

    Parameters:
      request_id: The ``request_id`` of a ref, or the ``X-QServe-Request-ID`` of an HTTP response.

    Returns:
      A ref to wait for, await, cancel, or pass as an argument. It raises ResultUnavailable when the request is not
      known, or its result is no longer stored (``QSERVE_RESULT_TTL_S``).

    Raises:
      ValueError: This is not a request ID.
      BrokerUnavailable: No broker is set, and this user runs nothing here.

    Example:
      ref = handle.remote("Dora")
      ref.accepted()
      print(serve.get_ref(ref.request_id).result())  # Hello Dora
    """
    return ref_by_id(request_id, current.plane)


def _application(name: str) -> ApplicationRecord:
    plane = current.plane()
    return plane.find(name) if isinstance(plane, ComposingPlane) else _client().application(name)


def _installation() -> Installation:
    plane = _client()
    return Installation(plane.settings, plane.client)


def _client() -> ClientPlane:
    plane = current.plane()
    if not isinstance(plane, ClientPlane):
        raise QserveException(
            "this needs the broker: inside a deployment use the handles that its constructor receives, and in local"
            " mode the handles that run() returned"
        )
    return plane


def connect(url: str | None = None, *, secret_key: str | bytes | None = None, namespace: str | None = None) -> Client:
    """Return a client of a running installation, beside any others that this program has.

    Nothing is sent before the client is used. Without ``url`` it is the broker that the environment names, or the one
    that this program uses already (such as that of ``run``), or that of the `qserve run` of this user.

    Parameters:
      url: The broker: ``redis://``, ``rediss://``, ``unix://`` or ``sentinel://``.
      secret_key: The key of the installation; None for ``QSERVE_SECRET_KEY``, or that of the broker without ``url``.
      namespace: The namespace of the installation; None for ``QSERVE_NAMESPACE``, or ``"qserve"``.

    Returns:
      A client with ``get_app_handle``, ``get_deployment_handle``, ``get_ref`` and ``submit_many``; for `with` and
      `async with`, or ``close()``.

    Raises:
      ValueError, QserveException: An argument is not valid; the message names the variable that has the same meaning.
      BrokerUnavailable: Neither the argument nor the environment names a broker, and nothing of this user runs here.
      UsageProblem: Several run here.

    Example:
      with serve.connect() as client:  # or serve.connect("redis://broker:6379/0", secret_key=key)
          print(client.get_app_handle("default").remote("Dora").result())  # Hello Dora
    """
    given = {"QSERVE_BROKER_URL": url, "QSERVE_SECRET_KEY": secret_key, "QSERVE_NAMESPACE": namespace}
    for variable, value in given.items():
        if value is not None and (not isinstance(value, str | bytes) or not value):
            raise ValueError(f"the argument of connect() for {variable} must be a text, and not empty; got {value!r}")
    variables = {variable: os.fsdecode(value) for variable, value in given.items() if value is not None}
    return Client(ClientPlane(_settings_of_program(variables), is_of_program=True, clock=Clock()))


def connect_program() -> ClientPlane:
    """Return a client of the broker, for a handle that is used before ``run``; see ``connect``."""
    return ClientPlane(_settings_of_program({}), is_of_program=True)


def _settings_of_program(variables: Mapping[str, str]) -> Settings:
    """Return the settings of the environment and ``variables``.

    Without a broker these are those that this program uses already, or those of the run that is found.
    """
    settings = Settings.from_env({**os.environ, **variables})
    if settings.broker_url is None and not is_importing_user_code():
        plane = current.installed
        found = plane.settings if isinstance(plane, ClientPlane) else settings_of_run()
        if found is None:
            raise BrokerUnavailable(f"{NO_BROKER}; {none_found()}")
        settings = Settings.from_env({**found.to_env(), **variables})
    return settings


def _after_fork() -> None:
    """In a forked child: what was started belongs to the parent."""
    global _cluster
    _cluster = None
    atexit.unregister(shutdown)


os.register_at_fork(after_in_child=_after_fork)
