"""Read an HTTP request from its WSGI environment, without its body unless that is there; ``Refused``: why not."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import Any, cast
from urllib.parse import quote, unquote

from gunicorn.http.message import Request

from qserve.base.numbers import number
from qserve.http.message import HOP_BY_HOP, BadRequest, HttpMessage
from qserve.wire.outside import Stored

Environ = dict[str, Any]

FOUND = "qserve.found"
"""Where the environment has the route of a request and its graph, once they are found."""
REQUEST_ID = "qserve.request_id"
"""Where it has the ID of the request."""
TRACEPARENT = "qserve.traceparent"
"""Where it has the trace that a request belongs to."""
BODY_READ = "qserve.body_read"
"""Where it says that the whole body was read."""
TIMEOUT_LIMIT_S = 3600.0
SMALL = 64 * 1024
"""Bodies and answers up to this length are not counted, because the number of places bounds them."""
CLIENT_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
"""The IDs that a client may choose: without spaces, and without characters that need quoting."""
_UNPREFIXED = frozenset(("CONTENT_TYPE", "CONTENT_LENGTH"))
_MODEL_HEADER = "SERVE_MULTIPLEXED_MODEL_ID"
_USUAL_CONNECTIONS = frozenset(("", "close", "keep-alive"))
_ABOUT_CLIENT = frozenset((b"authorization", b"cookie", b"forwarded", b"host", b"x-real-ip", b"x-request-id"))


class Refused(BadRequest):
    """Raised when a request is not served, and the response says more than what is wrong.

    Parameters:
      headers: Further headers of the response.
      detail: What FastAPI would say, for the clients of a DAGDriver.
      retry_after_s: After how many seconds the same request may succeed; None if it never will.
    """

    def __init__(
        self,
        message: str,
        code: str,
        status: int,
        close: bool = False,
        *,
        headers: tuple[tuple[str, str], ...] = (),
        detail: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message, code, status, close)
        self.headers = headers
        self.detail = detail
        self.retryable = retry_after_s is not None
        self.retry_after_s = retry_after_s


def wrong_method(method: str, allowed: tuple[str, ...], driver: bool = False) -> Refused:
    """Return the error for a method that is not served; ``driver`` for the path of a DAGDriver."""
    message, headers = f"method {method} is not allowed here", (("allow", ", ".join(allowed)),)
    detail = "Method Not Allowed" if driver else None
    return Refused(message, "method_not_allowed", 405, headers=headers, detail=detail)


class ConnectedRequest(Request):  # type: ignore[misc]
    """gunicorn's request, which decides once for each connection whether the client is a trusted proxy (5 us).

    Its body knows how many of its bytes have come together with the head.
    """

    def _peer_is_trusted_proxy(self) -> bool:  # versions before 27 have none, and ask a list
        connection = self.unreader
        if not hasattr(connection, "is_of_proxy"):
            connection.is_of_proxy = super()._peer_is_trusted_proxy()
        return bool(connection.is_of_proxy)

    def set_body_reader(self) -> None:
        """Create the body; gunicorn calls this when it has read the head."""
        super().set_body_reader()
        self.body.arrived = self.unreader.buf.tell()


# -- headers ---------------------------------------------------------------------------------------


def keep_header_lines(worker: Any, request: Any) -> None:
    """Drop header names with underscores, and keep the lines of the others; gunicorn calls this for each request.

    WSGI spells ``X_User`` and ``X-User`` alike, and a proxy in front may have checked only one of them. Ray Serve's
    own header for the model has underscores, so that one is kept. The environment, which is created next, has one
    value for each name; the lines reach ``message_of`` by way of the body, the only object that both of them see.
    """
    request.headers = [header for header in request.headers if "_" not in header[0] or header[0] == _MODEL_HEADER]
    request.body.header_lines = request.headers


def request_id_of(environ: Environ) -> str:
    """Return the client's ``X-Request-ID``, or a new ID when it sent none or a malformed one."""
    given = environ.get("HTTP_X_REQUEST_ID")
    if given is not None and CLIENT_ID.fullmatch(given):
        return str(given)
    return os.urandom(16).hex()


def line_of(environ: Environ) -> str:
    """Return method and path for a line of the log, where nothing that was decoded can reach a terminal."""
    path = environ.get("PATH_INFO", "")
    shown = path if path.isascii() and path.isprintable() else ascii(path)[1:-1]
    return f"{environ.get('REQUEST_METHOD', '')} {shown}"


def path_of(environ: Environ) -> str:
    """Return the decoded path; WSGI delivers its UTF-8 bytes as if they were latin-1."""
    path: str = environ["PATH_INFO"]
    if not path.isascii():
        path = path.encode("latin-1").decode("utf-8", "replace")
    return path or "/"


def timeout_of(environ: Environ, default_s: float) -> float:
    """Return the number of seconds until the request's deadline.

    Raises:
      BadRequest: The header ``x-request-timeout-seconds`` is not a number within the limits.
    """
    text = environ.get("HTTP_X_REQUEST_TIMEOUT_SECONDS")
    if text is None:
        return default_s
    try:
        timeout_s = number(text)
    except ValueError:
        timeout_s = 0.0
    if not 0 < timeout_s <= TIMEOUT_LIMIT_S:
        message = f"x-request-timeout-seconds must be a number above 0 and at most {TIMEOUT_LIMIT_S:g}"
        raise BadRequest(message, "invalid_deadline")
    return timeout_s


def may_ask_for_job(environ: Environ) -> bool:
    """Return whether a request has one of the headers that may ask for a job: see ``jobs``."""
    return "HTTP_PREFER" in environ or "HTTP_IDEMPOTENCY_KEY" in environ or "HTTP_X_QSERVE_WEBHOOK" in environ


