"""A WebSocket from its acceptance to its end: ``Session`` carries it, and ``SocketReply`` is its response."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from logging import INFO, WARNING
from typing import Any, NoReturn

import gevent
from gevent.lock import BoundedSemaphore
from wsproto import WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    Ping,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from qserve.base.log import get_logger, of_request
from qserve.base.settings import Settings
from qserve.calls.client import ClientPlane
from qserve.calls.items import WINDOW, ItemRef
from qserve.exceptions import PayloadError, ReplicaLost, VersionReplaced
from qserve.wire.failure import Failure
from qserve.wire.outcome import Outcome, State
from qserve.wire.websocket import (
    ABNORMAL,
    GOING_AWAY,
    INTERNAL_ERROR,
    NORMAL,
    POLICY,
    PULSE_S,
    SERVICE_RESTART,
    TOO_LONG,
    Farewell,
    Kind,
    Part,
    acceptance,
    farewell,
    part_in,
    parts_of,
    text_of,
)
from qserve_gateway.response.reply import PIECE, PIECE_TIMEOUT_S, call_all, lingering, shut_down

log = get_logger(__name__)
_TICK_S = 1.0
_CLOSE_S = 5.0
"""How long a client may take to close a WebSocket that was closed here, and a request to end whose replica is gone."""
_TURN_S = 1.0
"""How long the end of a WebSocket waits for what is being sent."""
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.25
"""How often the broker is asked whether an application has caught up with its client: less and less often."""
_LOST_WITH = (ReplicaLost.__name__, VersionReplaced.__name__)

open_sessions: set[Session] = set()


def close_sessions() -> None:
    """Close the WebSockets of this process, which ends."""
    for session in list(open_sessions):
        gevent.spawn(session.close, Farewell(SERVICE_RESTART, "the gateway ends"))


@dataclass(eq=False)
class Session:
    """One WebSocket that the application has accepted.

    What the client sends is told to the replica part by part, and no more is read from it while ``WINDOW`` parts are on
    their way or wait there. What the application sends comes as the items of a streamed result, of which there are no
    more than that on their way. So a side that does not read holds up the other, and a message is nowhere whole in this
    process.

    Parameters:
      ref: The request; its first item is the acceptance.
      protocol: The protocol of the connection.
    """

    ref: ItemRef[Any]
    plane: ClientPlane
    settings: Settings
    sock: Any
    protocol: WSConnection
    request_id: str
    _turn: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(1))
    _left: Farewell | None = None
    _told: int = 0
    _asked: deque[Any] = field(default_factory=deque)  # the replies to come to what was told
    _untaken: int = 0  # by the last of them
    _taken: int = 1  # the acceptance is the first item
    _size: int = 0
    _sent: int = 0
    _is_telling: bool = False
    _closed_at: float = 0.0
    _sending_since: float = 0.0
    _told_at: float = field(default_factory=time.monotonic)
    _heard_at: float = field(default_factory=time.monotonic)
    _pinged_at: float = 0.0
    _used_at: float = field(default_factory=time.monotonic)

    def run(self, subprotocol: str | None, headers: list[tuple[str, str]]) -> None:
        """Accept, and carry messages until the end; the application is told how that came about.

        Crash at any line: the client's connection ends, and the replica misses this process after ``SILENCE_S``.
        """
        open_sessions.add(self)
        helpers: list[gevent.Greenlet] = []
        try:
            named = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
            self._send(AcceptConnection(subprotocol=subprotocol, extra_headers=named))
            helpers = [gevent.spawn(self._pass_down), gevent.spawn(self._watch)]
            self._pass_up()
        except OSError:
            pass
        finally:
            open_sessions.discard(self)
            gevent.killall(helpers, block=False)
            if not self.ref.done.is_set():
                self._post((self._left or Farewell(ABNORMAL)).part())

    def close(self, how: Farewell, is_own: bool = True) -> None:
        """Send the client the reason, and give it time to answer; a client that takes nothing is cut off.

        Parameters:
          is_own: Whether this process has decided it, and not the application.
        """
        if self._closed_at:
            return
        self._closed_at, self._left = time.monotonic(), how
        if is_own and how.code != NORMAL:
            level = WARNING if how.code in (INTERNAL_ERROR, SERVICE_RESTART) else INFO
            log.log(level, "the WebSocket is closed with %d: %s", *how, extra=of_request(self.request_id))
        if not self._turn.acquire(timeout=_TURN_S):
            shut_down(self.sock)
            return
        try:
            self.sock.sendall(self.protocol.send(CloseConnection(how.code, how.reason or None)))
        except (OSError, LocalProtocolError):
            shut_down(self.sock)
        finally:
            self._turn.release()

    def _send(self, event: Event) -> None:
        with self._turn:
            self._sending_since = time.monotonic()
            try:
                self.sock.sendall(self.protocol.send(event))
            except LocalProtocolError:
                pass  # it was closed meanwhile
            finally:
                self._sending_since = 0.0

    # -- from the client ---------------------------------------------------------------------------

    def _pass_up(self) -> None:
        while data := self._receive():
            self._heard_at = time.monotonic()
            self.protocol.receive_data(data)
            try:
                for event in self.protocol.events():
                    if isinstance(event, CloseConnection):
                        self._on_close(event)
                        return
                    self._take(event)
            except RemoteProtocolError as error:
                self.close(Farewell(getattr(error.event_hint, "code", 1002), "the client breaks the protocol"))
                for _ in lingering(b"", self.sock):
                    pass
                return

    def _receive(self) -> bytes:
        try:
            return self.sock.recv(PIECE)  # type: ignore[no-any-return]
        except OSError:
            return b""

    def _on_close(self, event: CloseConnection) -> None:
        if not self._closed_at:
            self._left = Farewell(event.code, event.reason or "")
            self._closed_at = time.monotonic()
            self._send(event.response())

    def _take(self, event: Event) -> None:
        if self._closed_at:
            return
        if isinstance(event, Ping):
            self._send(event.response())
        elif isinstance(event, Message):
            is_text, limit = isinstance(event, TextMessage), self.settings.websocket_message_bytes
            data = event.data.encode() if is_text else bytes(event.data)
            self._size += len(data)
            if self._size > limit:
                self.close(Farewell(TOO_LONG, f"a message may have {limit} bytes"))
                return
            if data or event.message_finished:
                for part in parts_of(Kind.TEXT if is_text else Kind.BINARY, data, event.message_finished):
                    self._tell(part)
            if event.message_finished:
                self._size, self._used_at = 0, time.monotonic()

    def _tell(self, part: Part) -> None:
        """Tell the replica, and wait until it surely has room for more; replies to earlier parts may be under way."""
        self._is_telling, pause_s = True, _SHORTEST_PAUSE_S
        self._asked.append(self._post(part))
        while not self._closed_at and (self._may_be_full() or (self._asked and self._asked[0].is_set())):
            if not self._asked:
                gevent.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                self._asked.append(self.plane.tell(self.ref.request_id, -1, b""))
            found = self._answer(self._asked.popleft())
            self._untaken = 0 if found is None else found[0]
        self._is_telling, self._heard_at = False, time.monotonic()

    def _may_be_full(self) -> bool:
        return self._untaken + len(self._asked) >= WINDOW

    def _post(self, part: Part) -> Any:
        number, self._told, self._told_at = self._told, self._told + 1, time.monotonic()
        return self.plane.tell(self.ref.request_id, number, part.encode(number))

    def _answer(self, asked: Any) -> tuple[int, int] | None:
        """Wait for the reply to what was told; without one the session is closed."""
        asked.wait()
        found = asked.get_nowait()
        if isinstance(found, tuple):
            return found
        if found is not None:
            self.close(Farewell(SERVICE_RESTART, "the broker is away"))
        elif not self.ref.done.wait(_CLOSE_S):  # else its end says why
            self.close(Farewell(SERVICE_RESTART, "the replica is gone"))
        return None

    # -- to the client -----------------------------------------------------------------------------

    def _pass_down(self) -> None:
        try:
            while (item := self.ref.next()) is not None:
                part = part_in(item, self._taken)
                self._taken += 1
                if part.kind is Kind.CLOSE:
                    self.close(farewell(part.data), is_own=False)
                    return
                if not self._closed_at:
                    self._used_at = time.monotonic()
                    is_text, is_last = part.kind is Kind.TEXT, part.is_last
                    text, data = text_of(part.data) if is_text else "", part.data
                    self._send(TextMessage(text, True, is_last) if is_text else BytesMessage(data, True, is_last))
            self.close(_end_of(self.ref.outcome()))
        except PayloadError:
            self.close(Farewell(SERVICE_RESTART, "a message was lost"))
        except OSError:
            shut_down(self.sock)

    # -- meanwhile ---------------------------------------------------------------------------------

    def _watch(self) -> None:
        while True:
            gevent.sleep(_TICK_S)
            now = time.monotonic()
            if self._closed_at and now - self._closed_at > _CLOSE_S:
                shut_down(self.sock)
            elif self._sending_since and now - self._sending_since > PIECE_TIMEOUT_S:
                self._cut_off(Farewell(POLICY, f"the client has read nothing for {PIECE_TIMEOUT_S:g} s"))
            elif not self._closed_at:
                self._check_client(now)
                if now - self._told_at >= PULSE_S:
                    self._pulse()

    def _cut_off(self, how: Farewell) -> None:
        log.info("the WebSocket is cut off (%d): %s", *how, extra=of_request(self.request_id))
        self._closed_at, self._left = time.monotonic(), how
        shut_down(self.sock)

    def _check_client(self, now: float) -> None:
        settings = self.settings
        if now - self._used_at > settings.websocket_idle_s:
            self.close(Farewell(GOING_AWAY, f"there was no message for {settings.websocket_idle_s:g} s"))
        elif not self._is_telling and not self._turn.locked():  # else its silence says nothing
            silent_s, ping_s = now - self._heard_at, settings.websocket_ping_s
            if silent_s > 2 * ping_s:
                self._cut_off(Farewell(ABNORMAL, "the client does not answer pings"))
            elif silent_s > ping_s and now - self._pinged_at > ping_s:
                self._pinged_at = now
                self._send(Ping())

    def _pulse(self) -> None:
        """Tell the replica that this process is there, and see whether an item was lost on its way."""
        found = self._answer(self._post(Part(Kind.PULSE)))
        if found is not None and self.ref.received < self._sent:
            self.close(Farewell(SERVICE_RESTART, "a message was lost"))
        elif found is not None:
            self._sent = found[1]


def _end_of(outcome: Outcome) -> Farewell:
    """Return how a session ends whose request has ended; the reason shows no internals."""
    if outcome.state == State.DONE:
        return Farewell(NORMAL)
    if outcome.state == State.EXPIRED:
        return Farewell(GOING_AWAY, "the WebSocket was open for as long as it may be")
    if outcome.state == State.CANCELLED:
        return Farewell(SERVICE_RESTART, "the session was ended")
    failure = Failure.decode(outcome.payload)
    if failure.type in _LOST_WITH or not failure.deployment:
        return Farewell(SERVICE_RESTART, "the replica is gone")
    return Farewell(INTERNAL_ERROR, "the application failed")


class SocketReply:
    """The response to the opening handshake of a WebSocket that the application has accepted, as a WSGI application.

    Raises:
      PayloadError: The first item of the request's result is not an acceptance.
    """

    is_long = True
    status = 101

    def __init__(self, session: Session) -> None:
        first = session.ref.next_nowait()
        assert first is not None
        self._accepted = acceptance(part_in(first, 0))
        self._session = session
        self.headers = [("x-request-id", session.request_id)]
        self.when_sent: list[Callable[[], None]] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> NoReturn:
        """Carry the WebSocket to its end.

        Raises:
          StopIteration: Always: gunicorn takes it for the end of the connection.
        """
        environ["REQUEST_METHOD"] = "WEBSOCKET"  # for the log and the metrics, as Ray Serve calls it
        subprotocol, headers = self._accepted
        try:
            self._session.run(subprotocol, [*headers, *self.headers])
        finally:
            self.close()
        raise StopIteration

    def close(self) -> None:
        """Give up a response that could not be begun, or has ended."""
        call_all(self.when_sent)
