"""Bytes of a file in the memory of this process, as views that keep something else alive as long as they are used.

Python's ``mmap`` holds a second descriptor of the file, and so its lock; and what is taken from it can keep nothing
alive but the mapping itself.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from typing import Any

_FAILED = ctypes.c_void_p(-1).value
if sys.platform == "linux":
    _LIBC = ctypes.CDLL(None, use_errno=True)
    _LIBC.mmap.restype = ctypes.c_void_p
    _LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_longlong)
    _LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class Mapping:
    """The first bytes of a file, mapped until nothing refers to the object or its views any more (Linux only).

    Parameters:
      descriptor: Of the file, which may be closed afterwards.
      size: How many bytes.
      is_writable: Whether views may be written to, and whether all pages are mapped at once.

    Raises:
      OSError: The system refuses.
    """

    def __init__(self, descriptor: int, size: int, is_writable: bool = False) -> None:
        self._address = 0
        access, flags = mmap.PROT_READ, mmap.MAP_SHARED
        if is_writable:
            access, flags = access | mmap.PROT_WRITE, flags | mmap.MAP_POPULATE
        address = _LIBC.mmap(None, size, access, flags, descriptor, 0)
        if address == _FAILED:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._address, self.size = address, size
        self._kind = ctypes.c_ubyte * size

    def view(self, held: Any = None) -> memoryview:
        """Return all of it; ``held`` is kept as long as the view, or anything made from it without a copy, lives.

        A write to a mapping that is not writable is the end of the process, so its views should be made read-only.
        """
        block = self._kind.from_address(self._address)
        block.held = (self, held)  # type: ignore[attr-defined]
        return memoryview(block).cast("B")

    def __del__(self) -> None:
        if self._address:
            _LIBC.munmap(self._address, self.size)
