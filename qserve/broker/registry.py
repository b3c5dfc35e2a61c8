"""The registry of applications in the broker, which callers, workers and gateways read."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, NamedTuple

from redis import Redis

from qserve.base.clock import Clock, clock
from qserve.base.keys import BEAT_TTL_MS, CHANGES_KEPT, RETIRED_TTL_MS, Keys
from qserve.base.log import get_logger
from qserve.broker.connection import broker_errors, create_group, without_strangers
from qserve.broker.faults import Faults
from qserve.exceptions import AppNotFound, DeployError, PayloadError, WrongType
from qserve.wire.application import ApplicationRecord, NewerRecord
from qserve.wire.replies import each, last_position, order_of, position, text, warn_once
from qserve.wire.sealing import Seal

log: Final = get_logger(__name__)
NO_CHANGE = "0-0"
"""The newest change of a registry in which nothing was ever registered."""
ACTIVE, NEXT, OLD = "active", "next", "old:"
"""The places of an application: ``OLD`` and its version for one that was replaced and may not be finished."""
_OLD_KEPT = 16
_CODES_KEPT = 3
"""Of how many versions that were replaced the code stays, for a rollback."""


class _Seen(NamedTuple):
    """The newest registration that was read from one place.

    Parameters:
      change: The change that it was registered with.
      record, data: None and b"" once it was found removed.
    """

    change: tuple[int, ...]
    record: ApplicationRecord | None
    data: bytes


class Registry:
    """The applications in one broker.

    A new version is staged first: supervisors start its replicas beside those of the active version, and
    callers do not see it until it is promoted.

    Every registration carries, inside its seal, its place and the id of the change that it was made with; the ids that
    the broker gives out only grow. So an old registration that is put back is refused by every process that has
    read a newer one, and that one stays in force.

    Parameters:
      client: A connection to the broker.
      keys: The installation's key names.
      seal: Records are sealed: they name the modules that replicas import.

    Attributes:
      faults: Which deployments cannot be started, as of the last time that an application was read.
    """

    def __init__(self, client: Redis, keys: Keys, seal: Seal) -> None:
        self._client = client
        self._keys = keys
        self._seal = seal
        self.faults: Final = Faults(client, keys, seal)
        self._seen: dict[tuple[str, str], _Seen] = {}
        self._refused: dict[tuple[str, str], bytes] = {}

    @broker_errors()
    def stage(self, record: ApplicationRecord, code: bytes = b"") -> str:
        """Register a version that is to be started; return the id of the change."""
        self.remove_strangers(record.name)
        self._prepare(record)
        before = self.readable(record.name, NEXT)
        sealed = self._sealed(record, NEXT)
        pipe = self._client.pipeline()
        for other in before:  # whose deployer has died
            self._drop(pipe, other)
        if code:
            pipe.set(self._keys.code(record.name, record.version), code)
        pipe.hset(self._keys.application(record.name), NEXT, sealed)
        pipe.hset(self._keys.applications, record.name, record.version)
        return self._announce(pipe, record.name)

    @broker_errors()
    def share(self, record: ApplicationRecord, part: float, until_ms: float) -> str:
        """Give a staged version a part of the new requests, from 0 to 1; return the id of the change.

        Crash after it: callers give it none when the time is over, and supervisors end its replicas.

        Parameters:
          until_ms: Until when, by the broker's clock.

        Raises:
          DeployError: Another deploy has staged its own.
        """
        key = self._keys.application(record.name)
        sealed = self._sealed(replace(record, share=part, share_until_ms=until_ms), NEXT)

        def write(pipe: Any) -> None:
            is_mine = any(other.version == record.version for other in self.readable(record.name, NEXT))
            pipe.multi()
            if is_mine:
                pipe.hset(key, NEXT, sealed)
                self._add_change(pipe, record.name)

        replies: Any = self._client.transaction(write, key)
        if not replies:
            raise DeployError(f"another deploy of application {record.name!r} has taken over")
        return position(replies[-1])

    def _prepare(self, record: ApplicationRecord) -> None:
        """Create the queues and the epoch; harmless when they exist.

        The queues come first: a submission to a queue that is missing is taken for one to an old version.
        """
        for name in record.replicated:
            create_group(self._client, record.stream(self._keys, name))
        self.keep_epoch()

    @broker_errors()
    def keep_epoch(self) -> None:
        """Give the broker an epoch unless it has one: without it, nothing is accepted."""
        key = self._keys.epoch

        def keep() -> None:
            self._client.pipeline(transaction=False).set(key, os.urandom(8).hex(), nx=True).get(key).execute()

        without_strangers(self._client, keep, key)

    @broker_errors()
    def restore(self, record: ApplicationRecord, code: bytes = b"") -> str:
        """Register an active version again in a broker that has lost it; return the id of the change.

        Crash on the way: part of it is there, and the next call adds the rest. Several processes may do it at once; a
        deployment at the same time wins.

        Raises:
          DeployError: Another application has been deployed at its path meanwhile.
        """
        sealed = self._sealed(record, ACTIVE)

        def write(pipe: Any) -> None:
            if code:
                pipe.set(self._keys.code(record.name, record.version), code, nx=True)
            pipe.hsetnx(self._keys.application(record.name), ACTIVE, sealed)
            pipe.hsetnx(self._keys.applications, record.name, record.version)

        self._claim_prefix(record, write)
        # the epoch last: once it is there, submissions are accepted and must find queues and application
        self._prepare(record)
        return self._announce(self._client.pipeline(), record.name)

    @broker_errors()
    def promote(
        self, record: ApplicationRecord, keeps_before: bool = False, claim: tuple[str, bytes] | None = None
    ) -> str:
        """Make a staged version the active one; return the id of the change.

        One transaction: a reader sees the old version or the new one, and learns of the change after it. Of two
        applications that are promoted to one path at the same moment, the second is refused.

        Parameters:
          keeps_before: Keep the registration before also if it is of the same version, so that one can go back to it.
          claim: A key, and what has to be in it for this deploy to be the one that may.

        Raises:
          DeployError: Another application is served at its path, or another deploy has the claim; nothing has changed
            then.
        """
        self.remove_strangers(record.name)
        staged = [other for other in self.readable(record.name, NEXT) if other.version != record.version]
        retired = next(iter(self.readable(record.name, ACTIVE)), None)
        sealed = self._sealed(record, ACTIVE)

        def write(pipe: Any) -> None:
            pipe.hset(self._keys.application(record.name), ACTIVE, sealed)
            pipe.hdel(self._keys.application(record.name), NEXT)
            for other in staged:
                self._drop(pipe, other)
            if retired is not None and retired.version != record.version:
                self._retire_queues(pipe, retired)
            if retired is not None and (keeps_before or retired.version != record.version):
                self._keep_old(pipe, retired)

        return self._claim_prefix(record, write, claim)

    def _claim_prefix(
        self, record: ApplicationRecord, write: Callable[[Any], None], claim: tuple[str, bytes] | None = None
    ) -> str:
        """Let ``write`` make a version the active one, unless its path is taken; return the id of the change.

        Each process that serves an application at a path adds a change in the same act. So the broker refuses the
        transaction when that has happened since the paths were read, and they are read again.
        """

        def check_and_write(pipe: Any) -> None:
            self.check_prefix(record)
            self._check_claim(pipe, record.name, claim)
            pipe.multi()
            write(pipe)
            self._add_change(pipe, record.name)

        watched = [self._keys.changes, *([] if claim is None else [claim[0]])]
        replies: Any = self._client.transaction(check_and_write, *watched)
        return position(replies[-1])

    def check_prefix(self, record: ApplicationRecord) -> None:
        """Raise DeployError if another application is served at the path of this one."""
        for other in self.all() if record.route_prefix is not None else ():
            if other.route_prefix == record.route_prefix and other.name != record.name:
                raise DeployError(
                    f"application {record.name!r} cannot be served at {record.route_prefix}: application"
                    f" {other.name!r} is served there. Choose another path with --route-prefix (route_prefix=... in"
                    f" Python), or remove that one with qserve.delete({other.name!r})"
                )

    @broker_errors()
    def withdraw(self, record: ApplicationRecord) -> str:
        """Drop a staged version, unless another deploy has staged its own; the active one stays as it is."""
        key = self._keys.application(record.name)

        def write(pipe: Any) -> None:
            staged = self.readable(record.name, NEXT)
            is_mine = all(other.version == record.version for other in staged)
            has_active = bool(self.readable(record.name, ACTIVE))
            pipe.multi()
            self._drop(pipe, staged[0] if staged and is_mine else record)
            if is_mine:
                pipe.hdel(key, NEXT)
            if is_mine and not has_active:
                pipe.hdel(self._keys.applications, record.name)
            self._add_change(pipe, record.name)

        replies: Any = self._client.transaction(write, key)
        return position(replies[-1])

    @broker_errors()
    def delete(self, app: str, claim: tuple[str, bytes] | None = None) -> str:
        """Remove an application; its supervisors stop its replicas.

        Parameters:
          claim: As ``promote`` takes it.

        Raises:
          DeployError: Another deploy has the claim; nothing has changed then.
        """
        self.remove_strangers(app)

        def write(pipe: Any) -> None:
            records = [*self.readable(app, ACTIVE, NEXT), *self.old(app)]
            self._check_claim(pipe, app, claim)
            pipe.multi()
            pipe.delete(self._keys.application(app), self._keys.wishes(app), self._keys.scaled(app))
            pipe.hdel(self._keys.applications, app)
            for record in records:
                self._retire(pipe, record)
            self._add_change(pipe, app)

        replies: Any = self._client.transaction(write, *([] if claim is None else [claim[0]]))
        return position(replies[-1])

    def _check_claim(self, pipe: Any, app: str, claim: tuple[str, bytes] | None) -> None:
        if claim is not None and pipe.get(claim[0]) != claim[1]:
            raise DeployError(f"another deploy of application {app!r} has taken over")

    @broker_errors()
    def remove_strangers(self, app: str = "") -> None:
        """Remove what was overwritten with another type of key: the registration of ``app``, and what all share.

        Crash on the way: what is left is found by the next call.
        """
        keys, client = self._keys, self._client
        own = keys.application(app)
        without_strangers(client, lambda: client.hmget(own, ACTIVE), own)
        without_strangers(client, lambda: client.xrevrange(keys.changes, count=1), keys.changes)
        self._restore_names()

    def _restore_names(self) -> None:
        """Write the set of applications again when it is lost, or was overwritten.

        In one act: a gateway that finds no application there would reply 404, and what somebody deploys at the same
        moment stays in the set.
        """
        client, key = self._client, self._keys.applications
        start = self._keys.application("")  # each registration has its application's name

        def write(pipe: Any) -> None:
            is_stranger = False
            try:
                with broker_errors():
                    is_whole = bool(pipe.hkeys(key))
            except WrongType:
                warn_once(f"key {key} was overwritten with something else, and is written again")
                is_whole, is_stranger = False, True
            found = client.scan_iter(start.replace("[", "\\[") + "*", count=1000)
            names = {} if is_whole else {name[len(start) :]: "" for name in found}
            pipe.multi()
            if is_stranger:
                pipe.delete(key)
            if names:
                pipe.hset(key, mapping=names)

        with suppress(WrongType), broker_errors():
            if client.hkeys(key):
                return
        client.transaction(write, key)

    def _drop(self, pipe: Any, record: ApplicationRecord) -> None:
        """Let a staged version end; one that got requests is kept, so that those that are left can be moved."""
        self._retire(pipe, record)
        if record.share_until_ms:
            self._keep_old(pipe, record)

    def _retire(self, pipe: Any, record: ApplicationRecord) -> None:
        pipe.pexpire(self._keys.code(record.name, record.version), RETIRED_TTL_MS)
        self._retire_queues(pipe, record)

    def _retire_queues(self, pipe: Any, record: ApplicationRecord) -> None:
        for name in record.deployments:
            pipe.pexpire(record.stream(self._keys, name), RETIRED_TTL_MS)

    def _keep_old(self, pipe: Any, retired: ApplicationRecord) -> None:
        """Register a version as old, so that its remaining calls can be moved and one can go back to it."""
        key, place = self._keys.application(retired.name), OLD + retired.version
        kept = [record for record in self._old_by_age(retired.name) if record.version != retired.version]
        for record in kept[_OLD_KEPT - 1 :]:
            pipe.hdel(key, OLD + record.version)
        for record in [one for one in kept if not one.share_until_ms][_CODES_KEPT - 1 : _CODES_KEPT]:
            pipe.pexpire(self._keys.code(record.name, record.version), RETIRED_TTL_MS)
        pipe.hset(key, place, self._seal.seal(_place(retired.name), replace(retired, place=place).encode()))

    def former(self, app: str) -> list[ApplicationRecord]:
        """Return the last versions that were replaced, the newest first, without those whose deploys failed."""
        return [record for record in self._old_by_age(app) if not record.share_until_ms]

    def _old_by_age(self, app: str) -> list[ApplicationRecord]:
        return sorted(self.old(app), key=lambda record: order_of(record.change), reverse=True)

    def old(self, app: str) -> list[ApplicationRecord]:
        """Return the last versions that were replaced, or got requests until their deploy failed.

        One that cannot be read is left out.
        """

        def read(item: tuple[bytes, bytes]) -> ApplicationRecord:
            record = ApplicationRecord.decode(self._seal.open(_place(app), item[1]))
            if OLD + record.version != record.place or record.place.encode() != item[0]:
                raise PayloadError(
                    f"version {record.version} of application {app!r} is not registered as a retired version"
                )
            return record

        try:
            with broker_errors():
                found: Any = self._client.hgetall(self._keys.application(app))
        except WrongType:
            return []
        return list(each((item for item in found.items() if item[0].startswith(OLD.encode())), read))

    @broker_errors()
    def announce(self, app: str) -> str:
        """Make all processes read the registry again, after a repair; return the id of the change."""
        self.remove_strangers(app)
        return self._announce(self._client.pipeline(transaction=False), app)

    def _announce(self, pipe: Any, app: str, change: str = "*") -> str:
        self._add_change(pipe, app, change)
        return position(pipe.execute()[-1])

    def _add_change(self, pipe: Any, app: str, change: str = "*") -> None:
        pipe.xadd(self._keys.changes, {"app": app}, id=change, maxlen=CHANGES_KEPT, approximate=False)

    def _sealed(self, record: ApplicationRecord, place: str) -> bytes:
        """Seal a record for its place, with the id of its own change.

        Crash after it: readers are notified of a change, and find none.
        """
        change = self._announce(self._client.pipeline(), record.name)
        newest = max((seen.change for (app, _), seen in self._seen.items() if app == record.name), default=(0, 0))
        if order_of(change) <= newest:  # the broker has lost its data, and its clock is behind
            change = self._announce(self._client.pipeline(), record.name, f"{newest[0] + 1}-0")
        return self._seal.seal(_place(record.name), replace(record, change=change, place=place).encode())

    def find(self, app: str) -> ApplicationRecord | None:
        """Return the active version of an application; None when there is none."""
        return next(self._read(app, ACTIVE), None)

    def serving(self, app: str) -> tuple[ApplicationRecord, ApplicationRecord | None] | None:
        """Return the active version of an application, and the one that gets a part of its requests, if there is one.

        None when there is no active version. See ``pick``.
        """
        found: list[ApplicationRecord] = []
        try:
            for record in self._read(app, ACTIVE, NEXT):
                found.append(record)
        except PayloadError:
            if not found:
                raise
        if not found or found[0].place != ACTIVE:
            return None
        return found[0], next((record for record in found[1:] if record.share), None)

    def pick(self, app: str) -> ApplicationRecord:
        """Return the version of an application that gets the next request, as ``get`` returns the active one."""
        found = self.serving(app)
        return self.get(app) if found is None else pick(*found)

    def versions(self, app: str) -> list[ApplicationRecord]:
        """Return the active and the staged version of an application, those that exist."""
        return list(self._read(app, ACTIVE, NEXT))

    def _read(self, app: str, *places: str) -> Iterator[ApplicationRecord]:
        try:
            with broker_errors():
                pipe = self._client.pipeline(transaction=False)
                pipe.hmget(self._keys.application(app), places).hgetall(self.faults.key)
                found, faults = pipe.execute(raise_on_error=False)
                if isinstance(found, Exception):
                    raise found
            self.faults.take_in(faults)
        except WrongType:
            found = [b""] * len(places)  # nothing that could be a registration
        for place, data in zip(places, found, strict=True):
            record = self._newest(app, place, data)
            if record is not None:
                yield record if record.place else replace(record, place=place)

    def _newest(self, app: str, place: str, data: bytes | None) -> ApplicationRecord | None:
        """Return what is registered at a place, or what was before if that was replaced by something older."""
        seen = self._seen.get((app, place))
        if data is None:
            if seen is not None:
                self._seen[app, place] = seen._replace(record=None, data=b"")
            return None
        if seen is not None and data == seen.data:
            return seen.record
        try:
            record = ApplicationRecord.decode(self._seal.open(_place(app), data))
            change = order_of(record.change)
            if record.place not in ("", place):
                raise PayloadError(f"the record was signed for key {record.place!r} but is stored under {place!r}")
            # a copy of one that was removed is old as well
            if seen is not None and (change < seen.change or (change == seen.change and not seen.data)):
                raise PayloadError(f"version {record.version} is older than what was registered before")
        except PayloadError as error:
            if seen is None:
                raise
            self._refuse(app, place, data, error)
            return seen.record
        self._seen[app, place] = _Seen(change, record, data)
        return record

    def _refuse(self, app: str, place: str, data: bytes, error: PayloadError) -> None:
        what = f"a registration of application {app!r} is refused, and what it replaced stays: {error}"
        if isinstance(error, NewerRecord):  # it is right, and must not be repaired
            warn_once(what)
        elif self._refused.get((app, place)) != data:
            self._refused[app, place] = data
            log.error("%s", what)

    def remember(self, record: ApplicationRecord) -> None:
        """Refuse registrations that are older than this active one, which another process has read."""
        self._seen.setdefault((record.name, ACTIVE), _Seen(order_of(record.change), record, b"-"))

    @broker_errors()
    def repair(self, app: str) -> None:
        """Put back what is registered of an application where something that was refused has replaced it.

        Several processes may do it at once, and a deployment at the same time wins.
        """
        key = self._keys.application(app)
        for place in (ACTIVE, NEXT):
            refused = self._refused.get((app, place))
            if refused is None:
                continue
            without_strangers(self._client, lambda: self._client.hget(key, ACTIVE), key)

            def put_back(pipe: Any, place: str = place, refused: bytes = refused) -> None:
                is_there = (pipe.hget(key, place) or b"") == refused
                before = self._seen[app, place].data
                pipe.multi()
                if is_there:
                    pipe.hset(key, place, before) if before else pipe.hdel(key, place)
                    self._add_change(pipe, app)

            self._client.transaction(put_back, key)
            del self._refused[app, place]

    def readable(self, app: str, *names: str) -> list[ApplicationRecord]:
        """Return the versions of an application that can be read; another one is named once in the log."""
        found: list[ApplicationRecord] = []
        for name in names:
            try:
                found += self._read(app, name)
            except PayloadError as error:
                warn_once(f"a version of application {app!r} is left out: {error}")
        return found

    def get(self, app: str) -> ApplicationRecord:
        """Return the active version of an application.

        Raises:
          AppNotFound: No application of that name is deployed; the message names those that are.
        """
        found = self.find(app)
        if found is None:
            known = ", ".join(sorted(record.name for record in self.all())) or "none"
            raise AppNotFound(f"no application named {app!r} is deployed; deployed are: {known}")
        return found

    @broker_errors()
    def names(self) -> list[str]:
        """Return the names of all applications, staged ones included; one that is not text is named once in the log."""
        found: Any = self._client.hkeys(self._keys.applications)
        return list(each(found, lambda name: text(name, "the name of an application")))

    def all(self) -> Iterator[ApplicationRecord]:
        """Yield the active version of every application."""
        for name in self.names():
            yield from self.readable(name, ACTIVE)

    @broker_errors()
    def publish(self, beat: str, change: str) -> None:
        """Say which change a gateway serves, and read on the way which deployments cannot be started."""
        sealed = self._seal.seal(beat.encode(), change.encode())
        pipe = self._client.pipeline(transaction=False)
        stored, faults = pipe.set(beat, sealed, px=BEAT_TTL_MS).hgetall(self.faults.key).execute(raise_on_error=False)
        if isinstance(stored, Exception):
            raise stored
        self.faults.take_in(faults)

    @broker_errors()
    def code(self, app: str, version: str) -> bytes:
        """Return the signed code that travels with a version; empty when replicas import it."""
        found: Any = self._client.get(self._keys.code(app, version))
        return found or b""

    @broker_errors()
    def last_change(self) -> str:
        """Return the id of the newest change."""
        return last_position(self._client.xrevrange(self._keys.changes, count=1)) or NO_CHANGE

    @broker_errors()
    def wait_for_change(self, after: str, timeout_s: float) -> str:
        """Block until there is a change after ``after``; return the newest id, or ``after``."""
        found: Any = self._client.xread({self._keys.changes: after}, block=max(1, int(timeout_s * 1000)))
        return position(found[0][1][-1][0]) if found else after


def pick(active: ApplicationRecord, staged: ApplicationRecord | None, clock: Clock = clock) -> ApplicationRecord:
    """Return the version that gets the next request: the active one, or by its share one that is being deployed."""
    if staged is None or random.random() >= staged.share or staged.share_until_ms < clock.judge_ms():
        return active
    return staged


def _place(app: str) -> bytes:
    return b"application|" + app.encode()
