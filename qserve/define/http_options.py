"""``HTTPOptions``: where the gateway listens, and how long a request may take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, Field
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from qserve.base import unused
from qserve.base.settings import DEFAULT_HOST, DEFAULT_PORT
from qserve.define.options import check_key


class HTTPOptions(BaseModel, frozen=True, extra="allow"):
    """The keys of ``serve.start(http_options=...)``; Ray Serve's other keys are accepted, and a warning names them.

    Of ``middlewares`` (and of ``http_middlewares`` of ``start``), starlette's ``CORSMiddleware`` and
    ``TrustedHostMiddleware`` become the gateway's own ``QSERVE_CORS_...`` and ``QSERVE_ALLOWED_HOSTS``. Others are
    refused, since the gateway runs no user code.

    Parameters:
      host, port: The address of the gateway.
      request_timeout_s: The deadline, in seconds, of requests whose application sets none; None for
        ``QSERVE_REQUEST_TIMEOUT_S``.

    Raises:
      TypeError: There is no such key, or a middleware cannot be obeyed.
      ValueError: A value is out of range (``pydantic.ValidationError``).

    Example:
      from qserve.config import HTTPOptions

      options = HTTPOptions(host="0.0.0.0", port=8001, request_timeout_s=30)
      print(options.port)  # 8001
    """

    host: str = DEFAULT_HOST
    port: int = Field(default=DEFAULT_PORT, ge=0, le=65535)
    request_timeout_s: float | None = Field(default=None, gt=0)

    def __init__(self, **given: Any) -> None:
        known = {*type(self).model_fields, *unused.HTTP, "middlewares"}
        for name in given:
            check_key(name, known, "a key of http_options")
        super().__init__(**given)
        gateway_variables(given.pop("middlewares", None))
        unused.warn("http_options", [name for name, value in given.items() if value], unused.HTTP)

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables of the gateway that say the same."""
        return gateway_variables(getattr(self, "middlewares", None))

    @classmethod
    def of(cls, options: Any) -> HTTPOptions:
        """Return the same from a dict, from None, or from an object with these attributes, like Ray Serve's own."""
        if options is None or isinstance(options, cls):
            return options or cls()
        return cls(**(options if isinstance(options, dict) else vars(options)))


def gateway_variables(middlewares: Any) -> dict[str, str]:
    """Return the variables of the gateway that say what starlette's middlewares say.

    The first of a kind counts.

    Raises:
      TypeError: One of them cannot be obeyed by the gateway, which runs no user code; the message says what to write.
    """
    found: dict[str, str] = {}
    for given in reversed(middlewares or ()):
        kind: Any = getattr(given, "cls", None)
        made = _KINDS.get(kind) if isinstance(given, Middleware) and not given.args else None
        if made is None:
            name = getattr(kind, "__name__", None) or type(given).__name__
            raise TypeError(
                f"the gateway runs no user code, and so cannot run the middleware {name}: add it to the application of"
                f" a deployment instead, app.add_middleware({name}, ...) with @serve.ingress(app)"
            )
        found |= made(dict(given.kwargs))
    return found


def _of_cors(given: dict[str, Any]) -> dict[str, str]:
    values = {name: given.pop(argument, default) for name, (argument, default) in _CORS.items()}
    _refuse("CORSMiddleware", given)
    # what allows nothing there would be left out here, and would allow anything
    values["QSERVE_CORS_HEADERS"] = values["QSERVE_CORS_HEADERS"] or ("content-type",)
    return {name: text for name, value in values.items() if (text := _written(value))}


def _of_hosts(given: dict[str, Any]) -> dict[str, str]:
    hosts = list(given.pop("allowed_hosts", None) or ["*"])
    given.pop("www_redirect", None)
    _refuse("TrustedHostMiddleware", given)
    if "*" in hosts:
        return {}
    if any("*" in host for host in hosts):
        raise TypeError(f"TrustedHostMiddleware: the gateway compares whole names: write each of {hosts} without '*'")
    return {"QSERVE_ALLOWED_HOSTS": ",".join(hosts)}


def _refuse(kind: str, rest: dict[str, Any]) -> None:
    unknown = [name for name, value in rest.items() if value]
    if unknown:
        raise TypeError(f"{kind}: the gateway does not know {', '.join(unknown)}")


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "1" if value else ""
    return ",".join(value) if isinstance(value, list | tuple | set | frozenset) else "" if value is None else str(value)


_CORS: dict[str, tuple[str, Any]] = {
    "QSERVE_CORS_ORIGINS": ("allow_origins", ()),
    "QSERVE_CORS_ORIGIN_REGEX": ("allow_origin_regex", None),
    "QSERVE_CORS_METHODS": ("allow_methods", ("GET",)),
    "QSERVE_CORS_HEADERS": ("allow_headers", ()),
    "QSERVE_CORS_EXPOSE_HEADERS": ("expose_headers", ()),
    "QSERVE_CORS_CREDENTIALS": ("allow_credentials", False),
    "QSERVE_CORS_MAX_AGE_S": ("max_age", 600),
}
"""The arguments of ``CORSMiddleware`` and their defaults, by the variables of a gateway."""
_KINDS: dict[Any, Callable[[dict[str, Any]], dict[str, str]]] = {
    CORSMiddleware: _of_cors,
    TrustedHostMiddleware: _of_hosts,
}
"""What makes variables of the arguments of a middleware."""
