"""The errors of qserve, with the HTTP status that the gateway sends for each.

QserveException                    also ``RayServeException``
├── RequestError                   one request failed; the application goes on
│   ├── TaskError              500 user code raised; also ``RayTaskError``
│   ├── RequestCancelledError  499 the request was cancelled; also ``RequestCancelled``
│   ├── DeadlineExceeded       504 the request was not finished within its deadline
│   ├── ReplicaLost            500 the replica died three times while it ran the request
│   ├── DeploymentUnavailableError  503 no replica of the deployment can be started
│   ├── VersionReplaced        503 after a release, no replica can finish the request
│   ├── TimeLimitExceeded      500 a call ran longer than the max_execution_s of its deployment
│   ├── WebSocketNotSupported  501 the deployment does not serve WebSockets
│   ├── BackPressureError      503 the queue of the deployment is full
│   ├── IdempotencyMismatch    422 the idempotency key was used for a different request
│   ├── PayloadError           500 a value cannot be sent
│   │   ├── PayloadTooLarge    500 a value is too long
│   │   ├── ResultNotSerialisable  500 user code returned a value that cannot be sent
│   │   └── ResultTooLarge     500 user code returned a value that is too long
│   ├── ResultUnavailable      410 the result is no longer kept, or the ID is unknown
│   ├── ValueLost              500 a stored value is gone
│   └── ValueUnreachable       500 a stored value is where this process cannot read it
├── DeployError                500 an application could not be started
├── AppNotFound                404 no application of that name is registered
├── DeadLetterError            500 a dead letter does not exist or cannot be replayed
├── StoreUnavailable           503 the store of large values cannot be reached
├── UsageProblem               400 a command or a file asks for something that cannot be; nothing was changed
└── BrokerError                503 the broker refused a command
    ├── WrongType              503 a key in the broker was overwritten with something else
    ├── BrokerStateLost        503 the broker has lost its data
    ├── BrokerUnsafe           503 the broker would delete accepted requests
    ├── NotReplicated          503 with durability=replica: no replica of the broker has the request
    └── BrokerUnavailable      503 the broker cannot be reached; trying again later may help
        └── BrokerFull         503 the memory of the broker is used up

``GetTimeoutError`` (the wait ended, the request goes on) is a TimeoutError outside of the tree.
"""

from __future__ import annotations

from typing import Any


