"""Run the gateway under gunicorn; its configuration is in this module, and gunicorn's own files are not read."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import socket
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import gevent
from gevent.server import StreamServer
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from gunicorn.http import wsgi
from gunicorn.http.parser import RequestParser
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.ggevent import GeventWorker

import qserve
from qserve.base import once
from qserve.base.environment import read_environment
from qserve.base.listening import listen
from qserve.base.log import get_logger, log_to_terminal
from qserve.base.process import HAS_SAID_WHY, die_with_parent_if_asked, set_title
from qserve.base.settings import CHECKED, Settings
from qserve.broker.address import Address
from qserve.broker.doctor import check_address
from qserve.exceptions import QserveException
from qserve.tracing.start import close as close_tracing
from qserve_gateway import metrics
from qserve_gateway.application import access_log, create_app
from qserve_gateway.cors import Cors
from qserve_gateway.request.access import AccessPolicy
from qserve_gateway.request.environ import SMALL, ConnectedRequest, keep_header_lines, request_id_of
from qserve_gateway.request.receivers import Receivers
from qserve_gateway.request.waiting import CONNECTION_LIMIT
from qserve_gateway.response.errors import error_reply, unreadable_reply
from qserve_gateway.response.reply import OneWrite
from qserve_gateway.response.session import close_sessions
from qserve_gateway.ui.ending import end_all
from qserve_gateway.ui.sessions import Sessions

log = get_logger(__name__)
Create = Callable[[Settings], Any]
GRACE_S = 3
_BACKLOG = 2048
_YOUNG_OBJECTS = 10_000
"""How many more objects there must be before the collector runs; 64 requests that come at once have fewer."""
_UNREAD_MS = 30_000
"""How long a client may leave all of an answer unread before the kernel ends its connection."""
_M_MMAP_THRESHOLD = -3
_SHARED_MEMORY = "/dev/shm"


class GatewayLogger(Logger):  # type: ignore[misc]
    """Sends gunicorn's log through ours; its own handlers would not escape what clients send."""

    def setup(self, cfg: Any) -> None:
        """Replace the handlers; gunicorn calls this with its settings."""
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True


class Worker(GeventWorker):  # type: ignore[misc]
    """gunicorn's worker, with error replies in our form, and which ends at once if it has no connection.

    gunicorn's replies are pages of HTML without an ID, and it checks for connections once a second.
    """

    def init_process(self) -> None:
        """Begin to serve; gunicorn calls this after the fork."""
        set_title("qserve gateway server")
        read_settings_once(self.cfg)
        super().init_process()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begin to end; this is the handler of SIGTERM."""
        super().handle_exit(sig, frame)
        end_all()
        gevent.spawn(_exit_if_idle)
        gevent.spawn(close_sessions)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Reply to what gunicorn cannot read as a request, or to a request (``req``) whose response it cannot send."""
        given = dict(() if req is None else req.headers).get("X-REQUEST-ID")
        request_id = request_id_of({} if given is None else {"HTTP_X_REQUEST_ID": given})
        reply = unreadable_reply(exc, request_id) if req is None else error_reply(exc, request_id)
        with contextlib.suppress(OSError):
            for piece in reply.as_whole(client):
                client.sendall(piece)


def _exit_if_idle() -> None:
    # gunicorn keeps its servers to itself, and a count of our own would be work for each connection
    servers = [found for found in gc.get_objects() if isinstance(found, StreamServer)]
    if servers and not any(len(server.pool) for server in servers):
        sys.exit(0)  # gevent raises it in the main greenlet


