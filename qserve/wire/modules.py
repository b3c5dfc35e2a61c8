"""The user's modules as they travel with a deploy, for workers that do not have them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import msgpack

from qserve.base.keyring import Keyring
from qserve.exceptions import PayloadError
from qserve.wire.codec import unpack

LIMIT_BYTES = 8 << 20
"""How much may travel, compressed."""
_MOST_BYTES = 16 * LIMIT_BYTES

Modules = Mapping[str, tuple[str, bool, bytes]]
"""By its full name, a module's file, whether it is a package, and its source."""


def pack_modules(modules: Modules, keyring: Keyring) -> bytes:
    """Return modules compressed and signed.

    Raises:
      PayloadError: They cannot travel; the message says why.
    """
    others = sorted(name for name, (path, *_) in modules.items() if not path.endswith(".py"))
    if others:
        raise PayloadError(f"{', '.join(others[:3])} cannot be sent: only Python source can")
    data = zlib.compress(msgpack.packb({name: [*module] for name, module in modules.items()}))
    if len(data) > LIMIT_BYTES:
        raise PayloadError(f"it takes {len(data) / (1 << 20):.1f} MiB, and at most {LIMIT_BYTES >> 20} MiB can be sent")
    return keyring.sign(data)


def unpack_modules(data: bytes, keyring: Keyring) -> Modules:
    """Read what ``pack_modules`` returned.

    Raises:
      PayloadError: It is something else, or was not signed with this installation's key.
    """
    body = keyring.verify(data)
    if body is None:
        raise PayloadError("the code that was sent is not signed with this process's key (QSERVE_SECRET_KEY)")
    try:
        whole = zlib.decompressobj()
        found = unpack(whole.decompress(body, _MOST_BYTES), "the code that was sent", depth=3)
        modules = {name: (path, is_package, source) for name, (path, is_package, source, *_) in found.items()}
    except (zlib.error, AttributeError, TypeError, ValueError) as error:
        raise PayloadError(f"the code that was sent cannot be read: {type(error).__name__}: {error}") from error
    kinds = {(type(name), *map(type, module)) for name, module in modules.items()}
    if kinds - {(str, str, bool, bytes)}:
        raise PayloadError("the code that was sent is not modules with their sources")
    return modules
