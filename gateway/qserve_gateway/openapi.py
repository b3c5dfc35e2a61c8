"""The page ``/-/openapi.json``: the HTTP interface of all applications and of the gateway, in OpenAPI 3.1.

``pages.json`` has the gateway's own part. Those of the applications were made when they were deployed, where their code
is, and are in their records; here they are only put together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container
from importlib import resources
from typing import Any
from urllib.parse import unquote

from qserve.base.log import get_logger
from qserve.exceptions import PayloadError
from qserve.http.strict_json import loads
from qserve.openapi.document import METHODS, part_of, quote_path
from qserve.wire.application import ApplicationRecord
from qserve.wire.description import unpack_description
from qserve_gateway.routes import Route, RouteTable

log = get_logger(__name__)

OPENAPI_PATH = "/-/openapi.json"
DOCUMENT_LIMIT = 1 << 20
"""The most bytes of the descriptions of all applications, compressed; those beyond that are described in general."""
_HEADERS = {"content-type": "application/json", "cache-control": "no-cache", "x-content-type-options": "nosniff"}
_TOKEN = "gatewayToken"
_TAKEN = {
    "Prefer": "Prefer", "IdempotencyKey": "Idempotency-Key", "Timeout": "x-request-timeout-seconds",
    "Webhook": "X-Qserve-Webhook",
}  # fmt: skip
"""The headers that each application's requests may have, by the names of their components."""
_RESPONSES = {
    "202": "Accepted", "400": "BadRequest", "413": "TooLarge", "422": "Invalid", "429": "TooMany", "499": "Cancelled",
    "500": "Failed", "503": "Unavailable", "504": "Late", "default": "Problem",
}  # fmt: skip
"""The responses of the gateway to a request for an application."""
_JSON = "application/json"


class OpenApi:
    """The document, made when it is asked for and the routes have changed.

    Parameters:
      has_token: Whether each request needs the gateway's token.
      without: The paths of pages that this gateway does not have.
    """

    def __init__(self, has_token: bool, without: Container[str] = ()) -> None:
        self._has_token, self._without = has_token, without
        self._table: RouteTable | None = None
        self._made: tuple[bytes, dict[str, str]] = b"", {}

    def document(self, table: RouteTable) -> tuple[bytes, dict[str, str]]:
        """Return the document for these routes as JSON, and its headers."""
        if table is not self._table:
            text = json.dumps(document_of(table, self._has_token, self._without), separators=(",", ":")).encode()
            etag = f'"{hashlib.sha256(text).hexdigest()[:32]}"'
            self._made, self._table = (text, _HEADERS | {"etag": etag}), table
        return self._made


def document_of(table: RouteTable, has_token: bool = False, without: Container[str] = ()) -> dict[str, Any]:
    """Return the OpenAPI document of all applications in a table, those with the shortest paths first."""
    document: dict[str, Any] = loads(resources.files("qserve_gateway").joinpath("pages.json").read_bytes())
    own = {path: item for path, item in document["paths"].items() if path not in without}
    tags, left = list[dict[str, str]](), DOCUMENT_LIMIT
    document["paths"] = {}
    for route in reversed(table.routes):
        left -= len(route.record.description)
        part = _part_of(route.record, is_described=left >= 0)
        tags.append({"name": route.record.name, "description": part["description"]})
        for path, item in part["paths"].items():
            whole = quote_path(route.root_path) + path or "/"
            if not whole.startswith("/-/") and table.match(unquote(whole)) is route:
                document["paths"][whole] = {name: _with_ours(one, route, path) for name, one in item.items()}
        for kind, named in part["components"].items():
            document["components"].setdefault(kind, {}).update(named)
    if has_token:
        document["security"] = [{_TOKEN: []}]
        document["components"].setdefault("securitySchemes", {})[_TOKEN] = {"type": "http", "scheme": "bearer"}
        for item in (*document["paths"].values(), *own.values()):
            for name, operation in item.items():
                if name in METHODS:
                    _protect(operation)
    document["paths"] |= own
    document["tags"] = [*tags, *document["tags"]]
    document["info"]["version"] = hashlib.sha256(json.dumps(document).encode()).hexdigest()[:12]
    return document


def _part_of(record: ApplicationRecord, is_described: bool) -> dict[str, Any]:
    if record.description and is_described:
        try:
            return unpack_description(record.description)
        except PayloadError as error:
            log.warning("application %r: %s", record.name, error)
    return part_of({"paths": {path: _general(record) for path in _paths_of(record)}}, record.name)


def _paths_of(record: ApplicationRecord) -> tuple[str, ...]:
    return ("",) if record.driver is None or record.driver.routes is None else record.driver.routes


def _general(record: ApplicationRecord) -> dict[str, Any]:
    """Return the operations of a path of which only the record is known."""
    body: dict[str, Any] = {_JSON: {}, "text/plain": {"schema": {"type": "string"}}}
    operation = {"responses": {"200": {"description": "The result.", "content": {"*/*": {}}}}}
    if record.driver is not None and record.driver.adapter == "json_request":
        return {"post": {**operation, "requestBody": {"required": True, "content": {_JSON: {}}}}}
    return {"get": operation, "post": {**operation, "requestBody": {"content": body}}}


def _with_ours(operation: dict[str, Any], route: Route, path: str) -> dict[str, Any]:
    """Add to an operation of an application what the gateway takes and sends besides."""
    if path == "" and route.graphs is None:
        below = "All paths below this one are served alike."
        operation["description"] = f"{operation.get('description', '')}\n\n{below}".strip()
    given = {(one.get("name"), one.get("in")) for one in operation.get("parameters", ())}
    operation["parameters"] = [
        *operation.get("parameters", ()),
        *(
            {"$ref": f"#/components/parameters/{name}"}
            for name, header in _TAKEN.items()
            if (header, "header") not in given
        ),
    ]
    responses = operation["responses"]
    if route.record.driver is not None:
        responses.pop("422", None)  # FastAPI's, where the adapter is user code
    schemas = responses.get("422", {}).get("content", {}).get(_JSON, {})
    if "schema" in schemas:  # the same status has our body if another request had the idempotency key
        schemas["schema"] = {"anyOf": [schemas["schema"], {"$ref": "#/components/schemas/Error"}]}
    for status, name in _RESPONSES.items():
        responses.setdefault(status, {"$ref": f"#/components/responses/{name}"})
    return operation


def _protect(operation: dict[str, Any]) -> None:
    """Require the gateway's token, beside what the application itself requires; the page for health checks does not."""
    if operation.get("operationId") == "health":
        return
    if "security" in operation:
        operation["security"] = [{**one, _TOKEN: []} for one in operation["security"]] or [{_TOKEN: []}]
    operation["responses"].setdefault("401", {"$ref": "#/components/responses/Unauthorized"})
