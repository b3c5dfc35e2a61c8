"""``Webhooks``: sends the ends of requests to those who asked for it, again and again until they are received.

The broker decides what is to be sent and when, in the function that ends a request; any process of any gateway may send
it. Who takes a webhook has it for a minute; if it dies meanwhile, another one sends it again.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from qserve.base import failpoints
from qserve.base.clock import clock
from qserve.base.log import get_logger, of_request
from qserve.base.once import may_say
from qserve.base.settings import Settings
from qserve.base.turns import Turns
from qserve.broker import functions
from qserve.broker.connection import broker_errors, refusal
from qserve.broker.library import Command
from qserve.calls.client import ClientPlane
from qserve.exceptions import QserveException
from qserve.http.render import as_value, to_json
from qserve.http.strict_json import loads
from qserve.wire.outcome import Outcome, State
from qserve.wire.replies import each
from qserve.wire.request_ids import is_of_value
from qserve.wire.webhook import DueWebhook
from qserve_gateway.jobs import JOBS_PATH, value_as_json
from qserve_gateway.request.receivers import SECRET, ReceiverRefused, Receivers
from qserve_gateway.response.errors import failure_reply
from qserve_gateway.response.reply import result_reply

log = get_logger(__name__)

WAITS_S = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Before each further try, as Standard Webhooks suggests: the last one is after three days."""
BODY_LIMIT = 20_000
"""A longer body has no result, in bytes."""
AT_ONCE = 32
"""How many are sent at a time, by each process of a gateway."""
_DELIVERED, _RETRIED, _GIVEN_UP = "delivered", "retried", "given_up"
_GONE = 410
_SAID_FOR_S = 60.0
UNSENT_S = 60.0
"""How often a gateway without a secret looks for webhooks that nobody sends, and how long they are due by then."""


class Webhooks:
    """Sends webhooks from one process of a gateway.

    Parameters:
      count: Counts a try by what came of it: "delivered", "retried" or "given_up".
    """

    def __init__(
        self, settings: Settings, plane: ClientPlane, receivers: Receivers, count: Callable[[str], None] | None
    ) -> None:
        self._settings = settings
        self._plane = plane
        self._receivers = receivers
        self._count = count
        self._sending = 0
        self._looking = threading.Lock()
        self._turns = Turns("sending webhooks", log, is_quiet=True)

    def look(self) -> None:
        """Send what is due, from a thread; this waits for nothing."""
        threading.Thread(target=self._look, name="qserve-webhooks", daemon=True).start()

    def _look(self) -> None:
        with self._turns:
            self.send_due()

    def send_due(self) -> None:
        """Begin to send what is due, as far as there is room; this waits for the broker only.

        Crash at any point: what was taken comes again after a minute.
        """
        if not self._looking.acquire(blocking=False):
            return  # the other one finds it, or the next turn
        try:
            while (room := AT_ONCE - self._sending) > 0:
                keys = self._plane.keys
                taken = self._ask(functions.due(keys.webhooks, keys.webhook(""), str(room)))
                for webhook in each(taken, partial(DueWebhook.read, seal=self._plane.seal)):
                    self._sending += 1
                    threading.Thread(target=self._send, args=(webhook,), name="qserve-webhook", daemon=True).start()
                if len(taken) < room:
                    break
        finally:
            self._looking.release()

    def _send(self, webhook: DueWebhook) -> None:
        was_full = self._sending >= AT_ONCE
        try:
            with self._turns:
                if webhook.outcome is None:
                    self._end(webhook)
                else:
                    self._try(webhook)
        finally:
            self._sending -= 1
        if was_full or webhook.outcome is None:
            self.look()

    def _end(self, webhook: DueWebhook) -> None:
        """End a request whose deadline has passed while nobody waited for it; its webhook is due then."""
        request_id = webhook.request_id
        plane = self._plane
        self._ask(functions.end(plane.seal, plane.keys.request(request_id), request_id, State.EXPIRED))

    def _try(self, webhook: DueWebhook) -> None:
        """Send a webhook once.

        Crash before the receiver has it: it is sent again after a minute. Crash after, before the broker knows: the
        same, with the same ID, by which the receiver can tell.
        """
        body = body_of(webhook, self._settings.show_errors)
        if failpoints.ARMED:
            failpoints.hit("webhook.before_post")
        is_over, why = False, ""
        try:
            headers = {**self._receivers.signed(webhook.request_id, time.time(), body), "user-agent": "qserve"}
            status = self._receivers.post(webhook.target.url, headers, body)
            if not 200 <= status < 300:
                why, is_over = f"it replied {status}", status == _GONE
        except ReceiverRefused as error:
            why, is_over = str(error), True
        except (OSError, HTTPException) as error:
            why = f"{type(error).__name__}: {error}"
        if failpoints.ARMED:
            failpoints.hit("webhook.after_post")
        self._settle(webhook, why, is_over)

    def _settle(self, webhook: DueWebhook, why: str, is_over: bool) -> None:
        tries, wait_ms, came_of_it = webhook.tries + 1, -1, _DELIVERED
        of = of_request(webhook.target.trace_id)
        where = _shown(webhook.target.url)
        if not why:
            log.debug("the webhook of request %s was delivered to %s", webhook.request_id, where, extra=of)
        elif is_over or webhook.tries >= len(WAITS_S):
            came_of_it = _GIVEN_UP
            text = "the webhook of request %s is given up after %d tries: %s: %s"
            log.error(text, webhook.request_id, tries, where, why, extra=of)
        else:
            came_of_it = _RETRIED
            wait_s = WAITS_S[max(0, webhook.tries)] * random.uniform(1.0, 1.1)
            wait_ms = int(wait_s * 1000)
            if may_say(f"webhook {where}", _SAID_FOR_S):
                text = "the webhook of request %s was not delivered, again in %.0f s: %s: %s"
                log.warning(text, webhook.request_id, wait_s, where, why, extra=of)
        keys, request_id = self._plane.keys, webhook.request_id
        self._ask(functions.settle(keys.webhooks, keys.webhook(request_id), request_id, tries, wait_ms))
        if self._count is not None:
            self._count(came_of_it)

    def _ask(self, command: Command) -> Any:
        with broker_errors():
            reply = self._plane.execute(command)
        if isinstance(reply, Exception):
            raise refusal(reply)
        return reply


