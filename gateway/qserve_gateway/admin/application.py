"""The WSGI application of ``qserve api``: it checks the token, and answers Ray Serve's requests."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import Any

from qserve.appfile.read import SIZE_LIMIT, read_value
from qserve.base.log import get_logger
from qserve.base.settings import Settings
from qserve.deploy.installation import Installation
from qserve.deploy.named import deployments_named, versions_named
from qserve.deploy.removal import remove
from qserve.deploy.wishes import scale
from qserve.exceptions import QserveException
from qserve.http import strict_json
from qserve_gateway.admin.deploys import Deploys
from qserve_gateway.admin.details import details_of
from qserve_gateway.handler import handle
from qserve_gateway.request.access import AccessPolicy, check_origin
from qserve_gateway.request.body import Limit, read_body
from qserve_gateway.request.environ import Environ, Refused, has_body, path_of, wrong_method
from qserve_gateway.response.reply import Reply

log = get_logger(__name__)
APPLICATIONS = "/api/serve/applications"
_SCALE = re.compile(r"/api/v1/applications/([^/]+)/deployments/([^/]+)/scale").fullmatch


class AdminApi:
    """Answers requests of programs that deploy.

    Parameters:
      access: Has the digest of the token.
    """

    def __init__(self, installation: Installation, access: AccessPolicy, deploys: Deploys) -> None:
        self._installation = installation
        self._access = access
        self._deploys = deploys

    def __call__(self, environ: Environ, start_response: Any) -> Any:
        """Answer a request; the server calls this."""
        return handle(environ, self._serve, None)(environ, start_response)

    def _serve(self, environ: Environ, request_id: str) -> Reply:
        self._access.check(environ)
        check_origin(environ)
        path, method = path_of(environ).rstrip("/"), environ["REQUEST_METHOD"]
        scaled = _SCALE(path)
        answers: dict[str, Callable[[], Any]] = {}
        if scaled:
            app, deployment = scaled.groups()
            answers = {"POST": lambda: self._scale(app, deployment, _body_of(environ))}
        elif path == APPLICATIONS:
            answers = {
                "GET": lambda: details_of(self._installation, self._deploys.expected()),
                "PUT": lambda: self._put(_body_of(environ)),
                "DELETE": self._delete,
            }
        if not answers:
            raise Refused(f"there is nothing at {path}: use {APPLICATIONS}/", "not_found", 404, has_body(environ))
        if method not in answers:
            raise wrong_method(method, tuple(answers))
        body = json.dumps(answers[method]()).encode()
        headers = [("content-type", "application/json"), ("cache-control", "no-store"), ("x-request-id", request_id)]
        return Reply(200, headers, body)

    def _put(self, body: Any) -> dict[str, Any]:
        """Begin to deploy a file; how it goes is seen with GET, as with Ray Serve."""
        file = read_value(body, "the body")
        file.warn(is_run=False)
        self._deploys.start([app.name for app in file.applications], body)
        return {}

    def _delete(self) -> dict[str, Any]:
        """Remove all applications; their replicas finish what they run."""
        self._deploys.check_idle()
        names = sorted(self._installation.registry.names())
        threading.Thread(target=self._remove, args=(names,), daemon=True).start()
        return {}

    def _remove(self, names: list[str]) -> None:
        for name in names:
            try:
                remove(self._installation, name)
            except QserveException as error:
                log.error("application %r could not be removed: %s", name, error)
            else:
                log.info("application %r was removed", name)

    def _scale(self, app: str, deployment: str, body: Any) -> dict[str, Any]:
        record = versions_named(self._installation, app)[0]
        deployments_named(record, deployment)
        count = body.get("target_num_replicas") if type(body) is dict else None
        if type(count) is not int:
            raise Refused('the body must be {"target_num_replicas": N}, with a whole number', "bad_request", 400)
        if not record.external_scaler:
            message = f"application {app!r} is not deployed with external_scaler_enabled: true"
            raise Refused(message, "external_scaler_disabled", 412)
        before, now = scale(self._installation, app, deployment, count)
        return {"message": f"{app}/{deployment}: {before} -> {now} replicas"}


def _body_of(environ: Environ) -> Any:
    return strict_json.loads(read_body(environ, lambda size: None, Limit(SIZE_LIMIT)))


def create_api(settings: Settings, access: AccessPolicy, app_dir: str) -> AdminApi:
    """Create the application; the server calls this in its worker, after the fork.

    Parameters:
      app_dir: The folder in which import paths are searched for first.
    """
    return AdminApi(Installation(settings), access, Deploys(settings, app_dir))
