"""Requests that do not match an HTTP adapter: reading their bodies, and the response that says what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import Response

from qserve.base.context import get_request_context
from qserve.exceptions import QserveException
from qserve.http.message import BadRequest
from qserve.http.render import to_json
from qserve.http.strict_json import loads

MISSING: Any = object()


class RequestValidationError(QserveException):
    """Raised when a request does not match an adapter's parameters.

    Parameters:
      errors: What is wrong, in FastAPI's form: dicts with ``loc``, ``msg``, ``type`` and ``input``.
      status: 422, or another status when the body could not be read at all.
      code: Names the kind of error for programs.
      document: The JSON document that was sent, if there was one.
    """

    def __init__(
        self, errors: list[dict[str, Any]], status: int = 422, code: str = "invalid_request", document: Any = MISSING
    ) -> None:
        super().__init__("; ".join(str(error["msg"]) for error in errors))
        self.errors = errors
        self.document = document
        self.status = status
        self.code = code


def unreadable(message: str, code: str, status: int = 400) -> RequestValidationError:
    """Return the error for a body that cannot be read at all."""
    return RequestValidationError([{"type": code, "loc": ["body"], "msg": message, "input": None}], status, code)


def missing(*loc: str) -> dict[str, Any]:
    """Return FastAPI's description of a value that is required and was not sent."""
    return {"type": "missing", "loc": list(loc), "msg": "Field required", "input": None}


async def read_json(request: Request) -> Any:
    """Return the JSON document in a request's body; ``MISSING`` if the body is empty.

    Raises:
      RequestValidationError: It is not JSON that can be sent on, or is compressed.
    """
    body = await request.body()
    if not body:
        return MISSING
    if request.headers.get("content-encoding", "identity") != "identity":
        raise unreadable("a JSON body must not be compressed", "unsupported_encoding", 415)
    try:
        return loads(body)
    except BadRequest as error:
        raise unreadable(str(error), error.code, error.status) from error


async def read_form(request: Request) -> FormData:
    """Return the form in a request's body, which the caller has to close.

    Raises:
      RequestValidationError: It is broken.
    """
    try:
        return await request.form()
    except (HTTPException, MultiPartException, ValueError, KeyError) as error:
        raise unreadable(f"the form cannot be read: {error}", "invalid_form") from error


def validation_response(error: RequestValidationError) -> Response:
    """Return the HTTP response for a request that does not match its adapter."""
    described: dict[str, Any] = {
        "code": error.code,
        "message": str(error),
        "request_id": get_request_context().request_id,
        "retryable": False,
    }
    first = next((detail for detail in error.errors if detail["loc"][0] == "body"), None)
    if error.document is not MISSING and first is not None:
        described["pointer"] = _pointer_to(first["loc"][1:], first["type"] == "missing", error.document)
    return Response(
        to_json({"detail": error.errors, "error": described}), status_code=error.status, media_type="application/json"
    )


def _pointer_to(loc: Sequence[Any], is_missing: bool, document: Any) -> str:
    """Return the JSON pointer (RFC 6901) of an error in a document.

    Parameters:
      loc: pydantic's path to the error. It may contain words that are not part of the document, such as the member of
        a union that pydantic tried; these are left out.
      is_missing: Whether the last part of ``loc`` is missing in the document.
      document: The JSON document.
    """
    found = []
    for number, part in enumerate(loc, 1):
        if _has(document, part):
            document = document[part]
        elif number < len(loc) or not is_missing:
            continue
        found.append(str(part).replace("~", "~0").replace("/", "~1"))
    return "".join(f"/{part}" for part in found)


def _has(document: Any, part: Any) -> bool:
    if isinstance(document, dict):
        return part in document
    return isinstance(document, list) and isinstance(part, int) and 0 <= part < len(document)
