"""Report how a call failed: one event in the log, and one traceback for each error of user code."""

from __future__ import annotations

import logging

from qserve.http.request import InvalidJSON
from qserve.wire.failure import Failure, is_passed_on


def log_failure(log: logging.Logger, name: str, what: str, error: BaseException, deployment: str) -> Failure:
    """Log an error that ended a call, and return it as the caller gets it.

    Its traceback is logged where it was raised, and not again by the deployments that it passes on its way to the
    client, nor for the other calls of a batch. A mistake of the client, such as a body that is not JSON, has none.

    Parameters:
      name: The method.
      what: What happened to the call: "failed".
      deployment: The one whose code ran.
    """
    failure = Failure.of(error, deployment)
    if _is_of_client(error, failure):
        log.info("%s %s, a mistake of the client: %s", name, what, failure.summary)
    elif is_passed_on(error):
        origin = getattr(error, "deployment", "") or "what it called"
        log.info("%s %s with the error of %s: %s", name, what, origin, failure.summary)
    else:
        is_first = _is_first(error)
        more = "" if is_first else ", as other calls did of the same error"
        log.error("%s %s%s: %s", name, what, more, failure.summary, exc_info=error if is_first else None)
    return failure


def _is_first(error: BaseException) -> bool:
    """Return whether an error ends the first call; that of a batch ends several."""
    try:
        own = vars(error)
        is_known = "__logged__" in own
        own["__logged__"] = True
    except Exception:  # code of its class
        return True
    return not is_known


def _is_of_client(error: BaseException, failure: Failure) -> bool:
    """Return whether the client of HTTP has made a mistake, and no code has failed."""
    status = failure.attributes.get("status_code")
    is_refused = failure.is_answer and isinstance(status, int) and status < 500
    return is_refused or isinstance(error, InvalidJSON)
