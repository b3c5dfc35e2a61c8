"""Where in a JSON document an error lies, as a JSON pointer (RFC 6901)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def pointer_to(error: Mapping[str, Any], document: Any) -> str:
    """The pointer for an error as pydantic describes it.

    Parameters:
      error: Its ``loc`` is a path into the document that may also hold pydantic's own words, such as the member of
        a union that it tried; these are left out. Its ``type`` says whether the last part is missing.
      document: The JSON document.
    """
    loc: Sequence[Any] = error["loc"]
    found = []
    for number, part in enumerate(loc, 1):
        if _has(document, part):
            document = document[part]
        elif number < len(loc) or error["type"] != "missing":
            continue
        found.append(str(part).replace("~", "~0").replace("/", "~1"))
    return "".join(f"/{part}" for part in found)


def _has(document: Any, part: Any) -> bool:
    if isinstance(document, dict):
        return part in document
    return isinstance(document, list) and isinstance(part, int) and 0 <= part < len(document)