class Server(BaseApplication):  # type: ignore[misc]
    """gunicorn with the gateway as its application.

    It is given a bound socket, because gunicorn itself would retry a port that is in use for five seconds.
    """

    def __init__(
        self, settings: Settings, listener: socket.socket, workers: int, log_requests: bool, create: Create
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._workers = workers
        self._log_requests = log_requests
        self._create = create
        super().__init__()

    def load_config(self) -> None:
        """Set gunicorn's settings; gunicorn calls this."""
        hooks = metrics.hooks()
        chosen: dict[str, Any] = {
            "bind": [f"fd://{self._listener.detach()}"],
            "workers": self._workers,
            "worker_class": Worker,
            "worker_connections": CONNECTION_LIMIT,
            "graceful_timeout": GRACE_S,
            "loglevel": "warning",
            "logger_class": GatewayLogger,
            "control_socket_disable": True,
            "proc_name": "qserve-gateway",
            # "dangerous" passes names with underscores to the hook, which drops all but one
            "header_map": "dangerous",
            "pre_request": keep_header_lines,
            **hooks,
            "worker_exit": partial(_end_worker, hooks["worker_exit"]),
        }
        if Path(_SHARED_MEMORY).is_dir():
            # a heartbeat file on a disk can stall a worker for as long as the disk does
            chosen["worker_tmp_dir"] = _SHARED_MEMORY
        known = self.cfg.settings
        for name, value in chosen.items():
            if name in known:  # older versions of gunicorn have no control socket to disable
                self.cfg.set(name, value)

    def load(self) -> Any:
        """Create the application; gunicorn calls this in each worker, after the fork."""
        access_log.setLevel(logging.INFO if self._log_requests else logging.WARNING)
        return self._create(self._settings)


def _end_worker(tell_last: Callable[..., None], server: Any, worker: Any) -> None:
    close_tracing()
    tell_last(server, worker)


def serve(
    settings: Settings,
    host: str,
    port: int,
    workers: int = 1,
    log_requests: bool = False,
    name: str = "gateway",
    create: Create = create_app,
) -> None:
    """Serve until a signal ends the process.

    Parameters:
      name: The command, and the source of its lines in logs.
      create: Makes the WSGI application, in each worker.

    It exits with status 1 when the address cannot be used, or the broker must not be used.
    """
    die_with_parent_if_asked()
    try:
        # report an invalid variable here once, and not in each worker
        AccessPolicy.from_env(read_environment())
        Cors.from_env(read_environment())
        Receivers.from_env(read_environment())
        Sessions.from_env(read_environment())
        check_address(settings)  # the other checks wait until the broker answers
        listener = _bind(host, port)
    except QserveException as error:
        print(f"qserve {name}: {error}", file=sys.stderr)
        sys.exit(HAS_SAID_WHY if os.environ.get(CHECKED) else 1)  # its parent would say that it has ended
    set_title(f"qserve {name} {host}:{port}")
    once.share()
    log_to_terminal(name, settings, members={"component_name": "proxy", "component_id": socket.gethostname()})
    if settings.metrics and create is create_app:
        metrics.open_channel()
    _return_freed_memory()
    adapt_gunicorn()
    # collections in the workers would copy the memory pages that they share with this process
    gc.collect()
    gc.freeze()
    # requests die by reference count, so a collection finds nothing; it came every 25 requests, and took 4 us for each
    gc.set_threshold(_YOUNG_OBJECTS)
    at, where, own = listener.getsockname(), Address.of(settings.named_broker).where, os.getpid()
    text = "the %s listens on %s port %d (qserve %s, process %d, %d to serve), with the broker at %s"
    log.info(text, name, at[0], at[1], qserve.__version__, own, workers, where)
    try:
        Server(settings, listener, workers, log_requests, create).run()
    finally:
        if os.getpid() == own:  # its server processes come here as well
            log.info("the %s has ended", name)


def adapt_gunicorn() -> None:
    """Give gunicorn our requests and responses, and have it do once what it would do for each request."""
    SocketUnreader.max_body_chunk = SMALL  # what it reads ahead of us is not counted
    RequestParser.mesg_class = ConnectedRequest
    wsgi.Response = OneWrite
    wsgi.WSGIErrorsWrapper = cache(wsgi.WSGIErrorsWrapper)  # it looks up a logger: 3 us


def read_settings_once(cfg: Any) -> None:
    """Keep gunicorn's settings as plain attributes: it looks up a dozen for each request, in Python (5 us)."""
    vars(cfg).update({name: setting.get() for name, setting in cfg.settings.items()})


def _return_freed_memory() -> None:
    """Have every large block of memory returned to the system as soon as it is freed.

    glibc would raise the size from which it does so to the largest block that was freed, and later bodies would leave
    holes in its heap: 776 MB of 3,000 were still there a minute after the last of 250 bodies.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries do not have it, nor need it
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2 * SMALL)  # what is read from a socket at a time is a little more than ``SMALL``


def _bind(host: str, port: int) -> socket.socket:
    def bind(family: socket.AddressFamily, address: Any) -> socket.socket:
        dual = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG, dualstack_ipv6=dual)

    listener = listen(host, port, bind)
    with contextlib.suppress(AttributeError, OSError):  # Linux only; connections inherit it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MS)
    return listener
