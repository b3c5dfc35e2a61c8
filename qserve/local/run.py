"""Local mode: run an application in this process, to try and test it without a broker, workers or HTTP."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn

from qserve.base import unused
from qserve.base.carried import carried_here
from qserve.base.context import NO_REQUEST, ReplicaContext, Run, replica_here, request_context, scope_here
from qserve.base.entry import start_in
from qserve.base.forks import Loop, on_fork
from qserve.base.log import get_logger
from qserve.base.promise import Promise
from qserve.base.settings import Settings
from qserve.base.tracebacks import user_traceback
from qserve.calls.handles import RayServeSyncHandle
from qserve.calls.progress import happened
from qserve.calls.ref import current
from qserve.define.compile import CompiledApplication
from qserve.deploy.registration import PRELOAD, Code, DeploymentCode, code_of, find_function, record_of
from qserve.engine.invoke import Invocation, Invoker, run_loop
from qserve.engine.preload import preloaded
from qserve.engine.report import log_failure
from qserve.engine.servable import Servable
from qserve.engine.step import Conclusion, Stepper
from qserve.engine.streaming import ReaderGone, SessionSink, Sink
from qserve.exceptions import DeployError, QserveException, WebSocketNotSupported
from qserve.local.plane import Delivery, LocalPlane, Queue, Request, record_here
from qserve.tracing.start import start as start_tracing
from qserve.wire.application import ApplicationRecord, DeploymentRecord
from qserve.wire.events import Happening
from qserve.wire.outcome import State

log: Final = get_logger(__name__)
STOP_FOR_S = 1.0
"""How long running code may take to notice that it is cancelled; its thread is left behind after that."""


def run_local(built: CompiledApplication) -> RayServeSyncHandle:
    """Run an application in this process, with one instance of each deployment.

    Arguments and results are encoded as they would be for a broker. Constructor arguments and code are used as they
    are, so a test can bind fakes.

    Parameters:
      built: The compiled application; it replaces a running application of the same name.

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
    for deployment in record.deployments.values():
        unused.warn(f"deployment {deployment.name!r}", _options_of_processes(deployment), unused.LOCAL)
    plane.records.setdefault(built.name, record)  # threads of constructors may call, and have no context
    try:
        version = _Version(plane, record, code_of(built))
    except BaseException:
        if plane.records[built.name] is record:
            del plane.records[built.name]
        raise
    retired = plane.applications.get(built.name)
    plane.applications[built.name] = version
    plane.records[built.name] = record
    if retired is not None:
        retired.retire()
    return RayServeSyncHandle(built.ingress.name, built.name)


def _options_of_processes(deployment: DeploymentRecord) -> list[str]:
    """Return the options of a deployment that a replica obeys before it imports user code, and this process cannot."""
    resources = deployment.resources
    given = {
        "num_cpus": resources.cpus is not None,
        "num_gpus": resources.gpus,
        "memory": resources.memory,
        "runtime_env.env_vars": deployment.env,
        "logging_config": deployment.logging,
    }
    return [name for name, value in given.items() if value]


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
        super().__init__(replace(Settings.from_env(), secret_key=os.urandom(32).hex().encode()))
        self.previous = current.installed
        start_tracing(self.settings, "local")
        self.applications: dict[str, _Version] = {}
        self.running: set[_Version] = set()
        """All versions that have instances: retired ones stop once their requests have ended."""
        on_fork(self)

    def leave_to_parent(self) -> None:
        """In a forked child: the loops and threads that run the applications are its parent's."""
        atexit.unregister(shutdown_local)
        current.installed = self.previous
        self.wait = self.follow = _refuse  # type: ignore[method-assign, assignment]


def _refuse(*args: object) -> NoReturn:
    raise QserveException("a local application runs in the process that has called run(); this is a forked child of it")


