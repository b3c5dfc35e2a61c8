"""The page ``/-/docs``: Swagger UI, from an installed package, shows what ``/-/openapi.json`` says."""

from __future__ import annotations

import hashlib
import importlib.util
from functools import cache
from importlib import resources
from pathlib import Path

from qserve_gateway.request.environ import Refused

DOCS_PATH = "/-/docs"
PAGE = "docs.html"
_ASSETS = "fastapi_offline"
"""The package of the extra ``docs`` that has Swagger UI's files; nothing of it is run here."""
_NOT_INSTALLED = (
    "this page needs Swagger UI's files where the gateway runs: pip install 'qserve-celery[docs]'. The document itself"
    " is /-/openapi.json"
)
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Of the page and its files: no inline script runs, no other host is asked, and no other page shows this one."""


def file_of(name: str) -> tuple[bytes, dict[str, str]]:
    """Return a file of the page, and its headers.

    Raises:
      Refused: There is no such file, or Swagger UI is not installed (404).
    """
    files = _files()
    if not files:
        raise Refused(_NOT_INSTALLED, "docs_not_installed", 404)
    if name not in files:
        raise Refused("the page has no such file", "not_found", 404)
    data = files[name].read_bytes()
    etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    return data, {**HEADERS, "content-type": f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8", "etag": etag}


@cache
def _files() -> dict[str, Path]:
    found = importlib.util.find_spec(_ASSETS)
    theirs = Path(found.origin or "").parent / "static" if found is not None else Path()
    files = {name: theirs / name for name in ("swagger-ui-bundle.js", "swagger-ui.css")}
    if found is None or not all(map(Path.is_file, files.values())):
        return {}
    own = Path(str(resources.files("qserve_gateway"))) / "static"
    return files | {name: own / name for name in (PAGE, "docs.css", "docs.js")}
