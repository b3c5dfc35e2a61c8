"""Bytes of a file in the memory of this process, as views that keep something else alive as long as they are used.

Python's ``mmap`` holds a second descriptor of the file, and so its lock; and what is taken from it can keep nothing
alive but the mapping itself.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Callable
from typing import Any, Final

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
      begin: Where in the file they begin, at a page; then views may be written to as well, and what is written is a
        copy that neither the file nor anybody else has.

    Raises:
      OSError: The system refuses.
    """

    def __init__(self, descriptor: int, size: int, is_writable: bool = False, begin: int | None = None) -> None:
        self._address = 0
        access, flags = mmap.PROT_READ, mmap.MAP_SHARED
        if is_writable:
            access, flags = access | mmap.PROT_WRITE, flags | mmap.MAP_POPULATE
        elif begin is not None:
            access, flags = access | mmap.PROT_WRITE, mmap.MAP_PRIVATE
        address = _LIBC.mmap(None, size, access, flags, descriptor, begin or 0)
        if address == _FAILED:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._address = address
        self.size: Final = size
        self._kind = ctypes.c_ubyte * size

    def view(self, held: Any = None, changeable: Callable[[int, memoryview], memoryview] | None = None) -> memoryview:
        """Return all of it; ``held`` is kept as long as the view, or anything made from it without a copy, lives.

        Parameters:
          changeable: Returns the bytes of a part in memory that may be changed, given where in the file they begin. It
            becomes the attribute ``changeable`` of the ``obj`` of the view and of its parts.

        A write to a mapping that is not writable is the end of the process, so its views should be made read-only.
        """
        block = self._kind.from_address(self._address)
        block.held = (self, held)  # type: ignore[attr-defined]
        if changeable is not None:
            address = self._address
            block.changeable = lambda part: changeable(_address_of(part) - address, part)  # type: ignore[attr-defined]
        return memoryview(block).cast("B")

    def __del__(self) -> None:
        if self._address:
            _LIBC.munmap(self._address, self.size)


def _address_of(part: memoryview) -> int:
    numpy = sys.modules["numpy"]  # ctypes gives addresses only of what may be written to
    return numpy.asarray(part).ctypes.data  # type: ignore[no-any-return]
