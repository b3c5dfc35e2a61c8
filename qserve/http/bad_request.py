"""``BadRequest``: the client sent what cannot be served, and is told why by status and code."""

from __future__ import annotations

from qserve.exceptions import QserveException


class BadRequest(QserveException):
    """Raised when an HTTP request itself is at fault.

    Parameters:
      message: What is wrong, for people.
      code: The word for programs, such as ``invalid_json``.
      status: The HTTP status.
      close: Whether the connection ends, because its body was not read to the end.
    """

    status = 400
    code = "bad_request"

    def __init__(self, message: str, code: str = "bad_request", status: int = 400, close: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.close = close