class QserveException(Exception):
    """Base class of the errors that qserve raises.

    ``status`` is the HTTP status that the gateway sends, ``code`` identifies the error to programs in the JSON
    body, and ``retryable`` is True if the same request may succeed later.
    """

    status: int = 500
    code: str = "internal_error"
    retryable: bool = False

    def __init_subclass__(cls, *, status: int = 0, code: str = "", retryable: bool = False, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls.status = status or cls.status
        cls.code = code or cls.code
        cls.retryable = retryable or cls.retryable


class RequestError(QserveException):
    """Raised when one request has no result."""


class TaskError(RequestError, code="user_code_failed"):
    """Raised in the caller when user code raised on a replica.

    The error that a caller catches is also an instance of the original type if that can be imported and
    subclassed (see ``wire.failure``). Attributes: ``remote_type`` (its name),
    ``remote_message``, ``remote_traceback`` (text) and ``deployment``.
    """

    remote_type = "Exception"
    remote_message = ""
    remote_traceback = ""
    deployment = ""


class RequestCancelledError(RequestError, status=499, code="cancelled"):
    """Raised when the request was cancelled before it had a result."""


class DeadlineExceeded(RequestError, TimeoutError, status=504, code="deadline_exceeded"):
    """Raised when the request was not finished within its deadline."""


class ReplicaLost(RequestError, code="replica_lost"):
    """Raised when the replica that ran a call died, three times in a row. ``deployment`` is the call's."""

    deployment = ""


class DeploymentUnavailableError(RequestError, status=503, code="deployment_unavailable", retryable=True):
    """Raised when no replica of a ``deployment`` runs, and its last starts have failed; the message says why."""

    deployment = ""
    retry_after_s = 5


class VersionReplaced(RequestError, status=503, code="version_replaced", retryable=True):
    """Raised when, after a release, no replica can finish the request in the version that accepted it."""


class TimeLimitExceeded(RequestError, TimeoutError, code="time_limit_exceeded"):
    """Raised when a call was stopped because it ran longer than the ``max_execution_s`` of its ``deployment``."""

    deployment = ""


class WebSocketNotSupported(RequestError, status=501, code="websocket_not_supported"):
    """Raised when a client opens a WebSocket of a deployment that is not a FastAPI or ASGI application."""


class BackPressureError(RequestError, status=503, code="queue_full", retryable=True):
    """Raised when ``max_queued_requests`` calls already wait for a deployment.

    Parameters:
      message: Which queue is full.
      retry_after_s: After how many seconds to try again: as long as the call that has waited longest.
      status: The status of the response: 503, or the deployment's ``backpressure_config``.
    """

    def __init__(self, message: str = "", retry_after_s: int = 1, status: int = 503) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.status = status


class IdempotencyMismatch(RequestError, status=422, code="idempotency_mismatch"):
    """Raised when an idempotency key is sent a second time with a different request."""


class PayloadError(RequestError, code="bad_payload"):
    """Raised when a value cannot be encoded, or received bytes cannot be decoded."""


class PayloadTooLarge(PayloadError, code="payload_too_large"):
    """Raised when a value is too long to be sent."""


class ResultNotSerialisable(PayloadError, code="result_not_serialisable"):
    """Raised when user code returned or yielded a value that cannot be sent, or cannot be written as HTTP."""


class ResultTooLarge(ResultNotSerialisable, PayloadTooLarge, code="result_too_large"):
    """Raised when user code returned or yielded a value that is too long to be sent."""


class ResultUnavailable(RequestError, status=410, code="result_unavailable"):
    """Raised when a request is unknown: its result has expired, or the ID never existed."""


class ValueLost(RequestError, code="value_lost"):
    """Raised when a large value that a step has passed on is gone, for example with the host in whose memory it was."""


class ValueUnreachable(RequestError, code="value_unreachable"):
    """Raised when a large value is in the memory of another host, or in a folder that this process does not know."""


class StoreUnavailable(QserveException, status=503, code="store_unavailable", retryable=True):
    """Raised when the folder or object store of large values, ``QSERVE_PAYLOADS``, cannot be reached."""


class DeployError(QserveException, RuntimeError, code="deploy_failed"):
    """Raised when an application could not be started; the message holds the user's traceback."""


class AppNotFound(QserveException, KeyError, status=404, code="not_found"):
    """Raised when no application (or deployment) of that name is registered."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class DeadLetterError(QserveException, code="dead_letter"):
    """Raised when a dead letter does not exist or cannot be replayed."""


class UsageProblem(QserveException, status=400, code="bad_request"):
    """Raised for a command or a file that cannot be carried out as it is written; nothing was changed.

    The command ends with exit code 2.
    """


class NameNotFound(UsageProblem, status=404, code="not_found"):
    """Raised for the name of an application, a deployment or a host that is not there."""


class BrokerError(QserveException, status=503, code="broker_error", retryable=True):
    """Raised when the broker refuses a command or sends a reply that makes no sense."""


class WrongType(BrokerError):
    """Raised when a key in the broker holds another type of value than qserve has stored there."""


class BrokerUnsafe(BrokerError, code="broker_unsafe"):
    """Raised when the configuration of the broker lets it delete accepted requests."""


class NotReplicated(BrokerError, code="not_replicated"):
    """Raised when ``durability`` is ``replica`` and only the primary of the broker has the request.

    The request is cancelled, but it may have begun to run before that.
    """


class BrokerUnavailable(BrokerError, ConnectionError, code="broker_unavailable"):
    """Raised when the broker cannot be reached."""


class BrokerFull(BrokerUnavailable, code="broker_full"):
    """Raised when the broker refuses a request because its memory is full; what it has accepted goes on."""


class BrokerStateLost(BrokerError, code="broker_state_lost"):
    """Raised when the broker has lost accepted requests: it was emptied, or started on an empty disk."""


class GetTimeoutError(TimeoutError):
    """Raised when a wait for a result ended before the result was there; the request goes on."""


RayServeException = QserveException
RayTaskError = TaskError
RequestCancelled = RequestCancelledError
