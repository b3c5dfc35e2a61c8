"""What an operator may set: command line over environment over default, read once."""

from __future__ import annotations

import os
from collections.abc import Mapping
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
    """The settings of one process; their ``repr`` shows neither the broker's password nor the key.

    Parameters:
      broker_url: ``redis://``, ``rediss://``, ``unix://`` or ``sentinel://``; None where an embedded broker is to
        be started.
      namespace: Keeps installations on one broker apart.
      secret_key: Signs all messages, and what is pickled; None means that only plain data may travel, unsigned.
      accepted_keys: Further keys whose signatures are taken, while the key is being changed.
      request_timeout_s: Deadline of a request for which the application names none.
      result_ttl_s: How long a result that can be asked for later is kept: of requests from Python, and over HTTP of
        those that prefer an answer later or have an idempotency key.
      durability: ``local``: a request is accepted when the primary has it; ``replica``: when a replica has it as well.
      show_errors: Whether HTTP error bodies hold the traceback of user code.
      log_level: The least that is logged: ``debug``, ``info``, ``warning`` or ``error``.
      log_format: ``text``, or ``json`` for one object a line.
      lease_s: How long a replica may be silent before its calls are handed to others.
      stall_limit_s: How long user code may hold a replica's loop, or run on after its caller's deadline,
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
        """Seconds from one heartbeat of a replica to the next."""
        return self.lease_s / 4

    @property
    def sweep_s(self) -> float:
        """Seconds from one look at all heartbeats to the next."""
        return self.lease_s / 8

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Read the ``QSERVE_*`` variables (and ``REDIS_URL``); ``overrides`` that are not None win.

        Raises:
          QserveException: A variable's value is not what it must be; the message names the variable.
        """
        env = os.environ if env is None else env
        secret, accepted = env.get("QSERVE_SECRET_KEY"), env.get("QSERVE_ACCEPTED_KEYS", "")
        settings = cls(
            broker_url=env.get("QSERVE_BROKER_URL") or env.get("REDIS_URL") or None,
            namespace=env.get("QSERVE_NAMESPACE") or "qserve",
            secret_key=secret.encode() if secret else None,
            accepted_keys=tuple(key.strip().encode() for key in accepted.split(",") if key.strip()),
            request_timeout_s=_seconds(env, "QSERVE_REQUEST_TIMEOUT_S", cls.request_timeout_s),
            result_ttl_s=_seconds(env, "QSERVE_RESULT_TTL_S", cls.result_ttl_s),
            durability=_choice(env, "QSERVE_DURABILITY", cls.durability, DURABILITIES),
            show_errors=env.get("QSERVE_SHOW_ERRORS", "") not in ("", "0", "false"),
            log_level=_choice(env, "QSERVE_LOG_LEVEL", cls.log_level, LOG_LEVELS),
            log_format=_choice(env, "QSERVE_LOG_FORMAT", cls.log_format, LOG_FORMATS),
            lease_s=_seconds(env, "QSERVE_LEASE_S", cls.lease_s),
            stall_limit_s=_seconds(env, "QSERVE_STALL_LIMIT_S", cls.stall_limit_s),
            start_timeout_s=_seconds(env, "QSERVE_START_TIMEOUT_S", cls.start_timeout_s),
        )
        given = {name: value for name, value in overrides.items() if value is not None}
        return replace(settings, **given)

    @property
    def keyring(self) -> Keyring:
        """The keys by which messages are signed and accepted."""
        return Keyring(self.secret_key, self.accepted_keys)

    def to_env(self) -> dict[str, str]:
        """The variables from which a child process reads these very settings."""
        env = {
            "QSERVE_NAMESPACE": self.namespace,
            "QSERVE_REQUEST_TIMEOUT_S": str(self.request_timeout_s),
            "QSERVE_RESULT_TTL_S": str(self.result_ttl_s),
            "QSERVE_DURABILITY": self.durability,
            "QSERVE_SHOW_ERRORS": "1" if self.show_errors else "0",
            "QSERVE_LOG_LEVEL": self.log_level,
            "QSERVE_LOG_FORMAT": self.log_format,
            "QSERVE_LEASE_S": str(self.lease_s),
            "QSERVE_STALL_LIMIT_S": str(self.stall_limit_s),
            "QSERVE_START_TIMEOUT_S": str(self.start_timeout_s),
        }
        if self.broker_url:
            env["QSERVE_BROKER_URL"] = self.broker_url
        if self.secret_key:
            env["QSERVE_SECRET_KEY"] = self.secret_key.decode()
        if self.accepted_keys:
            env["QSERVE_ACCEPTED_KEYS"] = b",".join(self.accepted_keys).decode()
        return env


def _seconds(env: Mapping[str, str], name: str, default: float) -> float:
    text = env.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise QserveException(f"{name}={text!r} must be a number of seconds above 0, such as {name}=60")
    return value


def _choice(env: Mapping[str, str], name: str, default: str, choices: tuple[str, ...]) -> str:
    value = env.get(name, "").lower() or default
    if value not in choices:
        raise QserveException(f"{name}={env[name]!r} must be one of {', '.join(choices)}")
    return value
