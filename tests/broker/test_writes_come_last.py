"""Functions in the broker compute first and write last: read from their text, and tried with overwritten keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from desk import A, B, Desk, header_of

from qserve.broker import connection, functions
from qserve.broker.library import Command
from qserve.wire.moves import INPUTS_LIMIT, Awaited, Join, Start
from qserve.wire.outcome import SESSION

C = "c" * 32

# -- what the text says ----------------------------------------------------------------------------

READS = {
    "EXISTS", "GET", "HGET", "HGETALL", "HLEN", "HMGET", "HSTRLEN", "HVALS", "INFO", "PTTL", "TIME", "TYPE", "XINFO",
    "XLEN", "XPENDING", "XRANGE", "ZCARD", "ZRANGE", "ZRANGEBYSCORE",
}  # fmt: skip
WRITERS = {
    "write_hash": {"redis.pcall", "pairs", "type", "unpack"},
    "write_mail": {"redis.pcall", "type"},
    "carry_out": {"redis.pcall", "pairs", "type", "unpack", "error", "write_hash", "write_mail"},
}
"""The functions that may write, and what they may call: nothing that can fail."""
BOUNDED = {"entry.fields", "writes[k]", "set, 1, set_count", "gone, 1, gone_count"}
"""What they may unpack: its length was checked when it was collected."""
DEFINITION = re.compile(
    r"^(?:(?:local )?function ([\w.]+)\(.*?^end$|(\w+) = function\(.*?^end$"
    r"|redis\.register_function\{ function_name = '(\w+)'.*?^end \}$)",
    re.MULTILINE | re.DOTALL,
)


def faults(library: str) -> Iterator[str]:
    """What stands in the text of a library that might fail after a write."""
    code = re.sub(r"--[^\n]*", "", library)
    bodies: dict[str, str] = {}
    for found in DEFINITION.finditer(code):
        bodies[next(filter(None, found.groups()))] = found[0]
    for name, body in bodies.items():
        yield from faults_of_writer(name, body) if name in WRITERS else faults_of_reader(name, body)
    outside = DEFINITION.sub("", code)
    if re.search(r"\bredis\.|\bcarry_out\b", outside):
        yield "a command outside every function"
    if set(WRITERS) - set(bodies):
        yield "there is no function that writes"


def faults_of_reader(name: str, body: str) -> Iterator[str]:
    for use in re.finditer(r"\bredis\b(\.p?call\('([A-Z]+)'|\.sha1hex\(|\.register_function\{)?", body):
        if not use[1] or (use[2] and use[2] not in READS):
            yield f"{name} writes, or sends a command that cannot be read: {use[0]}"
    for writer in re.finditer(rf"\b({'|'.join(WRITERS)})\b(\(\)\n\s*return (\w+|\w+\.\w+)\n)?", body):
        if writer[1] != "carry_out" or not writer[2] or not name.startswith("qserve_"):
            yield f"{name} goes on after it has written, or does not write last"


def faults_of_writer(name: str, body: str) -> Iterator[str]:
    inner = body.partition("\n")[2]
    for called in re.findall(r"\b([A-Za-z_][\w.]*)\s*[({']", re.sub(r"'[^'\n]*'", "''", inner)):
        if called not in WRITERS[name] | {"if", "and", "or", "not", "return"}:
            yield f"{name} calls {called}, which may fail"
    for what in re.findall(r"\bunpack\(([^()]*)\)", inner):
        if what not in BOUNDED:
            yield f"{name} unpacks {what}, whose length nobody has checked"
    before_error, _, _ = inner.rpartition("error(")
    if set(re.findall(r"redis\.pcall\('(\w+)'", before_error)) - {"XADD", "XDEL"} or "write_hash(" in before_error:
        yield f"{name} fails after it has written"


def test_nothing_that_can_fail_follows_the_first_write() -> None:
    text = connection.LOAD[-1]
    assert isinstance(text, str)
    assert list(faults(text)) == []


@pytest.mark.parametrize(
    ("search", "replace"),
    [
        ("carry_out()\nreturn given", "carry_out()\nreturn given + 1"),
        ("carry_out()\nreturn reply", "carry_out()\nreturn cmsgpack.pack(reply)"),
        ("carry_out()\nreturn found", "carry_out()\nlocal last = unpack(found)\nreturn last"),
        ("local made, count = 0, #pending", "redis.call('DEL', stream)\nlocal made, count = 0, #pending"),
        ("local made, count = 0, #pending", "redis.pcall(stream)\nlocal made, count = 0, #pending"),
        ("local made, count = 0, #pending", "local call = redis\nlocal made, count = 0, #pending"),
        ("local made, count = 0, #pending", "write_mail(stream, '')\nlocal made, count = 0, #pending"),
        ("  local filled = 0\n", "  carry_out()\n  local filled = 0\n"),
        ("redis.pcall('XDEL', removed[k], removed[k + 1])", "redis.call('XDEL', removed[k], removed[k + 1])"),
        ("redis.pcall(unpack(writes[k]))", "redis.pcall(unpack(cmsgpack.unpack(writes[k])))"),
        ("unpack(set, 1, set_count)", "unpack(hash)"),
        ("  if lives[key] then", "  if tonumber(lives[key]) > 0 then"),
        ("write_mail(mail[k], mail[k + 1]) end", "write_mail(mail[k], mail[k + 1]) end\n  error('too late')"),
        ("        error(id)\n", "        redis.pcall('DEL', entry.stream)\n        error(id)\n"),
    ],
)
def test_a_function_that_may_fail_after_a_write_is_found(search: str, replace: str) -> None:
    text = connection.LOAD[-1]
    assert isinstance(text, str)
    assert search in text

    assert list(faults(text.replace(search, replace, 1)))


# -- what happens when a key holds something else ---------------------------------------------------

Scene = Callable[[Desk], Command]
SCENES: list[Scene] = []


def scene(build: Scene) -> Scene:
    SCENES.append(build)
    return build


def begun(desk: Desk, request_id: str = A) -> bytes:
    """A request with a call that runs, a join, a second mailbox, and another request that waits for it."""
    desk.submit(request_id, [Start(desk.one, "0", [b"x"]), Join(desk.two, "1", 2, [(1, b"right")])])
    desk.watch(request_id, desk.keys.mailbox("you"))
    ((entry, _),) = desk.fetch(desk.one)
    waits = [Awaited(desk.keys.request(request_id), desk.two, "m", 2, 1)]
    desk.submit(B, [Join(desk.two, "m", 2, [(0, b"template")])], awaited=waits)
    return entry


def commit_of(desk: Desk, entry: bytes, **end: Any) -> Command:
    return functions.commit(desk.one, desk.keys.request(A), entry, A, desk.epoch, entry.decode(), "0", **end)


@scene
def submit(desk: Desk) -> Command:
    begun(desk)
    moves = [Start(desk.one, "0", [b"x"]), Join(desk.two, "1", 3, [(2, b"right")])]
    waits = [Awaited(desk.keys.request(A), desk.two, "1", 3, 1)]
    return functions.submit(
        desk.keys.request(C), C, desk.epoch, header_of(C), desk.mailbox, 60_000, 60_000, moves, waits
    )


@scene
def commit_that_goes_on(desk: Desk) -> Command:
    return commit_of(desk, begun(desk), moves=[Start(desk.one, "2", [b"y"]), Join(desk.two, "1", 2, [(0, b"left")])])


@scene
def commit_that_ends(desk: Desk) -> Command:
    return commit_of(desk, begun(desk), state="d", payload=b"result")


@scene
def commit_that_fails(desk: Desk) -> Command:
    return commit_of(desk, begun(desk), state="f", payload=b"why")


@scene
def commit_for_a_dead_letter(desk: Desk) -> Command:
    desk.submit(A, [Start(desk.one, "0", [b"x"]), Start(desk.two, "5", [b"x"])])
    ((entry, _),), ((other, _),) = desk.fetch(desk.one), desk.fetch(desk.two)
    desk.dead_letter(desk.two, other, A, "retries", b"why")
    return commit_of(desk, entry, moves=[Start(desk.two, "1", [b"y"])])


@scene
def postpone(desk: Desk) -> Command:
    delayed = desk.keys.delayed_of(desk.one)
    return functions.postpone(desk.one, desk.keys.request(A), delayed, begun(desk), 0, 1, 60_000, "replica", "no")


@scene
def wake(desk: Desk) -> Command:
    desk.client.execute_command(*postpone(desk))
    return functions.wake(desk.keys.delayed_of(desk.one), desk.one)


@scene
def dead_letter(desk: Desk) -> Command:
    return functions.dead_letter(desk.one, desk.keys.request(A), begun(desk), A, "retries", b"failed", "replica", "no")


@scene
def give_back(desk: Desk) -> Command:
    return functions.give_back(desk.one, desk.two, [begun(desk)], desk.keys.request(""))


@scene
def reclaim(desk: Desk) -> Command:
    begun(desk)
    return functions.reclaim(desk.one, desk.two, "replica", 3, b"lost", desk.keys.request(""))


@scene
def reclaim_for_the_last_time(desk: Desk) -> Command:
    begun(desk)
    return functions.reclaim(desk.one, desk.two, "replica", 1, b"lost", desk.keys.request(""))


@scene
def disband(desk: Desk) -> Command:
    begun(desk)
    return functions.disband(desk.one, desk.two, desk.keys.models_of(desk.one), "replica", desk.keys.request(""))


@scene
def close(desk: Desk) -> Command:
    begun(desk)
    return functions.close(desk.keys.request(A), A, "c", b"")


@scene
def emit(desk: Desk) -> Command:
    begun(desk)
    return functions.emit(desk.keys.request(A), A, 0, [b"item", b"another"])


@scene
def note(desk: Desk) -> Command:
    return functions.note(desk.keys.request(A), desk.one, begun(desk), "0", b"half of it", True)


@scene
def observe(desk: Desk) -> Command:
    begun(desk)
    return functions.observe(desk.keys.request(A), A, 0)


@scene
def commit_that_is_followed(desk: Desk) -> Command:
    entry = begun(desk)
    desk.client.execute_command(*functions.note(desk.keys.request(A), desk.one, entry, "0", b"half of it", True))
    return commit_of(desk, entry, state="d", payload=b"result", event=b"done")


@scene
def commit_that_is_traced(desk: Desk) -> Command:
    desk.submit(A, [Start(desk.one, "0", [b"x"])], is_traced=True)
    ((entry, _),) = desk.fetch(desk.one)
    return commit_of(desk, entry, state="d", payload=b"result", event=b"done")


@scene
def tell(desk: Desk) -> Command:
    desk.submit(A, [Start(desk.one, SESSION, [b"x"])])
    desk.fetch(desk.one)
    return functions.tell(desk.keys.request(A), A, 0, b"part")


@scene
def heard(desk: Desk) -> Command:
    begun(desk)
    return functions.heard(desk.keys.request(A), 1)


@scene
def reclaim_of_a_session(desk: Desk) -> Command:
    tell(desk)
    return functions.reclaim(desk.one, desk.two, "replica", 3, b"lost", desk.keys.request(""))


@scene
def take(desk: Desk) -> Command:
    begun(desk)
    return functions.take(desk.keys.request(A), 1)


@scene
def forget(desk: Desk) -> Command:
    begun(desk)
    return functions.forget([desk.keys.request(A), desk.keys.request(B)])


@scene
def release(desk: Desk) -> Command:
    begun(desk)
    desk.client.execute_command(*functions.emit(desk.keys.request(A), A, 0, [b"item"], C))
    return functions.release([desk.keys.value(C)])


@scene
def commit_with_stored_values(desk: Desk) -> Command:
    desk.submit(A, [Start(desk.one, "0", [b"x"])], values={B: 1})
    ((entry, _),) = desk.fetch(desk.one)
    return commit_of(desk, entry, moves=[Start(desk.one, "2", [b"y"])], values={C: 1, B: -1})


@scene
def retire(desk: Desk) -> Command:
    desk.client.execute_command(*postpone(desk))
    streams = [desk.one, desk.two]
    keys = [*streams, *map(desk.keys.delayed_of, streams)]
    return functions.retire(keys, True, b"deleted", desk.keys.request(""))


@scene
def advertise(desk: Desk) -> Command:
    personal = desk.keys.personal(desk.one, "replica")
    return functions.advertise(desk.keys.models_of(desk.one), personal, "replica", 60_000, ["model"])


@scene
def replay(desk: Desk) -> Command:
    desk.client.execute_command(*dead_letter(desk))
    letter, request = desk.keys.dead_letter(A), desk.keys.request(A)
    return functions.replay(letter, request, A, header_of(A), 60_000, 60_000, {})


@scene
def purge(desk: Desk) -> Command:
    desk.client.execute_command(*dead_letter(desk))
    return functions.purge(desk.keys.dead_letters, [desk.keys.dead_letter(A)], [A])


def content(desk: Desk) -> dict[str, bytes]:
    """All keys of the test, with what they hold."""
    names = desk.client.scan_iter(desk.keys._name("*"), count=1000)
    return {name.decode(): desk.client.dump(name) for name in names}


def clear(desk: Desk) -> None:
    names = list(desk.client.scan_iter(desk.keys._name("*"), count=1000))
    if names:
        desk.client.delete(*names)
    Desk(desk.client, desk.keys)


@pytest.mark.parametrize("build", SCENES, ids=lambda build: build.__name__)
def test_a_function_that_meets_a_key_of_another_type_does_all_or_nothing(desk: Desk, build: Scene) -> None:
    command = build(desk)
    before = content(desk)
    desk.client.execute_command(*command)
    after = content(desk)
    touched = sorted(name for name in before | after if before.get(name) != after.get(name))
    assert touched

    for name in [*touched, *sorted(set(before) - set(touched))]:
        clear(desk)
        command = build(desk)
        desk.client.delete(name)
        desk.client.set(name, "something else", ex=60) if ":epoch" not in name else desk.client.sadd(name, "else")
        changed = content(desk)

        try:
            reply = desk.client.execute_command(*command)
        except redis.ResponseError:
            reply = b"BADKEY"

        now = content(desk)
        if name in touched and (name == desk.keys.dead_letters or (build is postpone and ":z:" in name)):
            assert reply == b"BADKEY"
        if reply in (b"BADKEY", b"MOVED", b"STALE", b"LOST", b"NONE"):
            assert now == changed, f"half of it has happened, with another type in {name}"
        elif now != changed and name != desk.keys.request(A) and ":z:" not in name:
            # what waits for another request, or beside a queue, is lost with its own keys; all else has happened
            of_waiter = {
                *(desk.two, desk.keys.delayed_of(desk.two), desk.keys.request(B), desk.keys.mailbox("me")),
                desk.keys.ends,
            }
            expected = set(touched) - {name} - (of_waiter if name in of_waiter else set())
            if name == desk.one:  # with it goes what says who runs its calls
                expected -= {desk.keys.mailbox("replica")}
            assert {one for one in expected if now.get(one) == changed.get(one)} == set(), f"half, without {name}"
    clear(desk)


def test_a_stream_that_has_given_its_last_id_leaves_a_commit_undone(desk: Desk) -> None:
    entry = begun(desk)
    desk.client.xadd(desk.two, {"s": "0"}, id=f"{2**64 - 1}-{2**64 - 1}")
    before = content(desk)

    with pytest.raises(redis.ResponseError, match="exhausted"):
        moves = [Start(desk.one, "2", [b"y"]), Start(desk.two, "3", [b"y"])]
        desk.client.execute_command(*commit_of(desk, entry, moves=moves))

    after = content(desk)
    assert before.pop(desk.one) != after.pop(desk.one)  # it remembers the id that was undone
    assert after == before
    assert [one for one, _ in desk.client.xrange(desk.one)] == [entry]
    assert desk.commit(desk.one, entry, A, state="f", payload=b"why") == b"OK"
    clear(desk)


def test_what_a_failed_function_has_collected_is_not_written_by_the_next_one(desk: Desk) -> None:
    entry = begun(desk)
    with pytest.raises(redis.ResponseError, match="5000 inputs, more than"):
        moves = [Start(desk.two, "3", [b"y"]), Start(desk.two, "4", [b""] * 5000)]
        desk.client.execute_command(*commit_of(desk, entry, moves=moves))

    desk.client.execute_command(*functions.emit(desk.keys.request(B), B, 0, [b"item"]))

    assert desk.client.xpending(desk.one, "replicas")["pending"] == 1
    assert desk.client.xlen(desk.two) == 0
    clear(desk)


@pytest.mark.parametrize("number", [0, 1, 255, 256, 257, INPUTS_LIMIT, INPUTS_LIMIT + 1, 4_000, 100_000])
def test_a_step_of_any_number_of_inputs_starts_with_all_of_them_or_nothing_happens(desk: Desk, number: int) -> None:
    entry, values = begun(desk), [b"%d" % slot for slot in range(number)]
    joined = [Join(desk.two, "1", number + 2, [(slot + 2, value) for slot, value in enumerate(values)])]
    for moves, expected in (([Start(desk.two, "5", values)], number), (joined, number + 2)):
        before = content(desk)
        try:
            assert desk.client.execute_command(*commit_of(desk, entry, moves=moves)) == b"OK"
        except redis.ResponseError as error:
            assert "more" in str(error)
            assert expected > INPUTS_LIMIT
            assert content(desk) == before
            continue
        assert expected <= INPUTS_LIMIT
        found = desk.fetch(desk.two)
        if moves is joined:
            assert found == []  # one of the inputs that were known before is still missing
            break
        ((_, fields),) = found
        assert [fields[b"%d" % slot] for slot in range(number)] == values
        clear(desk)
        entry = begun(desk)
    clear(desk)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 255, 256, 257, 4_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_a_result_goes_to_any_number_of_steps_in_one_act(desk: Desk, number: int) -> None:
    entry = begun(desk)
    moves = [Start(desk.two, str(step + 2), [b"x"]) for step in range(number)]

    assert desk.client.execute_command(*commit_of(desk, entry, moves=moves)) == b"OK"

    assert desk.client.xlen(desk.two) == number
    assert desk.client.execute_command(*functions.close(desk.keys.request(A), A, "c", b"")) == 1
    assert desk.client.xlen(desk.two) == 0
