"""`ValueStore`: which tier takes a value, and the one door to all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from qserve.base.forks import on_fork
from qserve.base.keys import Keys
from qserve.base.log import get_logger
from qserve.base.once import may_say
from qserve.base.settings import Settings
from qserve.exceptions import StoreUnavailable, ValueUnreachable
from qserve.payloads.chunks import Chunks
from qserve.payloads.folder import Folder
from qserve.payloads.segments import Segments, is_possible
from qserve.payloads.shm_folder import SHM
from qserve.payloads.tier import Filler, IsKnown, Tier, TierFull, TierStats
from qserve.wire.claim import BROKER, FOLDER, MEMORY, Claim, Kind, Part

log: Final = get_logger(__name__)
_SAID_FOR_S = 3600.0


@dataclass
class Puts:
    """What a process has stored in one tier, and how many values did not fit and went to the next one."""

    values: int = 0
    bytes: int = 0
    fallbacks: int = 0


class ValueStore:
    """The payload store of one process. Its methods may be called by any thread.

    Nothing is opened or created before it is needed: a process without large values pays nothing.

    Parameters:
      settings: Say which tiers there are, and their limits.
      epoch: Returns the epoch of the broker, by which installations on one host are kept apart; "" if it is not known
        here, and to be read from the broker.
    """

    def __init__(self, settings: Settings, epoch: Callable[[], str]) -> None:
        self._settings = settings
        self._keys = Keys(settings.namespace)
        self._epoch = epoch
        self._lock = threading.RLock()  # the tier for memory asks the broker's for the epoch
        self._made: dict[str, Tier] = {}
        on_fork(self)
        self.threshold: int = settings.payload_threshold
        self.max_bytes: int = settings.max_value_bytes
        self.puts: dict[str, Puts] = {}
        names = settings.payloads or ((MEMORY, BROKER) if settings.broker_embedded else (BROKER,))
        durable = [name for name in names if name != MEMORY] or [BROKER]
        possible = is_possible()
        passing = [name for name in names if name != MEMORY or possible]
        self._of_kind = {
            Kind.PASSING: [*passing, *(name for name in durable if name not in passing)],
            Kind.KEPT: passing if settings.broker_embedded and passing else durable,
        }

    def leave_to_parent(self) -> None:
        """In a forked child: a thread of the parent may hold the lock. Its tiers begin anew by themselves."""
        self._lock = threading.RLock()

    def put(self, parts: Sequence[Part], size: int, kind: Kind = Kind.PASSING) -> Claim:
        """Store a value in the first tier that has room, and return its claim.

        Until ``settled`` is called the value belongs to this process: it goes when this process dies. The caller must
        call ``settled`` or ``forget`` for each claim.

        Parameters:
          parts: The bytes, by their offsets; there may be gaps between them.
          size: How many bytes it has, to the end of the last part.
          kind: ``PASSING`` for a value that another step takes; ``KEPT`` for one that must outlive its host.

        Raises:
          BrokerError: The broker is the last tier, and cannot take it.
          StoreUnavailable: The same for a folder.
        """
        names = self._of_kind[kind]
        for name in names:
            try:
                claim = self.tier(name).put(parts, size)
            except TierFull as error:
                self.go_on(name, names, size, error)
            else:
                self.count(name, size)
                return claim
        raise AssertionError("there is no tier")

    def filler(self, kind: Kind, size: int | None = None) -> StoreFiller:
        """Return what stores a value piece by piece, in the first tier that has room for it.

        When that runs out of room half-way, the value moves on to the next tier.

        Parameters:
          kind: See ``put``, also for the errors that any of it may raise.
          size: Its bytes, if they are known.
        """
        return StoreFiller(self, self._of_kind[kind], size)

    def pieces(self, claim: Claim) -> Iterator[bytes]:
        """Return the bytes of a stored value piece by piece, none of which is kept; raises as ``get`` does.

        A value must not be forgotten before all of them were taken. Whether the bytes of the broker or of a folder are
        those that were stored is known with the last one.
        """
        return self._holder(claim).pieces(claim)

    def go_on(self, name: str, names: Sequence[str], size: int, error: TierFull) -> None:
        """Count a value that did not fit into a tier, and go on with the next one; StoreUnavailable after the last."""
        if name == names[-1]:
            raise StoreUnavailable(f"a value of {size} bytes cannot be stored: {error}") from error
        counted = self.puts.setdefault(name, Puts())
        counted.fallbacks += 1
        if counted.fallbacks == 1 and may_say(f"payloads: {name}", _SAID_FOR_S):
            log.warning("%s takes no more large values, which go to %s: %s", name, names[-1], error)

    def count(self, name: str, size: int) -> None:
        """Count a value that was stored."""
        counted = self.puts.setdefault(name, Puts())
        counted.values += 1
        counted.bytes += size

    def get(self, claim: Claim) -> memoryview:
        """Return the bytes of a stored value, read-only; in memory it never changes while a view of it is used.

        Raises:
          ValueLost: It is gone.
          ValueUnreachable: It is in the memory of another host, or in a folder that ``QSERVE_PAYLOADS`` does not name.
          PayloadError: The bytes are not those that were stored.
          BrokerError, StoreUnavailable: The broker or the folder cannot be reached.
        """
        return self._holder(claim).get(claim)

    def is_heavy(self, size: int, kind: Kind = Kind.PASSING) -> bool:
        """Return whether to store a value takes so long that an event loop should leave it to a thread."""
        return size >= self.tier(self._of_kind[kind][0]).heavy_from

    def is_heavy_to_get(self, claim: Claim) -> bool:
        """Return whether to read a value takes so long that an event loop should leave it to a thread."""
        return claim.size >= self._holder(claim).heavy_from

    def settled(self, claims: Iterable[Claim]) -> None:
        """Note that the broker knows these values of this process: from now on they outlive it.

        Call it once the broker has answered the command that tells it of them. Crash before that: the value is swept
        if the broker does not know it.
        """
        for tier, some in self._by_tier(claims):
            tier.settled([claim.name for claim in some])

    def forget(self, claims: Iterable[Claim]) -> None:
        """Remove values that nobody wants any more; those that are gone already are ignored.

        What is being read stays until its readers are done.
        """
        for tier, some in self._by_tier(claims):
            tier.forget(some)

    def sweep(self, is_known: IsKnown, store: str = "") -> None:
        """Remove what dead processes have left in all tiers, and values that the broker does not know.

        Parameters:
          is_known: Takes names of values, and returns of each whether the broker knows it.
          store: The only tier that is swept; "" for all of them.
        """
        for name in self._of_kind[Kind.PASSING]:
            if store in ("", name):
                self.tier(name).sweep(is_known)

    def trim(self) -> None:
        """Give back memory that this process keeps for its next values, and has not needed for ten seconds.

        Call it every few seconds; it costs nothing where there is nothing to give back.
        """
        for tier in list(self._made.values()):
            tier.trim()

    def stats(self, store: str = "") -> list[TierStats]:
        """Return what each tier of this installation holds, as far as this host can see; the broker does not count.

        Parameters:
          store: The only tier; "" for all of them.
        """
        tiers = [self.tier(name) for name in self._of_kind[Kind.PASSING] if store in ("", name)]
        return [found for tier in tiers if (found := tier.stats()) is not None]

    @property
    def stores_in_memory(self) -> bool:
        """Whether values that are passed on are stored in the memory of this host."""
        return MEMORY in self._of_kind[Kind.PASSING]

    @property
    def place(self) -> str:
        """Where this host has values in its memory: two workers that have the same share it. "" if there is none.

        Its first part is the host's name, its second the token of the memory.
        """
        tier = self.tier(MEMORY) if self.stores_in_memory else None
        return tier.place if isinstance(tier, Segments) else ""

    def close(self) -> None:
        """Close connections and give back memory; what was stored stays."""
        for tier in list(self._made.values()):
            tier.close()

    def _holder(self, claim: Claim) -> Tier:
        """Return the tier that holds a value."""
        if claim.store != FOLDER:
            return self.tier(claim.store)
        folders = [tier for name in self._of_kind[Kind.PASSING] if isinstance(tier := self.tier(name), Folder)]
        if not folders:
            raise ValueUnreachable(
                f"a value of {claim.size} bytes is in a folder, and QSERVE_PAYLOADS names none: set it to the same"
                " stores in every process"
            )
        return next((tier for tier in folders if tier.has(claim)), folders[0])

    def _by_tier(self, claims: Iterable[Claim]) -> Iterable[tuple[Tier, list[Claim]]]:
        found: dict[str, tuple[Tier, list[Claim]]] = {}
        for claim in claims:
            tier = self._holder(claim)
            found.setdefault(tier.name, (tier, []))[1].append(claim)
        return found.values()

    def tier(self, name: str) -> Tier:
        """Return a tier by its name."""
        with self._lock:
            if name not in self._made:
                self._made[name] = self._make(name)
            return self._made[name]

    def _make(self, name: str) -> Tier:
        if name == MEMORY:
            folder = urlsplit(self._settings.named_broker).path.rpartition("/")[0]
            embedded_in = folder if self._settings.broker_embedded else ""
            return Segments(self._known_epoch, embedded_in, self._settings.shm_limit, SHM)
        if name == BROKER:
            return Chunks(self._settings.named_broker, self._keys)
        return Folder(name, self._settings.namespace)

    def _known_epoch(self) -> str:
        epoch = self._epoch()
        if not epoch:
            broker = self.tier(BROKER)
            assert isinstance(broker, Chunks)
            epoch = broker.epoch()
        return epoch


class StoreFiller:
    """See ``Filler``: stores a value piece by piece, in the next tier when one is full."""

    def __init__(self, store: ValueStore, names: Sequence[str], size: int | None) -> None:
        self._store = store
        self._names = names
        self._size = size
        self._at = -1
        self._filler: Filler | None = None
        self.size: int = 0
        self._next(None)

    def _next(self, error: TierFull | None) -> None:
        """Go on with the next tier, and with all that was written so far; StoreUnavailable after the last one."""
        former, self._filler = self._filler, None
        try:
            while self._filler is None:
                if error is not None:
                    self._store.go_on(self._names[self._at], self._names, self._size or self.size, error)
                self._at += 1
                try:
                    self._filler = self._begun(self._names[self._at], former)
                except TierFull as another:
                    error = another
        finally:
            if former is not None:
                former.abort()

    def _begun(self, name: str, former: Filler | None) -> Filler:
        filler = self._store.tier(name).filler(self._size)
        try:
            for piece in () if former is None else former.written():
                filler.write(memoryview(piece))
        except BaseException:
            filler.abort()
            raise
        return filler

    @property
    def tier(self) -> str:
        """Where the value is now."""
        return self._names[self._at]

    def write(self, piece: memoryview) -> None:
        assert self._filler is not None
        try:
            self._filler.write(piece)
        except TierFull as error:
            self._next(error)
            self.write(piece)
        else:
            self.size += len(piece)

    def written(self) -> Iterator[memoryview | bytes]:
        assert self._filler is not None
        return self._filler.written()

    def finish(self) -> Claim:
        assert self._filler is not None
        try:
            claim = self._filler.finish()
        except TierFull as error:
            self._next(error)
            return self.finish()
        self._store.count(self._names[self._at], self.size)
        return claim

    def abort(self) -> None:
        if self._filler is not None:
            self._filler.abort()
