"""``HTTPOptions``: where the gateway listens, and how long a request may take."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from qserve.base import unused
from qserve.base.settings import DEFAULT_HOST, DEFAULT_PORT
from qserve.define.options import check_key


class HTTPOptions(BaseModel, frozen=True, extra="allow"):
    """The keys of ``serve.start(http_options=...)``; Ray Serve's other keys are accepted, and a warning names them.

    Of ``middlewares`` (and of ``http_middlewares`` of ``start``), starlette's ``CORSMiddleware`` has an effect: the
    gateway, which runs no user code, gets its rules as its own ``QSERVE_CORS_...``.

    Parameters:
      host, port: The address of the gateway.
      request_timeout_s: The deadline, in seconds, of requests whose application sets none; None for
        ``QSERVE_REQUEST_TIMEOUT_S``.

    Raises:
      TypeError: There is no such key.
      ValueError: A value is out of range (``pydantic.ValidationError``).
    """

    host: str = DEFAULT_HOST
    port: int = Field(default=DEFAULT_PORT, ge=0, le=65535)
    request_timeout_s: float | None = Field(default=None, gt=0)

    def __init__(self, **given: Any) -> None:
        known = {*type(self).model_fields, *unused.HTTP}
        for name in given:
            check_key(name, known, "a key of http_options")
        super().__init__(**given)
        rest = given | {"middlewares": others_than_cors(given.get("middlewares"))}
        unused.warn("http_options", [name for name, value in rest.items() if value], unused.HTTP)

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables of the gateway that say the same."""
        return cors_variables(getattr(self, "middlewares", None))

    @classmethod
    def of(cls, options: Any) -> HTTPOptions:
        """Return the same from a dict, from None, or from an object with these attributes, like Ray Serve's own."""
        if options is None or isinstance(options, cls):
            return options or cls()
        return cls(**(options if isinstance(options, dict) else vars(options)))


def others_than_cors(middlewares: Any) -> Any:
    """Return what is not starlette's ``Middleware(CORSMiddleware, ...)`` among middlewares."""
    if not isinstance(middlewares, list | tuple):
        return middlewares
    return [one for one in middlewares if not _is_cors(one)]


def _is_cors(middleware: Any) -> bool:
    kind: Any = getattr(middleware, "cls", None)
    return isinstance(middleware, Middleware) and kind is CORSMiddleware and not middleware.args


def cors_variables(middlewares: Any) -> dict[str, str]:
    """Return the variables of the gateway that say what the first ``CORSMiddleware`` says; {} without one.

    Raises:
      TypeError: It has an argument that the gateway does not know.
    """
    found = middlewares if isinstance(middlewares, list | tuple) else ()
    given = next((dict(one.kwargs) for one in found if _is_cors(one)), None)
    if given is None:
        return {}
    values = {name: given.pop(argument, default) for name, (argument, default) in _CORS.items()}
    unknown = [name for name, value in given.items() if value]
    if unknown:
        raise TypeError(f"CORSMiddleware: the gateway does not know {', '.join(unknown)}")
    # what allows nothing there would be left out here, and would allow anything
    values["QSERVE_CORS_HEADERS"] = values["QSERVE_CORS_HEADERS"] or ("content-type",)
    return {name: text for name, value in values.items() if (text := _written(value))}


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