class _Version:
    """A running version of an application.

    Raises:
      DeployError: A constructor raised an exception.
    """

    def __init__(self, plane: _Plane, record: ApplicationRecord, code: Code) -> None:
        self.plane = plane
        self._record = record
        self._instances: list[_Instance] = []
        plane.running.add(self)
        try:
            for name, deployment in record.deployments.items():
                if deployment.replicated:
                    instance = _Instance(plane, record, name, code[name], _preloaded(deployment, plane.settings))
                    self._instances.append(instance)
                    instance.start()
                    # at once, children first: a constructor may call the deployments that it is given
                    queue = Queue(
                        record.version, deployment.max_ongoing, instance.accept, instance.end, instance.observe
                    )
                    plane.requests.queues[record.stream(plane.keys, name)] = queue
        except BaseException:
            self.stop()
            raise

    def retire(self) -> None:
        """Stop as soon as no request is open."""
        stopping = threading.Thread(target=self.stop, daemon=True)
        self.plane.operate(self.plane.requests.when_idle, self._record.version, stopping.start)

    def stop(self) -> None:
        for name in self._record.deployments:
            self.plane.requests.queues.pop(self._record.stream(self.plane.keys, name), None)
        while self._instances:
            self._instances.pop().stop()
        self.plane.running.discard(self)


def _preloaded(deployment: DeploymentRecord, settings: Settings) -> Any:
    """Run the ``preload`` of a deployment; here there is nothing to fork, so it may start threads."""
    name, path = deployment.name, deployment.preload
    if not path:
        return None
    try:
        function = find_function(path, PRELOAD, b"", settings.keyring, name)
        return preloaded(function, f"preload {path!r} of deployment {name!r}")
    except BaseException as error:
        why = str(error) if isinstance(error, QserveException) else user_traceback(error)
        raise DeployError(f"deployment {name!r} could not be started; its preload {path} failed:\n{why}") from error


