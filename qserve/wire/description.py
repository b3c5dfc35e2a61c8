"""The description of an application's HTTP interface, as it travels in the application's record: JSON, compressed."""

from __future__ import annotations

import json
import zlib
from typing import Any

from qserve.exceptions import PayloadError, PayloadTooLarge

LIMIT_BYTES = 512 << 10
"""The most bytes of a description, as JSON."""
PACKED_LIMIT_BYTES = 128 << 10
"""The most bytes of it in a record, which each process that calls or serves the application holds."""


def pack_description(description: dict[str, Any]) -> bytes:
    """Return a description in the form that a record holds.

    Raises:
      PayloadTooLarge: It is too long.
      ValueError, TypeError: It is not JSON.
    """
    text = json.dumps(description, separators=(",", ":"), allow_nan=False).encode()
    packed = zlib.compress(text)
    if len(text) > LIMIT_BYTES or len(packed) > PACKED_LIMIT_BYTES:
        raise PayloadTooLarge(
            f"it takes {len(text) >> 10} KiB ({len(packed) >> 10} KiB compressed), and the limit is"
            f" {LIMIT_BYTES >> 10} KiB ({PACKED_LIMIT_BYTES >> 10} KiB)"
        )
    return packed


def unpack_description(packed: bytes) -> dict[str, Any]:
    """Read what ``pack_description`` returned: the operations by path and method, and the components that they name.

    Raises:
      PayloadError: It is something else.
    """
    try:
        if len(packed) > PACKED_LIMIT_BYTES:
            raise ValueError(f"{len(packed)} bytes are too many")
        found = json.loads(zlib.decompressobj().decompress(packed, LIMIT_BYTES))
        for part in (found["paths"], *found["paths"].values(), found["components"], *found["components"].values()):
            if not isinstance(part, dict):
                raise TypeError("a part of it is not an object")
        for item in found["paths"].values():
            if not all(isinstance(operation["responses"], dict) for operation in item.values()):
                raise TypeError("an operation has no responses")
    except (zlib.error, ValueError, TypeError, KeyError, RecursionError) as error:
        raise PayloadError(f"the description of an application cannot be read: {error!r}") from error
    return found  # type: ignore[no-any-return]
