"""The settings of an operator: the command line overrides the environment, which overrides the defaults."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from qserve.base.carried import HEADERS_LIMIT, is_header_name
from qserve.base.environment import BROKER_PASSWORD, read_environment, with_password
from qserve.base.keyring import Keyring, check_key
from qserve.base.numbers import number, size
from qserve.exceptions import QserveException

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000
NO_BROKER = "no broker is set. Pass --broker URL or set QSERVE_BROKER_URL"
CHECKED = "QSERVE_BROKER_CHECKED"
"""Set in the environment of processes whose parent has checked the broker already."""
MAXMEMORY_LEAST = 16 << 20
"""A broker that may store less would be full of its own bookkeeping and of a few requests."""
_PETABYTE = 10**15
LEAST_S, MOST_S = 0.001, 31_536_000.0
"""The limits of a duration: the broker counts milliseconds, and the system's own waits overflow with more."""
MOST_TRACES = 100
LOCAL, REPLICA = "local", "replica"
_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_FORMS = {
    "namespace": (re.compile(r"[\w.:/-]+"), "letters, digits and the characters . _ - : /"),
    "metrics_prefix": (re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*"), "letters, digits and _, with no digit first"),
}
_FOLDER = re.compile(r"[a-z][a-z0-9+.-]*://\S+")
_CHOICES = {
    "durability": (LOCAL, REPLICA),
    "log_level": ("debug", "info", "warning", "error"),
    "log_format": ("text", "json"),
    "server_timing": ("off", "asked", "on"),
    "tracing": ("auto", "on", "off"),
}


@dataclass(frozen=True)
class Settings:
    """The settings of one process. Their ``repr`` shows neither the broker's password nor the secret key.

    The environment variable of a setting is its name in capitals, after ``QSERVE_``.

    Parameters:
      broker_url: ``redis://``, ``rediss://``, ``unix://`` or ``sentinel://``; None to start an embedded broker.
      broker_embedded: Whether the broker is an embedded one, whose data end with it; set by what has started it.
      broker_maxmemory: The most bytes that the embedded broker stores; None for a quarter of the memory.
      namespace: Keeps installations on one broker apart.
      secret_key: Signs all messages and everything that is pickled; without one, only plain data may travel, unsigned.
      accepted_keys: Further keys whose signatures are accepted while the key is being changed.
      request_timeout_s: Deadline of a request whose application sets none.
      result_ttl_s: How long a result that can be fetched later is kept: of requests from Python, and of HTTP requests
        that prefer to be answered later or have an idempotency key.
      durability: ``local``: a request is accepted once the primary has it; ``replica``: once a replica has it as well.
      show_errors: Whether the bodies of HTTP errors contain the traceback of user code.
      api_page: Whether gateways describe the applications, at ``/-/openapi.json`` and ``/-/docs``.
      log_level: The lowest level that is logged: ``debug``, ``info``, ``warning`` or ``error``.
      log_format: ``text``, or ``json`` for one object a line.
      log_tail: Whether workers also keep their last lines in the broker, for `qserve logs`.
      code_version: The name of the application's code on this host, such as the tag of its image; "" to compare the
        code itself.
      lease_s: How long a replica may be silent before its calls are handed to others.
      stall_limit_s: How long user code may hold a replica's event loop, or run on after its caller's deadline,
        before the replica is killed.
      start_timeout_s: How long a constructor may take before its replica is killed.
      forward_headers: The names of the HTTP headers that user code may read in each step, in lower case.
      tenant_header: The name of the HTTP header that says on whose behalf a request is made; "" for none.
      server_timing: ``on`` if responses say in ``Server-Timing`` how long each step has waited and run; ``asked`` if
        those do whose request has ``X-Server-Timing: 1``.
      trace_sample: How many requests a second each process that submits them has traced, for `qserve requests trace`;
        0 for none, not even those that ask for it.
      tracing: ``on`` or ``off``: whether spans are made; ``auto``: if the standard ``OTEL_*`` variables ask for it.
      tracing_exporter: ``module:function``, which returns where spans go; "" for what ``OTEL_TRACES_EXPORTER`` says.
      tracing_sampling_ratio: The share of the traces begun here that is recorded; None for what ``OTEL_*`` says.
      payloads: The stores for large values, of which the first with room takes one: ``memory`` of the host, the
        ``broker``, and folders by their URLs; () for the broker, and for memory before it if it is an embedded one.
      payload_threshold: From how many bytes on a part of a value is large.
      max_value_bytes: The most bytes of one value that is passed between steps.
      shm_limit: The most bytes of values in the memory of this host; None for half of what is free in ``/dev/shm``.
      body_memory: The most bytes of large request bodies and answers that one gateway process holds at a time.
      max_body_bytes: The most bytes of a request's body.
      max_json_bytes: The most bytes of a JSON body that a gateway parses for a DAGDriver.
      websocket_s: How long a WebSocket may be open.
      websocket_idle_s: How long a WebSocket may be open without a message in either direction.
      websocket_ping_s: After how long a silent client of a WebSocket is pinged, and after how long again it is lost.
      websocket_message_bytes: The most bytes of a message that the client of a WebSocket sends.
      metrics: Whether requests and calls are counted, for ``/-/metrics``.
      metrics_prefix: Begins the name of each metric; ``ray_`` for the dashboards of Ray Serve.
    """

    broker_url: str | None = field(default=None, repr=False)
    broker_embedded: bool = False
    broker_maxmemory: int | None = None
    namespace: str = "qserve"
    secret_key: bytes | None = field(default=None, repr=False)
    accepted_keys: tuple[bytes, ...] = field(default=(), repr=False)
    request_timeout_s: float = 60.0
    result_ttl_s: float = 600.0
    durability: str = LOCAL
    show_errors: bool = False
    api_page: bool = True
    log_level: str = "info"
    log_format: str = "text"
    log_tail: bool = True
    code_version: str = ""
    lease_s: float = 15.0
    stall_limit_s: float = 60.0
    start_timeout_s: float = 60.0
    forward_headers: tuple[str, ...] = ()
    tenant_header: str = ""
    server_timing: str = "off"
    trace_sample: float = 1.0
    tracing: str = "auto"
    tracing_exporter: str = ""
    tracing_sampling_ratio: float | None = None
    payloads: tuple[str, ...] = ()
    payload_threshold: int = 64 * 1024
    max_value_bytes: int = 2 << 30
    shm_limit: int | None = None
    body_memory: int = 256 * 1024 * 1024
    max_body_bytes: int = 100 * 1024 * 1024
    max_json_bytes: int = 10 * 1024 * 1024
    websocket_s: float = 86_400.0
    websocket_idle_s: float = 3600.0
    websocket_ping_s: float = 20.0
    websocket_message_bytes: int = 16 * 1024 * 1024
    metrics: bool = True
    metrics_prefix: str = "qserve_"

    def __post_init__(self) -> None:
        for name in ("secret_key", "accepted_keys"):
            given = getattr(self, name)
            for key in given if isinstance(given, tuple) else (given,):
                if key is not None:
                    check_key(key, _VARIABLES[name])

    @property
    def beat_s(self) -> float:
        """The seconds from one heartbeat of a replica to the next."""
        return self.lease_s / 4

    @property
    def sweep_s(self) -> float:
        """The seconds from one check of all heartbeats to the next."""
        return min(self.lease_s / 8, 2.0)

    @property
    def keyring(self) -> Keyring:
        return Keyring(self.secret_key, self.accepted_keys)

    @property
    def named_broker(self) -> str:
        """The broker's address, for a command that does not start an embedded broker.

        Raises:
          QserveException: There is none.
        """
        if self.broker_url is None:
            raise QserveException(NO_BROKER)
        return self.broker_url

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Read the ``QSERVE_*`` variables (and ``REDIS_URL``); ``overrides`` that are not None win.

        ``NAME_FILE`` names a file that has the value of ``NAME``. ``QSERVE_BROKER_PASSWORD`` is added to an address
        without a password.

        Raises:
          QserveException: The value of a variable is not valid; the message names the variable.
        """
        env = read_environment(env)
        found = {name: _read(name, env[variable]) for name, variable in _VARIABLES.items() if env.get(variable)}
        if "broker_url" not in found and env.get("REDIS_URL"):
            found["broker_url"] = env["REDIS_URL"]
        found.update((name, value) for name, value in overrides.items() if value is not None)
        if env.get(BROKER_PASSWORD) and "broker_url" in found:
            found["broker_url"] = with_password(found["broker_url"], env[BROKER_PASSWORD])
        for name, value in found.items():
            if isinstance(value, str) and not _is_utf8(value):
                raise QserveException(f"{_VARIABLES[name]} is not UTF-8 text")
        return replace(cls(), **found)

    def to_env(self) -> dict[str, str]:
        """Return the variables from which a child process reads the same settings."""
        values = {variable: getattr(self, name) for name, variable in _VARIABLES.items()}
        return {variable: _written(value) for variable, value in values.items() if value not in (None, (), "")}


_VARIABLES = {setting.name: f"QSERVE_{setting.name.upper()}" for setting in fields(Settings)}


def listening(env: Mapping[str, str]) -> dict[str, str]:
    """Return variables with the address apart that ``QSERVE_PORT`` has in docker compose's form, ``127.0.0.1:8000``."""
    address, colon, port = env.get("QSERVE_PORT", "").rpartition(":")
    given = {name: value for name, value in env.items() if value}
    return {"QSERVE_HOST": address.strip("[]")} | given | {"QSERVE_PORT": port} if colon else given


def _read(name: str, text: str) -> Any:
    variable, choices = _VARIABLES[name], _CHOICES.get(name)
    if choices is not None:
        if text.lower() not in choices:
            raise QserveException(f"{variable}={text!r} must be one of {', '.join(choices)}")
        return text.lower()
    if name.endswith("_s"):  # all of these are durations
        return _seconds(variable, text)
    if name == "accepted_keys":
        return tuple(os.fsencode(key.strip()) for key in text.split(",") if key.strip())
    if name in _READERS:
        return _READERS[name](variable, text)
    pattern, words = _FORMS.get(name, (None, ""))
    if pattern is not None and _is_utf8(text) and not pattern.fullmatch(text):
        raise QserveException(f"{variable}={text!r} must consist of {words}")
    return os.fsencode(text) if name == "secret_key" else text


def _boolean(variable: str, text: str) -> bool:
    if text.lower() not in _BOOLEANS:
        raise QserveException(f"{variable}={text!r} must be 1 or 0")
    return _BOOLEANS[text.lower()]


def _seconds(variable: str, text: str) -> float:
    try:
        value = number(text)
    except ValueError:
        value = 0.0
    if not LEAST_S <= value <= MOST_S:
        what = f"a number of seconds from {LEAST_S:g} to {MOST_S:.0f} (a year)"
        raise QserveException(f"{variable}={text!r} must be {what}, such as {variable}=60")
    return value


def _share(variable: str, text: str) -> float:
    try:
        value = number(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise QserveException(f"{variable}={text!r} must be a number from 0 to 1, such as {variable}=0.1")
    return value


def _rate(variable: str, text: str) -> float:
    try:
        value = number(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= MOST_TRACES:
        what = f"a number of requests a second from 0 to {MOST_TRACES}"
        raise QserveException(f"{variable}={text!r} must be {what}, such as {variable}=0.1")
    return value


def _header_names(variable: str, text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name for part in text.split(",") if (name := part.strip().lower())))
    for name in names:
        if not is_header_name(name):
            raise QserveException(f"{variable}={text!r}: {name!r} is not a header's name, such as {variable}=x-tenant")
    if len(names) > HEADERS_LIMIT:
        raise QserveException(f"{variable} names {len(names)} headers; the limit is {HEADERS_LIMIT}")
    return names


def _header_name(variable: str, text: str) -> str:
    names = _header_names(variable, text)
    if len(names) > 1:
        raise QserveException(f"{variable} must name one header, not {len(names)}")
    return names[0] if names else ""


def _memory(variable: str, text: str) -> int:
    try:
        value = size(text)
    except ValueError:
        value = 0
    if not MAXMEMORY_LEAST <= value < _PETABYTE:
        limits = "of 16mb or more, and less than a petabyte"
        raise QserveException(f"{variable}={text!r} must be a size {limits}, such as {variable}=512mb")
    return value


def _stores(variable: str, text: str) -> tuple[str, ...]:
    stores = tuple(dict.fromkeys(part for given in text.split(",") if (part := given.strip())))
    for store in stores:
        if store not in ("memory", "broker") and not _FOLDER.fullmatch(store):
            what = f"{store!r} is neither memory, nor broker, nor the URL of a folder, such as s3://bucket/prefix"
            raise QserveException(f"{variable}={text!r}: {what}")
    return stores


def _message_bytes(variable: str, text: str) -> int:
    try:
        value = size(text)
    except ValueError:
        value = 0
    if not 0 < value < _PETABYTE:
        raise QserveException(f"{variable}={text!r} must be a size, such as {variable}=16mb")
    return value


_READERS: Mapping[str, Callable[[str, str], Any]] = {
    "api_page": _boolean,
    "body_memory": _memory,
    "broker_embedded": _boolean,
    "broker_maxmemory": _memory,
    "forward_headers": _header_names,
    "log_tail": _boolean,
    "max_body_bytes": _message_bytes,
    "max_json_bytes": _message_bytes,
    "max_value_bytes": _message_bytes,
    "metrics": _boolean,
    "payload_threshold": _message_bytes,
    "payloads": _stores,
    "shm_limit": _message_bytes,
    "show_errors": _boolean,
    "tenant_header": _header_name,
    "trace_sample": _rate,
    "tracing_sampling_ratio": _share,
    "websocket_message_bytes": _message_bytes,
}


def _is_utf8(text: str) -> bool:
    """Return whether the bytes that the system gave for a text were UTF-8; Python keeps others as half characters."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, tuple):
        return ",".join(part.decode() if isinstance(part, bytes) else part for part in value)
    return value.decode() if isinstance(value, bytes) else str(value)
