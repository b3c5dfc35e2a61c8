"""Everything that can go wrong, and where it shows.

QserveException                    also ``RayServeException``
├── RequestError                   one request failed; the application goes on
│   ├── TaskError              500 user code raised; also ``RayTaskError``
│   ├── RequestCancelled       499 somebody cancelled it
│   ├── DeadlineExceeded       504 not finished within its deadline
│   ├── ReplicaLost            500 its replica died three times while running it
│   ├── TimeLimitExceeded      500 it ran longer than its deployment's max_execution_s
│   ├── BackPressureError      503 the deployment's queue is full
│   ├── IdempotencyMismatch    422 its idempotency key was used for another request
│   ├── PayloadError           500 a value cannot travel
│   │   ├── PayloadTooLarge    500 it is too long
│   │   ├── ResultNotSerialisable  500 it is what user code returned
│   │   └── ResultTooLarge     500 both
│   └── ResultUnavailable      410 the result is no longer kept, or the id is unknown
├── DeployError                    an application could not be started
├── AppNotFound                404 no application of that name is registered
├── DeadLetterError                a dead letter is not there, or cannot be replayed
└── BrokerError                    the broker is away, or refuses
    ├── BrokerStateLost        503 it was emptied, or started on an empty disk
    ├── BrokerUnsafe           503 the broker would throw accepted requests away
    ├── NotReplicated          503 with durability=replica: no replica of the broker has the request
    └── BrokerUnavailable      503 no connection; asking again later may help

``GetTimeoutError`` (waiting ended, the request goes on) is a TimeoutError beside the tree.
"""

from __future__ import annotations


class QserveException(Exception):
    """Root of the errors that qserve raises itself.

    ``status`` is the HTTP status that the gateway answers with, ``code`` the word for programs in the JSON
    body, ``retryable`` says whether sending the same request again later may succeed.
    """

    status = 500
    code = "internal_error"
    retryable = False


class RequestError(QserveException):
    """Raised when one request cannot be answered with a result."""


class TaskError(RequestError):
    """Raised at the caller when user code raised on a replica.

    The error that a caller catches is also an instance of the original type wherever that type can be
    imported and subclassed (see ``wire.failure``). Attributes: ``remote_type`` (its name),
    ``remote_message``, ``remote_traceback`` (text) and ``deployment``.
    """

    code = "user_code_failed"
    remote_type = "Exception"
    remote_message = ""
    remote_traceback = ""
    deployment = ""


class RequestCancelled(RequestError):
    """Raised when the request was cancelled before it had a result."""

    status = 499
    code = "cancelled"


class DeadlineExceeded(RequestError, TimeoutError):
    """Raised when the request was not finished within its deadline."""

    status = 504
    code = "deadline_exceeded"


class ReplicaLost(RequestError):
    """Raised when the replicas that ran a request died each time it was tried."""

    code = "replica_lost"


class TimeLimitExceeded(RequestError, TimeoutError):
    """Raised when a call ran longer than its deployment's ``max_execution_s``, and was stopped."""

    code = "time_limit_exceeded"


class BackPressureError(RequestError):
    """Raised when a deployment already has ``max_queued_requests`` waiting.

    Parameters:
      message: What is full.
      retry_after_s: After how many seconds there should be room: as long as the call that has waited longest.
    """

    status = 503
    code = "queue_full"
    retryable = True

    def __init__(self, message: str = "", retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class IdempotencyMismatch(RequestError):
    """Raised when an idempotency key comes a second time with another request."""

    status = 422
    code = "idempotency_mismatch"


class PayloadError(RequestError):
    """Raised when a value cannot be encoded, or bytes that arrived cannot be decoded."""

    code = "bad_payload"


class PayloadTooLarge(PayloadError):
    """Raised when a value is longer than what may travel."""

    code = "payload_too_large"


class ResultNotSerialisable(PayloadError):
    """Raised when what user code returned, or yielded, cannot travel or has no form in HTTP."""

    code = "result_not_serialisable"


class ResultTooLarge(ResultNotSerialisable, PayloadTooLarge):
    """Raised when what user code returned, or yielded, is longer than what may travel."""

    code = "result_too_large"


class ResultUnavailable(RequestError):
    """Raised when nothing is known of a request: its result expired, or the id never existed."""

    status = 410
    code = "result_unavailable"


class DeployError(QserveException, RuntimeError):
    """Raised when an application could not be started; the message holds the user's traceback."""

    code = "deploy_failed"


class AppNotFound(QserveException, KeyError):
    """Raised when no application (or deployment) of that name is registered."""

    status = 404
    code = "not_found"

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class DeadLetterError(QserveException):
    """Raised when there is no such dead letter, or it cannot be replayed."""

    code = "dead_letter"


class BrokerError(QserveException):
    """Raised when the broker answers what it should not."""

    status = 503
    code = "broker_error"
    retryable = True


class BrokerUnsafe(BrokerError):
    """Raised when the broker is set up so that it may throw accepted requests away."""

    code = "broker_unsafe"


class NotReplicated(BrokerError):
    """Raised when ``durability`` is ``replica`` and only the broker's primary has the request.

    It was cancelled again; until then it may have begun to run.
    """

    code = "not_replicated"


class BrokerUnavailable(BrokerError, ConnectionError):
    """Raised when the broker cannot be reached."""

    code = "broker_unavailable"


class BrokerStateLost(BrokerError):
    """Raised when the broker has lost what was accepted: it was emptied, or started on an empty disk."""

    code = "broker_state_lost"


class GetTimeoutError(TimeoutError):
    """Raised when waiting for a result ended first; the request itself goes on."""


RayServeException = QserveException
RayTaskError = TaskError
