"""Say a thing once for all processes of a role: the replicas of a worker, or the server processes of a gateway.

Processes that were forked from the one that has called ``share`` see in a piece of common memory what another of them
has just said. Nothing is locked, since a process that is stopped would keep the lock: of those that write at the same
moment the last one has the word, and only one that stood still between two steps writes a line that another has.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
import zlib

_ROW = struct.Struct("=IIQd")  # whether it is in use, the hash of what was said, who said it, and until when it holds
_ROWS = 512
_SETTLED_S = 0.002
"""After how long all that have met something at the same moment have written it; that happens a few times an hour."""
_board: mmap.mmap | None = None


def share() -> None:
    """Begin to share with the processes that are forked from now on."""
    global _board
    _board = mmap.mmap(-1, _ROW.size * _ROWS)


def may_say(what: str, for_s: float, speaker: int = 0) -> bool:
    """Return whether a line may be written: no other process has one about the same at this time.

    Parameters:
      what: What the line is about.
      for_s: How long no other has to write it.
      speaker: Tells those apart in one process of which only one has to write it.
    """
    if _board is None:
        return True
    key, now = zlib.crc32(what.encode(errors="replace")), time.monotonic()
    me, at = os.getpid() << 32 | speaker & 0xFFFFFFFF, key % _ROWS * _ROW.size
    is_used, known, other, until = _ROW.unpack_from(_board, at)
    if is_used and known == key and other != me and now < until:
        return False
    _ROW.pack_into(_board, at, 1, key, me, now + for_s)
    if is_used and known == key and other == me:
        return True
    time.sleep(_SETTLED_S)
    _, known, other, _ = _ROW.unpack_from(_board, at)
    return bool(known != key or other == me)
