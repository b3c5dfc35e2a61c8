"""Who may receive webhooks: no private address in any spelling, no redirect, and nobody who takes for ever."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPException

import pytest
from certificates import HOST, Authority
from processes import PATIENCE_S
from qserve_gateway.request import receivers as module
from qserve_gateway.request.receivers import NETWORKS, SECRET, ReceiverRefused, Receivers

from qserve.exceptions import QserveException
from qserve.http.message import BadRequest

KEY, OTHER = b"k" * 32, b"o" * 24
LOCAL = "127.0.0.0/8"


def secret(key: bytes) -> str:
    return "whsec_" + base64.b64encode(key).decode()


def receivers(networks: str = "", *keys: bytes) -> Receivers:
    found = Receivers.from_env({SECRET: " ".join(map(secret, keys or (KEY,))), NETWORKS: networks})
    assert found is not None
    return found


# -- addresses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        *(
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "192.0.0.8",
        ),
        *("2130706433", "0x7f000001", "127.1", "017700000001", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
        *("[::1]", "[::]", "[fe80::1]", "[fd00::1]", "[ff02::1]", "[2001:db8::1]"),
        *("[::ffff:127.0.0.1]", "[::ffff:a00:1]", "[::7f00:1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]"),
    ],
)
def test_a_private_address_is_refused_however_it_is_written(host: str) -> None:
    with pytest.raises(BadRequest, match=f"(?s)private.*{NETWORKS}"):
        receivers().check(f"https://{host}/done")
    with pytest.raises((ReceiverRefused, socket.gaierror)):
        receivers().post(f"https://{host}/done", {}, b"")


@pytest.mark.parametrize(
    "url",
    [
        *("https://8.8.8.8/", "https://[2001:4860:4860::8888]/a?b=c", "https://example.com:8443/done"),
        *("https://[::ffff:8.8.8.8]/", "https://[64:ff9b::808:808]/"),
    ],
)
def test_a_public_address_or_a_name_is_accepted(url: str) -> None:
    receivers().check(url)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://example.com/", "https://"),
        ("ftp://example.com/", "such as https://example.com/done"),
        ("https:///done", "such as https://example.com/done"),
        ("example.com", "such as https://example.com/done"),
        ("", "ASCII"),
        ("https://example.com/a b", "ASCII"),
        ("https://example.com/é", "ASCII"),
        ("https://example.com/" + "a" * 2048, "2048"),
        ("https://user:pass@example.com/", "user"),
        ("https://example.com/#there", "fragment"),
        ("https://example.com:99999/", "not a URL"),
        ("https://[::1/", "not a URL"),
    ],
)
def test_what_is_not_a_url_to_send_to_is_refused_with_the_reason(url: str, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        receivers().check(url)


def test_a_network_that_is_named_may_receive_webhooks_and_without_tls() -> None:
    allowed = receivers(f"{LOCAL}, fd00::/8")
    allowed.check("http://127.0.0.1:8000/done")
    allowed.check("http://[fd00::1]/done")
    allowed.check("http://inside.example/done")  # where it is shows when it is looked up
    with pytest.raises(BadRequest, match="https:// is needed for 8.8.8.8"):
        allowed.check("http://8.8.8.8/")
    with pytest.raises(BadRequest, match="private"):
        allowed.check("https://10.0.0.1/")


def test_a_name_that_leads_to_a_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    look_up(monkeypatch, ["127.0.0.1"])
    receivers().check("https://inside.example/")
    with pytest.raises(ReceiverRefused, match="127.0.0.1 is private"):
        receivers().post("https://inside.example/", {}, b"")


def test_the_address_that_was_checked_is_the_one_that_gets_the_webhook(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    # a server that rebinds its name gives another address to whoever asks again
    answers = ["127.0.0.1", "10.0.0.1", "10.0.0.1"]
    look_up(monkeypatch, answers)
    assert receivers(LOCAL).post(f"http://inside.example:{receiver.port}/", {}, b"x") == 200
    assert len(answers) == 2
    assert f"Host: inside.example:{receiver.port}" in receiver.heads[0]


def look_up(monkeypatch: pytest.MonkeyPatch, answers: list[str]) -> None:
    """Have each look-up of a name give the next of these addresses."""
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, port, **more: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(0), port))],
    )


def test_of_several_addresses_the_first_that_may_be_used_and_can_be_reached_is(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        closed = other.getsockname()[1]
    found = [("10.0.0.1", receiver.port), ("127.0.0.1", closed), ("127.0.0.1", receiver.port)]
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **more: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", at) for at in found]
    )
    assert receivers(LOCAL).post(f"http://several.example:{receiver.port}/", {}, b"x") == 200


# -- sending ----------------------------------------------------------------------------------------


class Receiver:
    """A server that notes what it is sent, and replies with ``reply``; over TLS if there is a context for it."""

    tls: ssl.SSLContext | None = None

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.reply = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
        self.heads: list[str] = []
        self.over = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self.server.accept()
            except OSError:
                return
            with contextlib.suppress(ssl.SSLError), self._greeted(sock) as sock:
                request = sock.recv(1 << 16)
                self.heads.append(request.decode(errors="replace"))
                if request.startswith(b"POST") and request.endswith(b"\r\n\r\n"):
                    sock.recv(1 << 16)  # or the end of the connection takes the reply along
                sock.sendall(self.reply)
                if not self.reply.endswith(b"\r\n\r\n"):  # it goes on for as long as it is let
                    while not self.over.wait(0.05):
                        try:
                            sock.sendall(b"x: y\r\n")
                        except OSError:
                            break

    def _greeted(self, sock: socket.socket) -> socket.socket:
        return sock if self.tls is None else self.tls.wrap_socket(sock, server_side=True)

    def close(self) -> None:
        self.over.set()
        self.server.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with closing(Receiver()) as made:
        yield made


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def secure(receiver: Receiver, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Receiver:
    """A receiver with a certificate, for whichever name."""
    receiver.tls = authority.server
    look_up(monkeypatch, ["127.0.0.1"])
    return receiver


def test_a_receiver_with_a_certificate_of_an_authority_that_the_environment_names_gets_it_over_tls(
    secure: Receiver, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))

    assert receivers(LOCAL).post(f"https://{HOST}:{secure.port}/done", {"webhook-id": "1"}, b"{}") == 200

    (head,) = secure.heads
    assert head.startswith("POST /done HTTP/1.1\r\n") and f"Host: {HOST}:{secure.port}" in head


def test_a_receiver_whose_certificate_nobody_trusts_gets_nothing(secure: Receiver) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
        receivers(LOCAL).post(f"https://{HOST}:{secure.port}/done", {}, b"{}")
    assert secure.heads == []


def test_a_receiver_whose_certificate_is_for_another_name_gets_nothing(
    secure: Receiver, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for 'other.example'"):
        receivers(LOCAL).post(f"https://other.example:{secure.port}/done", {}, b"{}")
    assert secure.heads == []


@pytest.mark.slow
def test_a_receiver_that_never_ends_its_handshake_is_left(receiver: Receiver) -> None:
    """In a process as the gateway's, where the standard library's limit is one of each read."""
    receiver.reply = b"\x16\x03\x03\x40\x00"  # a long record, of which more and more comes
    program = f"""
