"""A receiver of webhooks: a server in this process, which verifies and keeps what it is sent."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from processes import free_port

ADDRESS = "127.0.0.2"
"""Of the receiver alone: other addresses of this host are private ones, as everywhere."""
KEY = b"the-secret-of-the-webhooks"
VARIABLES = {
    "QSERVE_WEBHOOK_SECRET": "whsec_" + base64.b64encode(KEY).decode(),
    "QSERVE_WEBHOOK_NETWORKS": f"{ADDRESS}/32",
}


class WebhookReceiver:
    """Listens from ``start`` on.

    Parameters:
      tls: Its certificate; None for a receiver without TLS.

    Attributes:
      received: The body of each webhook whose signature is right, with its ID.
      status: What it replies.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.port = free_port()
        self.url = f"{'http' if tls is None else 'https'}://{ADDRESS}:{self.port}/done?key=private"
        self._tls = tls
        self.received: list[tuple[str, Any]] = []
        self.forged: list[str] = []
        self.status = 200
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.take(self.path, dict(self.headers.items()), body)
                self.send_response(receiver.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *about: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((ADDRESS, self.port), Handler)
        self._server.handle_error = lambda *about: None  # type: ignore[method-assign]  # of a client that does not trust it
        if self._tls is not None:
            self._server.socket = self._tls.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, path: str, headers: dict[str, str], body: bytes) -> None:
        content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        expected = "v1," + base64.b64encode(hmac.digest(KEY, content, hashlib.sha256)).decode()
        if headers["webhook-signature"] != expected or path != "/done?key=private":
            self.forged.append(path)
        else:
            self.received.append((headers["webhook-id"], json.loads(body)))

    def of(self, request_id: str) -> list[Any]:
        """The bodies about a request."""
        return [body for of, body in list(self.received) if of == request_id]

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
