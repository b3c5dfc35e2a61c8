"""The gateway under gunicorn, configured here and not by a file."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any

import gunicorn.workers.ggevent  # noqa: F401  before the fork, so that all workers share it
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger

from qserve.base.log import log_to_terminal
from qserve.base.process import die_with_parent_if_asked
from qserve.base.settings import Settings
from qserve.exceptions import QserveException
from qserve.machine.doctor import check_address
from qserve_gateway.app import Gateway, access_log, create_app
from qserve_gateway.request.guard import Guard

GRACE_S = 3
_BACKLOG = 2048
_SHARED_MEMORY = "/dev/shm"
_MODEL_HEADER = "SERVE_MULTIPLEXED_MODEL_ID"


def drop_ambiguous_headers(worker: Any, request: Any) -> None:
    """Called by gunicorn before a request's environment is made: drop names that would pass for others.

    WSGI spells ``X_User`` and ``X-User`` alike, and a proxy in front may have checked only one of them. Ray Serve's
    own header for the model is spelt with underscores, so that one stays.
    """
    request.headers = [header for header in request.headers if "_" not in header[0] or header[0] == _MODEL_HEADER]


class OneLog(Logger):  # type: ignore[misc]
    """gunicorn's log through ours: its own handlers would write what clients send in a form of their own."""

    def setup(self, cfg: Any) -> None:
        """Called by gunicorn with its settings."""
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True


class Server(BaseApplication):  # type: ignore[misc]
    """gunicorn with the gateway as its application.

    Parameters:
      settings: The gateway's settings.
      listener: The bound socket; gunicorn itself would try a taken port for five seconds.
      workers: How many processes serve.
      log_requests: Whether each request gets a line in the log.
    """

    def __init__(self, settings: Settings, listener: socket.socket, workers: int, log_requests: bool) -> None:
        self._settings = settings
        self._listener = listener
        self._workers = workers
        self._log_requests = log_requests
        super().__init__()

    def load_config(self) -> None:
        """Called by gunicorn: its settings."""
        chosen: dict[str, Any] = {
            "bind": [f"fd://{self._listener.detach()}"],
            "workers": self._workers,
            "worker_class": "gevent",
            "graceful_timeout": GRACE_S,
            "loglevel": "warning",
            "logger_class": OneLog,
            "control_socket_disable": True,
            "proc_name": "qserve-gateway",
            # "dangerous" only hands names with underscores on to the hook, which drops all but one
            "header_map": "dangerous",
            "pre_request": drop_ambiguous_headers,
        }
        if Path(_SHARED_MEMORY).is_dir():
            # a heartbeat file on a disk can stall a worker for as long as the disk does
            chosen["worker_tmp_dir"] = _SHARED_MEMORY
        known = self.cfg.settings
        for name, value in chosen.items():
            if name in known:  # older gunicorns have no control socket to disable
                self.cfg.set(name, value)

    def load(self) -> Gateway:
        """Called by gunicorn in each worker, after the fork: the application."""
        access_log.setLevel(logging.INFO if self._log_requests else logging.WARNING)
        return create_app(self._settings)


def serve(settings: Settings, host: str, port: int, workers: int = 1, log_requests: bool = False) -> None:
    """Serve until a signal ends it; exits with 1 when the address cannot be had, or the broker must not be used.

    Parameters:
      settings: The gateway's settings.
      host: The address to listen on.
      port: The port to listen on.
      workers: How many processes serve.
      log_requests: Whether each request gets a line in the log.
    """
    die_with_parent_if_asked()
    try:
        Guard.from_env(os.environ)  # a value that makes no sense is told now, and not by each worker
        check_address(settings)  # the rest of the checks waits until the broker answers
        listener = _bind(host, port)
    except QserveException as error:
        print(f"qserve gateway: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        reason = error.strerror or str(error)
        print(f"qserve gateway: cannot listen on {host}:{port}: {reason}", file=sys.stderr)
        sys.exit(1)
    log_to_terminal("gateway", settings)
    # collections in the workers would copy the pages that they share with this process
    gc.collect()
    gc.freeze()
    Server(settings, listener, workers, log_requests).run()


def _bind(host: str, port: int) -> socket.socket:
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(listener.close)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
        cleanup.pop_all()
    return listener
