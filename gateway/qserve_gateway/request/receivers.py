"""Who may receive webhooks, and how these are signed: by the rules of Standard Webhooks, at no private address."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import ipaddress
import socket
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import SplitResult

from qserve.base.receiver_url import parts_of
from qserve.exceptions import QserveException
from qserve.http.message import BadRequest

SECRET, NETWORKS = "QSERVE_WEBHOOK_SECRET", "QSERVE_WEBHOOK_NETWORKS"
HEADER = "X-Qserve-Webhook"
TIMEOUT_S = 15.0
"""How long a receiver may take, in all."""
_CONNECT_S, _ADDRESSES = 5.0, 4
"""How long an attempt to connect may take, and to how many addresses of a host there may be one."""
_SECRETS_LIMIT = 2
_LEAST_BYTES, _MOST_BYTES = 24, 64
_PREFIX = "whsec_"
_PROTOCOLS = ipaddress.ip_network("192.0.0.0/24")
"""Addresses for protocols, some of which older versions of Python take for public ones."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class ReceiverRefused(QserveException):
    """Raised when a webhook must not be sent to an address, now or later."""


@dataclass(frozen=True)
class Receivers:
    """The rules of a gateway for the webhooks that it sends.

    Parameters:
      secrets: The keys by which each is signed; while they are changed there are two.
      networks: Private networks whose addresses may receive them, and without TLS.
    """

    secrets: tuple[bytes, ...] = field(repr=False)
    networks: tuple[Network, ...] = ()

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Receivers | None:
        """Read the rules from environment variables; None if no webhook is to be sent.

        Raises:
          QserveException: A variable has an invalid value; the message names the variable.
        """
        secrets = tuple(_secret(part) for part in env.get(SECRET, "").replace(",", " ").split())
        networks = tuple(_network(part) for part in env.get(NETWORKS, "").replace(",", " ").split())
        if len(secrets) > _SECRETS_LIMIT:
            raise QserveException(f"{SECRET} has {len(secrets)} secrets: there may be two while they are changed")
        if networks and not secrets:
            raise QserveException(f"{NETWORKS} is set, and {SECRET} is not: without a secret no webhook is sent")
        return cls(secrets, networks) if secrets else None

    def signed(self, message_id: str, at: float, body: bytes) -> dict[str, str]:
        """Return the headers of a webhook as Standard Webhooks has them; ``at`` is the Unix time of this try."""
        timestamp = int(at)
        content = f"{message_id}.{timestamp}.".encode() + body
        digests = (hmac.digest(secret, content, hashlib.sha256) for secret in self.secrets)
        signatures = (f"v1,{base64.b64encode(digest).decode('ascii')}" for digest in digests)
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": " ".join(signatures),
        }

    def check(self, url: str) -> None:
        """Check what can be said of a URL without looking up its host.

        Raises:
          BadRequest: It is not one to which webhooks may be sent.
        """
        try:
            parts = _split(url)
            if parts.scheme == "http" and not self.networks:
                raise ReceiverRefused(f"it must begin with https:// (or be in a network of {NETWORKS})")
            literal = _literal(parts.hostname or "")
            if literal is not None:
                self._check_address(literal, parts.scheme)
        except ReceiverRefused as error:
            raise BadRequest(f"{HEADER}: {error}", "invalid_webhook") from error

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """Send a webhook, and return the status of the response; a redirect is not followed.

        Raises:
          ReceiverRefused: No address of the host may receive it.
          OSError: The host is not known or not reachable, or does not reply in time.
          HTTPException: What it replies is not HTTP.
        """
        parts = _split(url)
        connection = _Checked(self, parts)
        watch = threading.Timer(TIMEOUT_S, connection.abort)  # each single read has a limit, not all of them together
        watch.daemon = True
        watch.start()
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("POST", target, body, {**headers, "content-type": "application/json"})
            status = connection.getresponse().status
            connection.check_time()
            return status
        except ValueError as error:  # a header that is not one
            if isinstance(error, OSError):  # a certificate
                raise
            raise HTTPException(str(error)) from error
        finally:
            watch.cancel()
            connection.close()

    def open(self, host: str, port: int, scheme: str) -> socket.socket:
        """Return a connection to the first address of a host that may receive webhooks, and can be reached.

        It is connected to the address that was checked: a second look-up might give another one.
        """
        error: Exception = OSError(f"{host} has no address")
        refused: ReceiverRefused | None = None
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, where in found[:_ADDRESSES]:
            try:
                self._check_address(ipaddress.ip_address(str(where[0]).partition("%")[0]), scheme)
            except ReceiverRefused as reason:
                refused = reason
                continue
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(_CONNECT_S)
                sock.connect(where)
                sock.settimeout(TIMEOUT_S)
            except OSError as reason:
                sock.close()
                error, refused = reason, None
            else:
                return sock
        raise refused or error

    def _check_address(self, address: Address, scheme: str) -> None:
        for shown in _meant(address):
            if any(shown in network for network in self.networks if network.version == shown.version):
                continue
            if scheme != "https":
                raise ReceiverRefused(f"https:// is needed for {shown}, which is in no network of {NETWORKS}")
            is_public = shown.is_global and not shown.is_multicast and not shown.is_reserved and shown not in _PROTOCOLS
            if not is_public:
                raise ReceiverRefused(f"the address {shown} is private, and in no network of {NETWORKS}")


