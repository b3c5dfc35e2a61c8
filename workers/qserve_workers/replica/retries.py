"""Which failures are worth another try, and when."""

from __future__ import annotations

import random

from qserve.wire.application import DeploymentRecord

LONGEST_WAIT_S = 60.0


class RetryPolicy:
    """The retries of one deployment.

    Parameters:
      record: Holds ``max_retries``, ``retry_on`` and ``retry_backoff_s``.
    """

    def __init__(self, record: DeploymentRecord) -> None:
        self._record = record

    def wait_s(self, error: BaseException, tries: int) -> float | None:
        """Seconds until the next try; None when there is to be none.

        Parameters:
          error: What user code raised.
          tries: How often the call was tried again before.
        """
        record = self._record
        if tries >= record.max_retries or not isinstance(error, Exception) or not self._is_listed(error):
            return None
        # full waits would bring the calls that failed together back together
        wait_s = min(LONGEST_WAIT_S, record.retry_backoff_s * 2.0**tries)
        return wait_s * random.uniform(0.5, 1.5)

    def is_exhausted(self, error: BaseException, tries: int) -> bool:
        """Whether a call that is worth other tries has had all of them."""
        most = self._record.max_retries
        return 0 < most <= tries and isinstance(error, Exception) and self._is_listed(error)

    def _is_listed(self, error: Exception) -> bool:
        listed = self._record.retry_on
        return listed is None or any(kind.__qualname__ in listed for kind in type(error).__mro__)
