"""What an operator may set: the command line overrides the environment, which overrides the defaults."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qserve.base.keyring import Keyring
from qserve.exceptions import QserveException

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000
CHECKED = "QSERVE_BROKER_CHECKED"
"""Set in the environment of processes whose parent has checked the broker already."""
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")
LOCAL, REPLICA = DURABILITIES = ("local", "replica")


@dataclass(frozen=True)
class Settings:
    """The settings of one process. Their ``repr`` shows neither the broker's password nor the secret key.

    Parameters:
      broker_url: ``redis://``, ``rediss://``, ``unix://`` or ``sentinel://``; None to start an embedded broker.
      namespace: Keeps installations on one broker apart.
      secret_key: Signs all messages and everything that is pickled; without one, only plain data may travel, unsigned.
      accepted_keys: Further keys whose signatures are accepted while the key is being changed.
      request_timeout_s: Deadline of a request whose application sets none.
      result_ttl_s: How long a result that can be fetched later is kept: of requests from Python, and of HTTP requests
        that prefer to be answered later or have an idempotency key.
      durability: ``local``: a request is accepted once the primary has it; ``replica``: once a replica has it as well.
      show_errors: Whether the bodies of HTTP errors contain the traceback of user code.
      log_level: The lowest level that is logged: ``debug``, ``info``, ``warning`` or ``error``.
      log_format: ``text``, or ``json`` for one object a line.
      lease_s: How long a replica may be silent before its calls are handed to others.
      stall_limit_s: How long user code may hold a replica's event loop, or run on after its caller's deadline,
        before the replica is killed.
      start_timeout_s: How long a constructor may take before its replica is killed.
    """

    broker_url: str | None = field(default=None, repr=False)
    namespace: str = "qserve"
    secret_key: bytes | None = field(default=None, repr=False)
    accepted_keys: tuple[bytes, ...] = field(default=(), repr=False)
    request_timeout_s: float = 60.0
    result_ttl_s: float = 600.0
    durability: str = LOCAL
    show_errors: bool = False
    log_level: str = "info"
    log_format: str = "text"
    lease_s: float = 15.0
    stall_limit_s: float = 60.0
    start_timeout_s: float = 60.0

    @property
    def beat_s(self) -> float:
        """The seconds from one heartbeat of a replica to the next."""
        return self.lease_s / 4

    @property
    def sweep_s(self) -> float:
        """The seconds from one check of all heartbeats to the next."""
        return self.lease_s / 8

    @property
    def keyring(self) -> Keyring:
        """The keys with which messages are signed and accepted."""
        return Keyring(self.secret_key, self.accepted_keys)

    @property
    def named_broker(self) -> str:
        """The broker's address, for a command that does not start an embedded broker.

        Raises:
          QserveException: There is none.
        """
        if self.broker_url is None:
            raise QserveException("no broker is set: pass --broker URL or set QSERVE_BROKER_URL")
        return self.broker_url

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Read the ``QSERVE_*`` variables (and ``REDIS_URL``); ``overrides`` that are not None win.

        Raises:
          QserveException: The value of a variable is not valid; the message names the variable.
        """
        env = os.environ if env is None else env
        found = {name: one.read(one.name, env[one.name]) for name, one in _VARIABLES.items() if env.get(one.name)}
        if "broker_url" not in found and env.get("REDIS_URL"):
            found["broker_url"] = env["REDIS_URL"]
        found.update((name, value) for name, value in overrides.items() if value is not None)
        return replace(cls(), **found)

    def to_env(self) -> dict[str, str]:
        """Return the variables from which a child process reads the same settings."""
        values = {one.name: getattr(self, name) for name, one in _VARIABLES.items()}
        return {name: _text(value) for name, value in values.items() if value not in (None, ())}


def _as_text(name: str, text: str) -> str:
    return text


def _as_bytes(name: str, text: str) -> bytes:
    return text.encode()


def _as_keys(name: str, text: str) -> tuple[bytes, ...]:
    return tuple(key.strip().encode() for key in text.split(",") if key.strip())


def _as_flag(name: str, text: str) -> bool:
    return text not in ("0", "false")


def _as_seconds(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise QserveException(f"{name}={text!r} must be a number of seconds above 0, such as {name}=60")
    return value


def _as_one_of(*choices: str) -> Callable[[str, str], str]:
    def read(name: str, text: str) -> str:
        if text.lower() not in choices:
            raise QserveException(f"{name}={text!r} must be one of {', '.join(choices)}")
        return text.lower()

    return read


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, tuple):
        return b",".join(value).decode()
    return value.decode() if isinstance(value, bytes) else str(value)


@dataclass(frozen=True)
class _Variable:
    name: str
    read: Callable[[str, str], Any] = _as_text


_VARIABLES = {
    "broker_url": _Variable("QSERVE_BROKER_URL"),
    "namespace": _Variable("QSERVE_NAMESPACE"),
    "secret_key": _Variable("QSERVE_SECRET_KEY", _as_bytes),
    "accepted_keys": _Variable("QSERVE_ACCEPTED_KEYS", _as_keys),
    "request_timeout_s": _Variable("QSERVE_REQUEST_TIMEOUT_S", _as_seconds),
    "result_ttl_s": _Variable("QSERVE_RESULT_TTL_S", _as_seconds),
    "durability": _Variable("QSERVE_DURABILITY", _as_one_of(*DURABILITIES)),
    "show_errors": _Variable("QSERVE_SHOW_ERRORS", _as_flag),
    "log_level": _Variable("QSERVE_LOG_LEVEL", _as_one_of(*LOG_LEVELS)),
    "log_format": _Variable("QSERVE_LOG_FORMAT", _as_one_of(*LOG_FORMATS)),
    "lease_s": _Variable("QSERVE_LEASE_S", _as_seconds),
    "stall_limit_s": _Variable("QSERVE_STALL_LIMIT_S", _as_seconds),
    "start_timeout_s": _Variable("QSERVE_START_TIMEOUT_S", _as_seconds),
}
