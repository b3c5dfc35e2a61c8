"""``HTTPOptions``: where the gateway listens, and how long a request may take."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from qserve.base import unused
from qserve.base.settings import DEFAULT_HOST, DEFAULT_PORT
from qserve.define.options import check_key


class HTTPOptions(BaseModel, frozen=True, extra="allow"):
    """The keys of ``serve.start(http_options=...)``; Ray Serve's other keys are accepted, and a warning names them.

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
        unused.warn("http_options", [name for name, value in given.items() if value], unused.HTTP)

    @classmethod
    def of(cls, options: Any) -> HTTPOptions:
        """Return the same from a dict, from None, or from an object with these attributes, like Ray Serve's own."""
        if options is None or isinstance(options, cls):
            return options or cls()
        return cls(**(options if isinstance(options, dict) else vars(options)))
