"""Bodies that are in the payload store: read as files and piece by piece, and forms whose files are parts of them.

Nothing is copied as a whole: a file of a form is a slice of the body's memory, which lives as long as the file.
"""

from __future__ import annotations

import io
import secrets
from collections.abc import AsyncIterator, Iterator
from copy import copy
from itertools import pairwise
from typing import Any

from starlette import formparsers, requests
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartParser

_formparsers: Any = formparsers
_requests: Any = requests
PIECE_BYTES = 256 * 1024
_FILE_FROM = 64 * 1024
"""Shorter files of forms are copied, as starlette does."""
_HEAD_END, _HEAD_BYTES = b"\r\n\r\n", 64 * 1024
_LINE_END = b"\r\n"
_MOST_FOUND = 10_000
"""A form in which the boundary is more often is parsed as it is: starlette refuses so many parts."""


class Piece(bytes):
    """A piece of a body, which knows the whole: what receives all pieces in order may use that instead.

    So it also works behind a middleware that counts, delays or replaces what the application receives.
    """

    whole: memoryview
    begin: int


def pieces(whole: memoryview) -> Iterator[Piece]:
    """Return a body piece by piece."""
    for begin in range(0, len(whole), PIECE_BYTES):
        piece = Piece(whole[begin : begin + PIECE_BYTES])
        piece.whole, piece.begin = whole, begin
        yield piece


class _Raw(io.RawIOBase):
    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self._data[self._position : self._position + len(buffer)]
        buffer[: len(found)] = found
        self._position += len(found)
        return len(found)

    def readall(self) -> bytes:
        found = bytes(self._data[self._position :])
        self._position += len(found)
        return found

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, offset + (0, self._position, len(self._data))[whence])
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        self._data = memoryview(b"")
        super().close()


def as_file(data: memoryview) -> io.BufferedReader:
    """Return bytes as a file that can be read and searched, but not written to, without a copy of them."""
    return io.BufferedReader(_Raw(data))


class FormParser(MultiPartParser):
    """starlette's parser of multipart forms; long files of a body that is in the store are slices of that.

    It parses the form without their contents, which it has replaced with marks. Should a mark come out as anything but
    the whole of a file, it parses the body itself.
    """

    stream: Any

    async def parse(self) -> FormData:
        """Return the form; raises as starlette's does."""
        given: AsyncIterator[bytes] = self.stream
        whole, end = memoryview(b""), 0
        boundary = _Boundary(self.headers["content-type"])
        async for piece in given:
            if not piece:  # the end of starlette's stream
                continue
            if not isinstance(piece, Piece) or piece.begin != end or (end and piece.whole is not whole):
                self._feed(pieces(whole[:end]), piece, given)
                return await super().parse()
            whole, end = piece.whole, end + len(piece)
            boundary.look(piece)
        found = boundary.found if len(boundary.found) < _MOST_FOUND else []
        self.stream = None
        cut, files = _without_files(whole[:end], found)
        if not files:
            self._feed(pieces(whole[:end]))
            return await super().parse()
        before = {name: copy(value) for name, value in vars(self).items()}
        self._feed(cut)
        form = await super().parse()
        if _put_in(form, files):
            return form
        for file in self._files_to_close_on_error:
            file.close()
        vars(self).update(before)
        self._feed(pieces(whole[:end]))
        return await super().parse()

    def _feed(self, *parts: Any) -> None:
        self.stream = _all_of(parts)


async def _all_of(parts: tuple[Any, ...]) -> AsyncIterator[bytes]:
    for part in parts:
        if isinstance(part, bytes):
            yield part
        elif hasattr(part, "__aiter__"):
            async for piece in part:
                yield piece
        else:
            for piece in part:
                yield piece


class _Boundary:
    """Finds where the boundary of a form is in a body, of which one piece is seen at a time."""

    def __init__(self, content_type: str) -> None:
        options = _formparsers.parse_options_header(content_type)[1]
        self._mark = b"--" + options.get(b"boundary", b"")
        self._before = b""
        self._seen = 0
        self.found: list[int] = []

    def look(self, piece: bytes) -> None:
        mark, overlap = self._mark, len(self._mark) - 1
        edge = self._before + piece[:overlap]
        for data, offset in ((edge, self._seen - len(self._before)), (piece, self._seen)):
            at = data.find(mark)
            while at >= 0 and len(self.found) < _MOST_FOUND:
                self.found.append(offset + at)
                at = data.find(mark, at + len(mark))
        self._before = (self._before + piece)[-overlap:] if len(piece) < overlap else piece[-overlap:]
        self._seen += len(piece)


def _without_files(whole: memoryview, found: list[int]) -> tuple[list[bytes], dict[bytes, memoryview]]:
    """Return a form with marks for all long parts, and what these stand for."""
    kept, files, done = [], dict[bytes, memoryview](), 0
    for begin, end in pairwise(found):
        head = bytes(whole[begin : begin + _HEAD_BYTES])
        first, last = begin + head.find(_HEAD_END) + len(_HEAD_END), end - len(_LINE_END)
        if _HEAD_END in head and last - first >= _FILE_FROM:
            mark = secrets.token_hex(16).encode()
            kept += [bytes(whole[done:first]), mark]
            files[mark] = whole[first:last]
            done = last
    return [*kept, bytes(whole[done:])], files


def _put_in(form: FormData, files: dict[bytes, memoryview]) -> bool:
    """Replace the marks in a form; return whether each was the whole of a file."""
    left = dict(files)
    for _, value in form.multi_items():
        if isinstance(value, UploadFile) and value.size == 32:
            data = left.pop(value.file.read(), None)
            value.file.seek(0)
            if data is not None:
                value.file.close()
                value.file, value.size = as_file(data), len(data)
    return not left


_requests.MultiPartParser = FormParser
