"""What an HTTP request says, read from its WSGI environment."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import quote

from qserve.http.bad_request import BadRequest
from qserve.http.message import HttpMessage

Environ = dict[str, Any]

TIMEOUT_LIMIT_S = 3600.0
WAIT_LIMIT_S = 30.0
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


def request_id_of(environ: Environ) -> str:
    """The client's ``X-Request-ID`` when it is a well-formed one, or a new id."""
    given = environ.get("HTTP_X_REQUEST_ID")
    if given is not None and _ID.fullmatch(given):
        return str(given)
    return os.urandom(16).hex()


def path_of(environ: Environ) -> str:
    """The decoded path; WSGI gives its UTF-8 bytes as if they were latin-1."""
    path: str = environ["PATH_INFO"]
    if not path.isascii():
        path = path.encode("latin-1").decode("utf-8", "replace")
    return path or "/"


def timeout_of(environ: Environ, default_s: float) -> float:
    """The request's deadline from now, in seconds.

    Raises:
      BadRequest: The header ``x-request-timeout-seconds`` is no number of seconds within the limits.
    """
    text = environ.get("HTTP_X_REQUEST_TIMEOUT_SECONDS")
    if text is None:
        return default_s
    try:
        timeout_s = float(text)
    except ValueError:
        timeout_s = 0.0
    if not 0 < timeout_s <= TIMEOUT_LIMIT_S:
        message = f"x-request-timeout-seconds must be above 0 and at most {TIMEOUT_LIMIT_S:g}"
        raise BadRequest(message, "invalid_deadline")
    return timeout_s


def model_id_of(environ: Environ) -> str:
    """The multiplexed model that the client asked for.

    Raises:
      BadRequest: The header ``serve-multiplexed-model-id`` is malformed.
    """
    model_id = environ.get("HTTP_SERVE_MULTIPLEXED_MODEL_ID")
    if model_id is None:
        return ""
    if not model_id.isprintable() or len(model_id) > 256:
        raise BadRequest("serve-multiplexed-model-id is malformed", "invalid_header")
    return str(model_id)


class Preference(NamedTuple):
    """What the header ``Prefer`` (RFC 7240) says, as far as it is understood.

    Parameters:
      respond_async: Answer 202 and let the client come back, instead of making it wait.
      wait_s: How long it would wait at first.
    """

    respond_async: bool = False
    wait_s: float = 0.0


def preference_of(environ: Environ) -> Preference:
    """The client's preferences; what makes no sense is ignored, as the RFC wants it."""
    text = environ.get("HTTP_PREFER")
    if text is None:
        return Preference()
    respond_async, wait_s = False, 0.0
    for part in text.split(","):
        name, _, value = part.partition(";")[0].partition("=")
        name, value = name.strip().lower(), value.strip().strip('"')
        if name == "respond-async":
            respond_async = True
        elif name == "wait" and value.isascii() and value.isdigit():
            wait_s = min(float(value[:9]), WAIT_LIMIT_S)
    return Preference(respond_async, wait_s)


def idempotency_key_of(environ: Environ) -> str | None:
    """The client's ``Idempotency-Key``, in quotation marks or without; None when it sends none.

    Raises:
      BadRequest: It is malformed.
    """
    text = environ.get("HTTP_IDEMPOTENCY_KEY")
    if text is None:
        return None
    key = text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text
    if not _ID.fullmatch(key):
        raise BadRequest("Idempotency-Key must be 1 to 128 of A-Z a-z 0-9 _ . : -", "invalid_idempotency_key")
    return str(key)


def base_url(environ: Environ) -> str:
    """Scheme and host as the client wrote them."""
    return f"{environ['wsgi.url_scheme']}://{environ.get('HTTP_HOST', '')}"


def url_of(environ: Environ, path: str) -> str:
    """The whole URL of another path, with the query of this request."""
    query = environ.get("QUERY_STRING")
    return base_url(environ) + quote(path, safe="/:@!$&'()*+,;=~") + (f"?{query}" if query else "")


def message_of(environ: Environ, path: str, root_path: str, body: bytes, path_params: dict[str, Any]) -> HttpMessage:
    """The request as data for a replica."""
    host = environ.get("REMOTE_ADDR")
    return HttpMessage(
        environ["REQUEST_METHOD"],
        environ["wsgi.url_scheme"],
        path,
        root_path,
        environ.get("QUERY_STRING", "").encode("latin-1"),
        tuple(
            (_header_name(key), value.encode("latin-1"))
            for key, value in environ.items()
            if key.startswith("HTTP_") or (key in _UNPREFIXED and value)
        ),
        (host, int(environ.get("REMOTE_PORT") or 0)) if host else None,
        (environ["SERVER_NAME"], int(environ.get("SERVER_PORT") or 0)),
        body,
        path_params,
    )


_UNPREFIXED = frozenset(("CONTENT_TYPE", "CONTENT_LENGTH"))


@lru_cache(maxsize=1024)
def _header_name(key: str) -> bytes:
    name = key if key in _UNPREFIXED else key[5:]
    return name.replace("_", "-").lower().encode("latin-1")