class _Checked(HTTPConnection):
    """A connection to an address that was checked; the name of the host is verified, not its address."""

    def __init__(self, receivers: Receivers, parts: SplitResult) -> None:
        self._receivers, self._scheme = receivers, parts.scheme
        self._is_over = False
        self.default_port = 443 if parts.scheme == "https" else 80
        super().__init__(parts.hostname or "", parts.port or self.default_port)

    def connect(self) -> None:
        self.sock = self._receivers.open(self.host, self.port, self._scheme)
        if self._scheme == "https":
            context = ssl.create_default_context()
            # first `abort` must know the socket: gevent limits each read of a handshake, and not the whole of it
            secure = self.sock = context.wrap_socket(
                self.sock, server_hostname=self.host, do_handshake_on_connect=False
            )
            self.check_time()
            secure.do_handshake()
        self.check_time()

    def check_time(self) -> None:
        """Raise TimeoutError if the receiver has taken too long: what was read since is not whole."""
        if self._is_over:
            raise TimeoutError(f"no whole response within {TIMEOUT_S:g} s")

    def abort(self) -> None:
        """Give those who wait for the receiver an error."""
        self._is_over = True
        sock: Any = self.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # that of TLS takes what a read needs from it


def _meant(address: Address) -> list[Address]:
    """Return an address, or those that it stands for: an IPv6 address may lead to one of IPv4."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address in _NAT64:
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    inner = [address.sixtofour, address.teredo and address.teredo[1]]
    return [address, *(one for one in inner if one is not None)]


def _literal(host: str) -> Address | None:
    """Return the address that a host's name is, in any of its spellings, such as 2130706433; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def _split(url: str) -> SplitResult:
    """Return the parts of a URL that can be sent to.

    Raises:
      ReceiverRefused: It is not one.
    """
    try:
        return parts_of(url)
    except ValueError as error:
        raise ReceiverRefused(str(error)) from error


def _secret(text: str) -> bytes:
    try:
        secret = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if not text.startswith(_PREFIX) or not _LEAST_BYTES <= len(secret) <= _MOST_BYTES:
        how = f'"{_PREFIX}$(openssl rand -base64 32)"'
        raise QserveException(
            f"{SECRET} must be {_PREFIX} and {_LEAST_BYTES} to {_MOST_BYTES} bytes in base64, as from {how}"
        )
    return secret


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise QserveException(f"{NETWORKS}: {error}; write it as 10.0.0.0/8") from error