def model_id_of(environ: Environ) -> str:
    """Return the multiplexed model that the client asked for; "" for none.

    Raises:
      BadRequest: The header ``serve-multiplexed-model-id`` is malformed.
    """
    model_id = environ.get("HTTP_SERVE_MULTIPLEXED_MODEL_ID")
    if model_id is None:
        return ""
    if not model_id.isprintable() or len(model_id) > 256:
        message = "serve-multiplexed-model-id must be printable text of at most 256 characters"
        raise BadRequest(message, "invalid_header")
    return str(model_id)


def base_url(environ: Environ) -> str:
    """Return scheme and host as the client wrote them."""
    return f"{environ['wsgi.url_scheme']}://{environ.get('HTTP_HOST', '')}"


def url_of(environ: Environ, path: str) -> str:
    """Return the URL of another path with this request's host and query."""
    query = environ.get("QUERY_STRING")
    return base_url(environ) + quote(path, safe="/:@!$&'()*+,;=~") + (f"?{query}" if query else "")


def message_of(
    environ: Environ, path: str, root_path: str, body: bytes | Stored, path_params: dict[str, Any], scheme: str = ""
) -> HttpMessage:
    """Return the request as the data that a replica receives; ``scheme`` where it is not HTTP's."""
    host = environ.get("REMOTE_ADDR")
    return HttpMessage(
        environ["REQUEST_METHOD"],
        scheme or environ["wsgi.url_scheme"],
        path,
        root_path,
        environ.get("QUERY_STRING", "").encode("latin-1"),
        tuple(_headers_of(environ, body.claim.size if isinstance(body, Stored) else len(body))),
        (host, int(environ.get("REMOTE_PORT") or 0)) if host else None,
        (environ["SERVER_NAME"], int(environ.get("SERVER_PORT") or 0)),
        cast(bytes, body),
        path_params,
        _raw_path(environ, path),
    )


def _raw_path(environ: Environ, path: str) -> bytes:
    raw = environ.get("RAW_URI", "").partition("?")[0]
    return raw.encode("latin-1") if "%" in raw and unquote(raw, errors="replace") == path else b""


def _headers_of(environ: Environ, length: int) -> list[tuple[bytes, bytes]]:
    """Return the header lines as they were sent, without those that are meant for this gateway."""
    lines = getattr(environ.get("wsgi.input"), "header_lines", None)
    if lines is None:  # another server
        names = (key for key in environ if key.startswith("HTTP_") or (key in _UNPREFIXED and environ[key]))
        lines = [(key.removeprefix("HTTP_"), environ[key]) for key in names]
    connection = environ.get("HTTP_CONNECTION", "").lower()
    dropped = _named_by(connection) if connection not in _USUAL_CONNECTIONS else ()
    headers: list[tuple[bytes, bytes]] = []
    cookie = -1
    for line, value in lines:
        key, name = _header_name(line)
        # the access policy has taken out of the environment what replicas must not see
        if not name or key not in environ or name in dropped:
            continue
        if name == b"cookie":
            if not value:
                continue
            if cookie >= 0:  # HTTP/2 has several lines, and frameworks read one
                headers[cookie] = (name, headers[cookie][1] + b"; " + value.encode("latin-1"))
                continue
            cookie = len(headers)
        headers.append((name, value.encode("latin-1")))
    if "HTTP_TRANSFER_ENCODING" in environ:
        headers.append((b"content-length", b"%d" % length))
    return headers


def key_of(name: str) -> str:
    """Return the key of a header in the environment."""
    return _header_name(name.upper())[0]


@lru_cache(maxsize=1024)
def _header_name(line: str) -> tuple[str, bytes]:
    """Return the key in the environment and the name of a header for replicas, which is empty if it ends here."""
    key, name = line.replace("-", "_"), line.replace("_", "-").lower().encode("latin-1")
    return key if key in _UNPREFIXED else f"HTTP_{key}", b"" if name in HOP_BY_HOP else name


def _named_by(connection: str) -> list[bytes]:
    """Return the headers that the sender's ``Connection`` declares to be meant for the next server only.

    A client must not take out what a proxy in front of this gateway has added about it.
    """
    names = [name.strip().encode("latin-1") for name in connection.split(",")]
    return [name for name in names if name not in _ABOUT_CLIENT and not name.startswith((b"x-forwarded-", b"content-"))]


# -- what the headers say of the body --------------------------------------------------------------


def has_body(environ: Environ) -> bool:
    """Return whether the headers announce a body."""
    return "HTTP_TRANSFER_ENCODING" in environ or environ.get("CONTENT_LENGTH") not in (None, "", "0")


def must_close(environ: Environ) -> bool:
    """Return whether the connection must end because a body that may be large was not read.

    The server would read it before the next request, in steps of 1 KiB, for each of which it copies up to 1 MiB.
    """
    length = environ.get("CONTENT_LENGTH") or "0"
    is_large = "HTTP_TRANSFER_ENCODING" in environ or not length.isdecimal() or int(length[:18]) > SMALL
    return is_large and BODY_READ not in environ


def arrived_body(environ: Environ, limit: int) -> bytes | None:
    """Return a body that has come together with the head; None for another one, which ``body`` reads and checks."""
    length = environ.get("CONTENT_LENGTH") or "0"
    if "HTTP_TRANSFER_ENCODING" in environ or not (length.isascii() and length.isdigit()):
        return None
    if length == "0":
        return b""
    stream = environ["wsgi.input"]
    if int(length[:18]) > min(getattr(stream, "arrived", 0), limit):
        return None
    environ[BODY_READ] = True
    return stream.read(int(length))  # type: ignore[no-any-return]  # without a timer, which takes 4 us
