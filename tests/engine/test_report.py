"""How a call failed: one traceback for each error of user code, and none for a mistake of the client."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from starlette.exceptions import HTTPException

from qserve.engine.report import log_failure
from qserve.exceptions import DeadlineExceeded
from qserve.http.request import InvalidJSON
from qserve.wire.failure import Failure

log = logging.getLogger("qserve.test")


def passed_on(error: BaseException) -> BaseException:
    """The error as another deployment gets it that has called the one where it was raised."""
    return Failure.of(error, "Inner").to_exception()


def group(*errors: Any) -> ExceptionGroup[Any]:
    return ExceptionGroup("two of them", errors)


class Odd(Exception):
    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise LookupError

    def __str__(self) -> str:
        raise LookupError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("a"), "ERROR work failed: KeyError: 'a' + traceback"),
        (MemoryError(), "ERROR work failed: MemoryError + traceback"),
        (SystemExit(3), "ERROR work failed: SystemExit: 3 + traceback"),
        (DeadlineExceeded("of ours"), "ERROR work failed: DeadlineExceeded: of ours + traceback"),
        (HTTPException(503, "busy"), "ERROR work failed: HTTPException: 503: busy + traceback"),
        (HTTPException(404, "no such"), "INFO work failed, a mistake of the client: HTTPException: 404: no such"),
        (InvalidJSON("bad", "", 0),
         "INFO work failed, a mistake of the client: InvalidJSON: bad: line 1 column 1 (char 0)"),
        (passed_on(KeyError("a")), "INFO work failed with the error of Inner: KeyError: 'a'"),
        (passed_on(MemoryError()), "INFO work failed with the error of Inner: MemoryError"),
        (passed_on(passed_on(KeyError("a"))), "INFO work failed with the error of Inner: KeyError: 'a'"),
        (Failure.of(DeadlineExceeded("late")).to_exception(),
         "INFO work failed with the error of what it called: DeadlineExceeded: late"),
        (group(passed_on(KeyError("a")), passed_on(ValueError("b"))),
         "INFO work failed with the error of what it called: ExceptionGroup: two of them (2 sub-exceptions)"),
        (group(passed_on(KeyError("a")), ValueError("b")),
         "ERROR work failed: ExceptionGroup: two of them (2 sub-exceptions) + traceback"),
        (Odd(), "ERROR work failed: Odd: <the error cannot be described: LookupError> + traceback"),
    ],
    ids=repr,
)  # fmt: skip
def test_an_error_has_its_traceback_where_it_was_raised_and_a_mistake_of_a_client_none(
    error: BaseException, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, log.name)
    log_failure(log, "work", "failed", error, "Outer")
    (record,) = caplog.records
    assert f"{record.levelname} {record.message}{' + traceback' * bool(record.exc_info)}" == said


def test_an_error_of_a_batch_is_one_traceback_for_all_of_its_calls(caplog: pytest.LogCaptureFixture) -> None:
    error = ValueError("of the batch")
    for _ in range(3):
        log_failure(log, "work", "failed", error, "Model")
    assert [bool(record.exc_info) for record in caplog.records] == [True, False, False]
    assert caplog.messages[1] == "work failed, as other calls did of the same error: ValueError: of the batch"