class _Instance:
    """One deployment's object, with its own loop and thread.

    So a call that blocks its thread waits for other deployments without holding them up.

    Parameters:
      plane: Where the effects of calls are committed.
      record: The application's version.
      code: What is constructed.
      preloaded: What its ``preload`` returned.
    """

    def __init__(
        self, plane: LocalPlane, record: ApplicationRecord, deployment: str, code: DeploymentCode, preloaded: Any
    ) -> None:
        self._record = record.deployments[deployment]
        self._servable = Servable(*code)
        name = f"{deployment}#{os.urandom(3).hex()}"
        self._replica = ReplicaContext(record.name, deployment, name, preloaded=preloaded)
        self._context = _context_of_program()
        self._context.run(record_here.set, record)
        self._context.run(replica_here.set, self._replica)
        start_in(self._context)
        self._loop = Loop()
        self._stopped: asyncio.Future[None] = self._loop.create_future()
        # apart from this object, so that no circle of references keeps the user's object from its end
        self._backend = _LocalBackend(plane, deployment)
        stepper = Stepper(record, plane.keys, plane.codec)
        self._invoker = Invoker(self._servable, stepper, self._backend, self._loop, self._context, f"{deployment}-sync")
        self._thread = threading.Thread(
            target=self._context.copy().run, args=(self._live,), name=deployment, daemon=True
        )
        self._constructed: Promise[tuple[str, BaseException] | None] = Promise()

    def start(self) -> None:
        """Construct the user's object.

        Raises:
          DeployError: The constructor raises.
        """
        self._thread.start()
        self._constructed.wait()
        failure = self._constructed.get_nowait()
        if failure is not None:
            what, error = failure
            raise DeployError(
                f"deployment {self._record.name!r} could not be started; its {what} failed:\n{user_traceback(error)}"
            ) from error
        self._context.run(replica_here.set, replace(self._replica, servable_object=self._servable.instance))

    def stop(self) -> None:
        self._invoker.close()
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # its constructor has failed, and the thread has closed its loop
                self._loop.call_soon_threadsafe(self._stopped.set_result, None)
            self._thread.join(STOP_FOR_S)

    def _live(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                self._servable.construct_on(runner.get_loop())
                if self._record.user_config:
                    runner.run(self._servable.reconfigure(self._record.user_config_value))
            except BaseException as error:
                self._constructed.set((self._servable.part, error))
                return
            self._constructed.set(None)
            run_loop(self._loop, self._stopped)

    def accept(self, delivery: Delivery) -> None:
        """Run a call soon; from any thread."""
        call = _LocalCall(delivery.request.header, delivery.step, delivery, is_observed=delivery.request.is_observed)
        self._loop.call_soon_threadsafe(self._begin, call)

    def end(self, request_id: str, state: str) -> None:
        """Notify the calls of a request soon that it was cancelled or has expired; from any thread."""
        with contextlib.suppress(RuntimeError):  # it has been stopped
            self._loop.call_soon_threadsafe(self._invoker.end, request_id, state)

    def observe(self, request_id: str) -> None:
        """Have the calls of a request say soon when they begin and end; from any thread."""
        with contextlib.suppress(RuntimeError):  # it has been stopped
            self._loop.call_soon_threadsafe(self._invoker.observe, request_id)

    def _begin(self, call: _LocalCall) -> None:
        if call.header.expired():
            self._backend.commit(call, Conclusion(State.EXPIRED))
        else:
            self._invoker.begin(call)


def _context_of_program() -> contextvars.Context:
    """Return the context in which calls begin: with what modules and the program have set, as on a replica.

    What the program's own calls carry belongs to these.
    """
    context = contextvars.copy_context()
    context.run(carried_here.set, None)
    context.run(request_context.set, NO_REQUEST)
    context.run(scope_here.set, None)
    return context


@dataclass(slots=True, eq=False)
class _LocalCall(Invocation):
    delivery: Delivery

    def this_run(self) -> Run:
        return Run(self.header.request_id, self.step, self.delivery.stream, b"", 1)


@dataclass
class _LocalBackend:
    """Commits the effects of one deployment's calls within this process."""

    plane: LocalPlane
    deployment: str

    def values(self, call: _LocalCall) -> Sequence[bytes]:
        return call.delivery.values

    def wire(self, call: _LocalCall) -> SessionSink:
        raise WebSocketNotSupported("local mode has no HTTP")

    def sink(self, call: _LocalCall) -> Sink | None:
        return _LocalSink(self.plane, call.delivery.request) if call.header.stream else None

    def fail(self, call: _LocalCall, error: BaseException) -> None:
        if not call.delivery.request.is_open():  # another branch has failed: its error counts
            self.commit(call, Conclusion(State.CANCELLED))
            return
        failure = log_failure(log, f"{self.deployment}.{call.name}", "failed", error, self.deployment)
        self.commit(call, Conclusion(State.FAILED, failure.encode()))

    reject = fail

    def commit(self, call: _LocalCall, conclusion: Conclusion) -> None:
        if call.span is not None:
            sends = conclusion.sends(self.plane.keys, call.header.app)
            call.span.settled(conclusion.outcome, call.delivery.request.is_open(), sends)
        event = None
        if call.is_observed and conclusion.state in ("", State.DONE):
            event = happened(Happening.DONE, *call.request().runs)
        self.plane.operate(self.plane.requests.commit, call.delivery, conclusion, event)

    def flush(self) -> None:
        """Nothing to do: effects are committed at once."""


@dataclass
class _LocalSink:
    """Sends the items of one call to their reader in this process."""

    plane: LocalPlane
    request: Request
    room = 0

    def flush(self) -> None:
        """Nothing to do: items are handed over at once."""

    async def settled(self) -> None:
        pass

    async def send(self, payload: bytes) -> None:
        may_continue: Promise[bool] = Promise()
        self.plane.operate(self.plane.requests.emit, self.request, payload, may_continue)
        if not await may_continue:
            raise ReaderGone("the request of this stream has ended")

    def result(self) -> bytes:
        return b""
