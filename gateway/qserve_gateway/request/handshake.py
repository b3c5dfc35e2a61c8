"""The opening handshake of a WebSocket (RFC 6455), as far as the gateway decides on it."""

from __future__ import annotations

from h11 import ProtocolError
from wsproto import ConnectionType, WSConnection
from wsproto.utilities import RemoteProtocolError

from qserve.http.message import BadRequest
from qserve_gateway.request.environ import Environ, Refused, has_body

_HEADERS = ("connection", "upgrade", "sec-websocket-key", "sec-websocket-version", "sec-websocket-protocol")
NOT_SUPPORTED = "websocket_not_supported"


def opened(environ: Environ) -> WSConnection:
    """Return the protocol of the connection, which has not been accepted yet.

    No extension is offered: a message that is compressed has any length, and takes the time of all clients.

    Raises:
      BadRequest: The handshake is not valid (400, 426), or this server does not give its socket away (501).
    """
    if environ.get("gunicorn.socket") is None:
        raise BadRequest("WebSockets need the server of `qserve gateway`", NOT_SUPPORTED, 501)
    if environ.get("SERVER_PROTOCOL") == "HTTP/1.0":
        raise BadRequest("a WebSocket needs HTTP/1.1", "bad_handshake", close=True)
    if has_body(environ) or getattr(environ["wsgi.input"], "arrived", 0) > 0:
        raise BadRequest("a client must send nothing before its WebSocket is accepted", "bad_handshake", close=True)
    found = [(name, environ.get(f"HTTP_{name.upper().replace('-', '_')}")) for name in _HEADERS]
    given = [(name.encode(), value.encode("latin-1")) for name, value in found if value is not None]
    protocol = WSConnection(ConnectionType.SERVER)
    try:
        protocol.initiate_upgrade_connection([(b"host", b"checked"), *given], "/")
    except (RemoteProtocolError, ProtocolError, UnicodeError) as error:
        hint = getattr(error, "event_hint", None)
        more = tuple((name.decode(), value.decode()) for name, value in getattr(hint, "headers", ()))
        status = getattr(hint, "status_code", 400)
        text = f"the WebSocket's handshake is not valid: {error}"
        raise Refused(text, "bad_handshake", status, close=True, headers=more) from error
    return protocol
