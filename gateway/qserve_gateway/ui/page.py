"""The live page ``/-/ui``: its files, its sessions, and what it asks for and does."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from qserve.base.log import get_logger
from qserve.base.settings import Settings
from qserve.deploy.dead_letters import DeadLetters
from qserve.deploy.installation import Installation
from qserve.deploy.wishes import pause, scale
from qserve.exceptions import DeadLetterError, NameNotFound
from qserve.http.message import BadRequest
from qserve.http.render import to_json
from qserve.http.strict_json import loads
from qserve.overview.letters import details_of, summary_of
from qserve.overview.observer import Observer
from qserve.overview.requests import STATES, cancel, list_requests, request
from qserve.overview.traces import trace
from qserve_gateway.request.access import AllowedHosts, check_origin
from qserve_gateway.request.body import Limit, read_body
from qserve_gateway.request.environ import Environ, Refused, wrong_method
from qserve_gateway.response.reply import Reply
from qserve_gateway.ui.feed import Feed, Viewing
from qserve_gateway.ui.sessions import ACT, ACTIONS_TOKEN, SEE, UI_PATH, Sessions, cookie_of

log = get_logger(__name__)
_PAGE = "ui.html"
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
HEADERS = (
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none';"
        " form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    ),
    ("cache-control", "no-cache"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
)
"""Of the page and its files: no inline script runs, no text becomes markup, no other host is asked."""
_BODY_LIMIT = 64 * 1024
_MARK = "HTTP_X_QSERVE_UI"
"""A header that a page of another origin cannot send without being asked first, which is refused."""
_LETTERS = 200
_REQUESTS = 200


class Ui:
    """Serves everything below ``/-/ui``; all processes of a gateway with the same tokens know one another's cookies.

    Parameters:
      sessions: Who may see the page, and act.
      installation: What is shown and changed.
      hosts: The host names that the gateway serves.
    """

    def __init__(self, sessions: Sessions, installation: Installation, feed: Feed, hosts: AllowedHosts = None) -> None:
        self._sessions = sessions
        self._installation = installation
        self._letters = DeadLetters(installation)
        self._feed = feed
        self._hosts = hosts
        self._by = f"the live page on {socket.gethostname()}"
        self._reads: dict[str, Callable[[Mapping[str, str]], Any]] = {
            "dead-letters": self._list_letters,
            "dead-letter": self._show_letter,
            "requests": self._list_requests,
            "request": self._show_request,
        }
        self._acts: dict[str, Callable[[Any], Any]] = {
            "replay": self._replay,
            "purge": self._purge,
            "scale": self._scale,
            "pause": self._pause,
            "cancel": self._cancel,
        }

    def serve(self, environ: Environ, request_id: str) -> Reply | Viewing:
        """Serve a request; the caller has checked its host.

        Raises:
          QserveException: It may not see or do this, or it is not possible.
        """
        path = environ["PATH_INFO"]
        name = path.removeprefix(UI_PATH).removeprefix("/")
        if path == UI_PATH + "/":  # the addresses of its files would be wrong there
            return Reply(308, [("location", "../ui"), ("x-request-id", request_id)], b"")
        if not name or name in _files():
            return self._file(name or _PAGE, environ, request_id)
        if environ.get("HTTP_SEC_FETCH_SITE", "same-origin") != "same-origin":
            raise Refused("only the page itself may ask this", "cross_origin", 403)
        if name == "session" and environ["REQUEST_METHOD"] in ("POST", "DELETE"):
            return self._session(environ, request_id)
        right = self._sessions.right_of(environ)
        if not right:
            raise Refused("sign in with the token of the live page", "unauthorized", 401)
        if name in self._acts:
            return self._act(name, right, environ, request_id)
        return self._read(name, right, environ, request_id)

    def _file(self, name: str, environ: Environ, request_id: str) -> Reply:
        _allow(environ["REQUEST_METHOD"], ("GET", "HEAD"))
        data, kind, etag = _files()[name]
        headers = [*HEADERS, ("etag", etag), ("x-request-id", request_id)]
        if etag in environ.get("HTTP_IF_NONE_MATCH", ""):
            return Reply(304, headers, b"")
        return Reply(200, [*headers, ("content-type", kind)], data)

    def _session(self, environ: Environ, request_id: str) -> Reply:
        given = self._body(environ)
        right, cookie = "", ""
        if environ["REQUEST_METHOD"] == "POST":
            token = given.get("token")
            opened = self._sessions.open(token) if type(token) is str else None
            if opened is None:
                raise Refused("this is not a token of the live page", "unauthorized", 401)
            right, cookie = opened
            log.info("somebody at %s has signed in to the live page, to %s", environ.get("REMOTE_ADDR"), right)
        reply = _json({"may_act": right == ACT}, request_id)
        reply.headers.append(("set-cookie", cookie_of(cookie, environ)))
        return reply

    def _read(self, name: str, right: str, environ: Environ, request_id: str) -> Reply | Viewing:
        _allow(environ["REQUEST_METHOD"], ("GET", "HEAD"))
        if name == "session":
            return _json({"may_act": right == ACT}, request_id)
        if name == "events":
            if self._feed.is_full:
                raise Refused("too many browsers look at this gateway process", "viewers_full", 503, retry_after_s=5)
            return Viewing(self._feed, lambda: bool(self._sessions.right_of(environ)), request_id)
        if name not in self._reads:
            raise Refused("the page has no such part", "not_found", 404)
        query = parse_qs(environ.get("QUERY_STRING", ""), max_num_fields=10)
        return _json(self._reads[name]({key: values[-1] for key, values in query.items()}), request_id)

    def _act(self, name: str, right: str, environ: Environ, request_id: str) -> Reply:
        _allow(environ["REQUEST_METHOD"], ("POST",))
        if right == SEE:
            raise Refused(f"your token allows to look only; sign in with that of {ACTIONS_TOKEN}", "forbidden", 403)
        given = self._body(environ)
        found = self._acts[name](given)
        log.info("somebody at %s has used the live page to %s %s", environ.get("REMOTE_ADDR"), name, given)
        return _json(found, request_id)

    def _body(self, environ: Environ) -> dict[str, Any]:
        """Return the JSON object that a request of the page itself has sent; the body may be empty."""
        if environ.get(_MARK) != "1":
            raise Refused("only the page itself may ask this", "cross_origin", 403)
        check_origin(environ, self._hosts)
        body = read_body(environ, lambda size: None, Limit(_BODY_LIMIT))
        found = loads(body) if body else {}
        if type(found) is not dict:
            raise BadRequest("the body must be a JSON object", "bad_request")
        return found

    # -- what it shows -----------------------------------------------------------------------------

    def _list_letters(self, query: Mapping[str, str]) -> Any:
        letters = [summary_of(letter) for letter in self._letters.list(_LETTERS)]
        return {"letters": letters, "limit": _LETTERS, "dropped": self._letters.dropped()}

    def _show_letter(self, query: Mapping[str, str]) -> Any:
        try:
            letter = self._letters.show(_id_in(query))
        except DeadLetterError as error:
            raise Refused(str(error), "not_found", 404) from error
        return details_of(letter, self._letters.shown(letter))

    def _list_requests(self, query: Mapping[str, str]) -> Any:
        app, state = query.get("application") or None, query.get("state") or None
        found = list_requests(self._installation, app, state, slowest="slowest" in query, limit=_REQUESTS)
        return {"requests": found, "limit": _REQUESTS, "states": STATES}

    def _show_request(self, query: Mapping[str, str]) -> Any:
        name = _id_in(query)
        try:
            found = request(self._installation, name)
        except NameNotFound as error:
            raise Refused(str(error), "not_found", 404) from error
        traced = trace(self._installation, found.request_id) if found.is_traced else None
        return {"request": found, "trace": traced}

    # -- what it does ------------------------------------------------------------------------------

    def _replay(self, given: dict[str, Any]) -> Any:
        done, failed = [], {}
        for request_id in _ids_in(given):
            try:
                self._letters.replay(request_id)
                done.append(request_id)
            except DeadLetterError as error:
                failed[request_id] = str(error)
        return {"done": done, "failed": failed}

    def _purge(self, given: dict[str, Any]) -> Any:
        return {"deleted": self._letters.purge(_ids_in(given))}

    def _cancel(self, given: dict[str, Any]) -> Any:
        return {"cancelled": cancel(self._installation, _id_in(given))}

    def _scale(self, given: dict[str, Any]) -> Any:
        count = given.get("count")
        if type(count) is not int:
            raise BadRequest("'count' must be a whole number", "bad_request")
        before, now = scale(self._installation, *_place_in(given), count, by=self._by)
        return {"before": before, "now": now}

    def _pause(self, given: dict[str, Any]) -> Any:
        is_paused = given.get("is_paused")
        if type(is_paused) is not bool:
            raise BadRequest("'is_paused' must be true or false", "bad_request")
        pause(self._installation, *_place_in(given), is_paused, by=self._by)
        return {"is_paused": is_paused}


def _allow(method: str, methods: tuple[str, ...]) -> None:
    if method not in methods:
        raise wrong_method(method, methods)


def _id_in(given: Mapping[str, Any]) -> str:
    found = given.get("id")
    if type(found) is not str or not found:
        raise BadRequest("'id' is missing", "bad_request")
    return found


def _ids_in(given: Mapping[str, Any]) -> list[str]:
    found = given.get("ids")
    if type(found) is not list or not found or not all(type(one) is str for one in found):
        raise BadRequest("'ids' must be a list of the IDs of dead letters", "bad_request")
    return found


def _place_in(given: Mapping[str, Any]) -> tuple[str, str]:
    app, deployment = given.get("application"), given.get("deployment")
    if type(app) is not str or type(deployment) is not str:
        raise BadRequest("'application' and 'deployment' must be names", "bad_request")
    return app, deployment


def _json(found: Any, request_id: str) -> Reply:
    headers = [
        ("content-type", "application/json"),
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("x-request-id", request_id),
    ]
    return Reply(200, headers, to_json(found))


@cache
def _files() -> dict[str, tuple[bytes, str, str]]:
    """Return the data, the type and the ETag of each file of the page."""
    found = {}
    for path in Path(str(resources.files("qserve_gateway") / "static" / "ui")).iterdir():
        data, kind = path.read_bytes(), _TYPES.get(path.suffix[1:])
        if kind is not None:
            etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
            found[path.name] = data, f"{kind}; charset=utf-8", etag
    return found


def create_ui(settings: Settings, sessions: Sessions, hosts: AllowedHosts = None, broker_url: str = "") -> Ui:
    """Create the page of a gateway process; it connects to the broker when somebody looks.

    Parameters:
      hosts: The host names that the gateway serves.
      broker_url: The broker with a user who may see and do more than the gateway's; "" for that one.
    """
    settings = replace(settings, broker_url=broker_url or settings.broker_url)
    observer = Observer(Installation(settings))
    return Ui(sessions, Installation(settings), Feed(observer.look), hosts)