from gevent import monkey
monkey.patch_all()
from qserve_gateway.request import receivers as module
module.TIMEOUT_S = 0.5
rules = module.Receivers((b"",), (module.ipaddress.ip_network("{LOCAL}"),))
try:
    rules.post("https://127.0.0.1:{receiver.port}/", {{}}, b"x")
except (OSError, module.HTTPException) as error:
    print("left")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S)
    assert (ended.stdout, ended.stderr) == ("left\n", "")


def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    receiver.reply = f"HTTP/1.1 307 Away\r\nlocation: http://127.0.0.1:{receiver.port}/other\r\n\r\n".encode()
    assert receivers(LOCAL).post(f"http://127.0.0.1:{receiver.port}/done", {}, b"x") == 307
    assert [head.partition(" HTTP")[0] for head in receiver.heads] == ["POST /done"]


def test_a_receiver_that_never_comes_to_the_end_of_its_reply_is_left(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.5)
    receiver.reply = b"HTTP/1.1 200 OK\r\n"
    with pytest.raises((OSError, HTTPException)):
        receivers(LOCAL).post(f"http://127.0.0.1:{receiver.port}/", {}, b"x")


def test_what_does_not_reply_in_http_is_an_error_of_the_receiver(receiver: Receiver) -> None:
    receiver.reply = b"what do you want\r\n\r\n"
    with pytest.raises(HTTPException):
        receivers(LOCAL).post(f"http://127.0.0.1:{receiver.port}/", {}, b"x")


# -- signatures -------------------------------------------------------------------------------------


def test_a_webhook_is_signed_as_standard_webhooks_says_by_each_secret() -> None:
    now = int(time.time())
    headers = receivers("", KEY, OTHER).signed("msg", now, b'{"a": 1}')

    content = f"msg.{now}.".encode() + b'{"a": 1}'
    expected = [base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode() for key in (KEY, OTHER)]
    assert headers == {
        "webhook-id": "msg",
        "webhook-timestamp": str(now),
        "webhook-signature": " ".join(f"v1,{one}" for one in expected),
    }


def test_the_signature_is_that_of_the_specifications_own_libraries() -> None:
    # from the tests of github.com/standard-webhooks/standard-webhooks
    found = Receivers.from_env({SECRET: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"})
    assert found is not None
    headers = found.signed("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    ("env", "why"),
    [
        ({SECRET: "secret"}, f"{SECRET} must be whsec_"),
        ({SECRET: "whsec_???"}, "base64"),
        ({SECRET: secret(b"short")}, "24 to 64 bytes"),
        ({SECRET: " ".join([secret(KEY)] * 3)}, "two while they are changed"),
        ({SECRET: secret(KEY), NETWORKS: "10.0.0.1/8"}, NETWORKS),
        ({NETWORKS: LOCAL}, "without a secret"),
    ],
)
def test_a_setting_that_is_wrong_is_refused_by_its_name(env: dict[str, str], why: str) -> None:
    with pytest.raises(QserveException, match=why) as refused:
        Receivers.from_env(env)
    assert secret(KEY) not in str(refused.value)


def test_without_a_secret_no_webhook_is_sent() -> None:
    assert Receivers.from_env({}) is None
    assert secret(KEY)[6:] not in repr(receivers())
