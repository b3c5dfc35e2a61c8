"""Values as text for people who look into dead letters, whatever this process knows of their types."""

from __future__ import annotations

from typing import Any

from qserve.exceptions import PayloadError
from qserve.http.message import HttpMessage, unpack_message
from qserve.wire.claim import claim_in
from qserve.wire.codec import Codec, Extension
from qserve.wire.codes import Code
from qserve.wire.times import split_times

_BODY_BYTES = 1000


class ShownCodec(Codec):
    """Decodes what it can, and describes the rest: HTTP requests, models and objects of classes that are not here."""

    def show(self, data: bytes) -> str:
        """Return an encoded value as text; an error says what it is instead."""
        try:
            value = split_times(data)[1]
            claim = claim_in(value)
            return repr(self.decode(value)) if claim is None else f"<a value of {claim.size} bytes, in {claim.store}>"
        except PayloadError as error:
            return f"<{error}>"

    def _unpacked(self, extension: Extension, room: int) -> Any:
        code, size = extension.code, len(extension.content)
        if code in (Code.HTTP_MESSAGE, Code.STARLETTE_REQUEST):
            return _Text(_request(unpack_message(self._read(extension.content, room, extension.segment))))
        if code == Code.RECORD:
            _, name, fields = self._read(extension.content, room, extension.segment)
            return _Text(f"{name}({', '.join(f'{field}={value!r}' for field, value in fields.items())})")
        try:
            return super()._unpacked(extension, room)
        except Exception as error:
            kind = next((one.name.lower().replace("_", " ") for one in Code if one == code), f"value of type {code}")
            return _Text(f"<a {kind} of {size} bytes: {type(error).__name__}: {error}>")


class _Text(str):
    """Text that stands for a value, and so has no quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _request(message: HttpMessage) -> str:
    """Describe a request; its headers may hold secrets."""
    query = f"?{message.query_string.decode(errors='backslashreplace')}" if message.query_string else ""
    kind = next((value for name, value in message.headers if name == b"content-type"), b"").decode(errors="replace")
    body = bytes(message.body[:_BODY_BYTES]).decode(errors="backslashreplace")
    more = f"… ({len(message.body)} bytes)" if len(message.body) > _BODY_BYTES else ""
    return f"<{message.method} {message.path}{query}{kind and f', {kind}'}: {body}{more}>"