class Unsent:
    """Looks, in a gateway that sends no webhooks, for some that Python programs have asked for and nobody sends."""

    def __init__(self, plane: ClientPlane) -> None:
        self._plane = plane
        self._look_at = time.monotonic() + UNSENT_S
        self._is_said = False

    def look(self) -> None:
        """Look once a minute, and warn of them once until they are gone; call it at any time."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + UNSENT_S
        keys, overdue_ms = self._plane.keys, clock.judge_ms() - 1000 * UNSENT_S
        with broker_errors():
            found = bool(self._plane.client.zrangebyscore(keys.webhooks, "-inf", overdue_ms, start=0, num=1))
        if found and not self._is_said and may_say("unsent webhooks", _SAID_FOR_S):
            log.warning("webhooks of requests are due for over a minute, and no gateway sends them: set %s", SECRET)
        self._is_said = found


def body_of(webhook: DueWebhook, show_errors: bool) -> bytes:
    """Return what is sent: the end of a request, with its result or error if that is short."""
    request_id, outcome = webhook.request_id, webhook.outcome or Outcome(State.EXPIRED, b"")
    data: dict[str, Any] = {"request_id": request_id, "status": webhook.status, "location": JOBS_PATH + request_id}
    at = datetime.fromtimestamp(webhook.at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    whole = {"type": f"request.{webhook.status}", "timestamp": at, "data": data}
    if webhook.is_whole:
        try:
            more = _end_in(outcome, request_id, show_errors)
            body = to_json(whole | {"data": data | more})
            if len(body) <= BODY_LIMIT:
                return body
        except QserveException as error:  # the result is not plain data; its place is told
            log.debug("the webhook of request %s has no result: %s", request_id, error)
    return to_json(whole)


def _end_in(outcome: Outcome, request_id: str, show_errors: bool) -> dict[str, Any]:
    """Return what a client would get that asks for the result."""
    if outcome.state != State.DONE:
        reply = failure_reply(outcome, request_id, show_errors, note=_say_nothing)
        return {"status_code": reply.status, **loads(reply.body)}
    if is_of_value(request_id):
        return {"result": loads(value_as_json(outcome.payload, request_id))}
    reply = result_reply(outcome.payload, request_id)
    return {"status_code": reply.status, "result": as_value(dict(reply.headers).get("content-type", ""), reply.body)}


def _say_nothing(*about: Any, **more: Any) -> None:
    """Log nothing: each try makes the body again."""


def _shown(url: str) -> str:
    """Return the part of a URL that is no secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
