"""One task: it submits the call of a deployment under an id that follows from the task's, and waits for the result."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
from celery import Task
from celery.exceptions import Ignore, Reject
from celery.worker.request import Request

from qserve.base.carried import Carried
from qserve.base.log import get_logger
from qserve.base.trace_context import read_traceparent, read_tracestate
from qserve.base.tracebacks import full_traceback
from qserve.calls.client import ClientPlane
from qserve.calls.ref import Call, Ref
from qserve.exceptions import (
    BackPressureError,
    BrokerError,
    BrokerUnavailable,
    IdempotencyMismatch,
    QserveException,
    RequestCancelledError,
)
from qserve.wire.application import TaskQueue
from qserve.wire.failure import Failure
from qserve.wire.request_ids import value_id_of_key
from qserve_workers.tasks.names import TaskTarget

log = get_logger(__name__)
_AGAIN_S = 1.0
LONGEST_PAUSE_S = 60
"""The longest wait before a handler's task is tried again, as in Ray Serve."""


class TaskCalls:
    """The calls of all tasks of this process.

    Parameters:
      keep_s: How long a result is kept: a task whose worker is killed comes again, and must find it.
    """

    def __init__(self, plane: ClientPlane, keep_s: float) -> None:
        self._plane = plane
        self._keep_s = keep_s
        self._open: dict[str, Ref[Any]] = {}
        self._revoked: set[str] = set()
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Have the tasks that wait go back to their queue; their calls go on, and the next worker waits for them."""
        self._stopping.set()
        self._plane.close()

    def cancel(self, task_id: str) -> None:
        """Cancel the call of a task that was revoked, if this process waits for it."""
        ref = self._open.get(task_id)
        if ref is not None:
            self._revoked.add(task_id)
            ref.cancel()

    def result(self, task: Task, target: TaskTarget, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the result of a task's call, which runs once however often this is called for the task.

        Crash before the call is submitted: the task's message comes again. Crash after: the message comes again as
        well, and the same id leads to the call that is known.

        Raises:
          Reject: This process stops; the message goes back to its queue.
          Ignore: The task was revoked.
          Exception: What has ended the call.
        """
        request = task.request
        hard_s, soft_s = request.timelimit or (None, None)
        asked = msgpack.packb([target[:4], args, kwargs], default=repr)
        key = f"{request.id}:{request.retries}" if target.queue is not None else request.id
        settings = self._plane.settings
        call = Call(
            target.app, target.deployment, target.method, args, kwargs, timeout_s=soft_s or hard_s,
            result_ttl_s=max(self._keep_s, settings.result_ttl_s), fingerprint=hashlib.sha256(asked).hexdigest(),
            request_id=value_id_of_key(key, settings.namespace, settings.secret_key), carried=_carried(request),
        )  # fmt: skip
        while True:
            try:
                ref = self._open[request.id] = self._plane.submit(call)
                return ref.result()
            except RequestCancelledError:
                if request.id in self._revoked:
                    raise Ignore from None
                raise
            except IdempotencyMismatch:
                raise QserveException(f"the task id {request.id} was used for another call before") from None
            except (BrokerError, BackPressureError) as error:
                is_passing = isinstance(error, BrokerUnavailable | BackPressureError)
                if not is_passing and not self._stopping.is_set():
                    raise
                log.debug("task %s waits: %s", request.id, error)
                if self._stopping.wait(_AGAIN_S):
                    raise Reject("this worker stops", requeue=True) from error
            finally:
                self._open.pop(request.id, None)
                self._revoked.discard(request.id)


def _carried(request: Any) -> Carried | None:
    """Return the W3C Trace Context in a task's headers, where Celery's producers have put it."""
    parent, state = (getattr(request, name, None) for name in ("traceparent", "tracestate"))
    parent = read_traceparent(parent) if isinstance(parent, str) else ""
    return Carried(parent, read_tracestate(state) if isinstance(state, str) else "") if parent else None


class DeploymentTask(Task):  # type: ignore[misc]
    """A task that calls a deployment; ``target`` says which, ``calls`` how."""

    typing = False
    acks_late = True
    reject_on_worker_lost = True
    Request = "qserve_workers.tasks.task:RevocableRequest"
    throws = (Exception,)  # the replica has logged it

    def __init__(self, target: TaskTarget, calls: TaskCalls) -> None:
        self.name = target.name
        self.target, self.calls = target, calls

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Call the deployment and return its result; what user code raised is raised under its own name."""
        try:
            return self.calls.result(self, self.target, args, kwargs)
        except (Ignore, Reject):
            raise
        except Exception as error:
            queue, retries = self.target.queue, self.request.retries
            if queue is not None and (queue.max_retries < 0 or retries < queue.max_retries):
                pause_s = min(LONGEST_PAUSE_S, 2 ** min(retries, 6))
                raise self.retry(exc=_named(error), countdown=pause_s, max_retries=retries + 1) from error
            if queue is not None and queue.failed:
                self._keep(queue, error, args, kwargs)
            raise _named(error) from error

    def _keep(self, queue: TaskQueue, error: Exception, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Send what has failed for good to the queue for that, with the arguments that Ray Serve gives such a task.

        Crash before this is sent: the task's message comes again, and fails in the same way. Crash after: the same,
        and it is sent once more, under the same id.
        """
        about = [self.request.id, str(_named(error)), list(args), dict(kwargs), full_traceback(error)]
        name = next(name for name, method in queue.handlers.items() if method == self.target.method)
        self.app.send_task(name, args=about, queue=queue.failed, task_id=f"{self.request.id}-failed")


class RevocableRequest(Request):  # type: ignore[misc]
    """Celery's request, which can be revoked while it runs although its pool has threads."""

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Cancel the call that runs; one that has not begun is dropped later, as any that is revoked."""
        if self.time_start:
            self._announce_revoked("terminated", True, str(signal), False)
            self.task.calls.cancel(self.id)
        else:
            self._terminate_on_ack = pool, signal


class _UserError(Exception):
    """The base of errors that have the name of the user's own class, which is not known here."""

    def __reduce__(self) -> Any:  # Celery sends a stand-in for an error that cannot be pickled
        return _user_error, (type(self).__module__, type(self).__qualname__, self.args)


def _user_error(module: str, name: str, args: tuple[Any, ...]) -> _UserError:
    return type(name, (_UserError,), {"__module__": module, "__doc__": None})(*args)  # type: ignore[no-any-return]


def _named(error: Exception) -> Exception:
    """Return an error as producers get it: by the name of the user's own class, which they may know."""
    failure: Failure | None = vars(error).get("__failure__")
    if failure is None:
        return error
    return _user_error(failure.module, failure.type.rpartition(".")[2], failure.args or (failure.message,))
