"""Small mistakes in the function library, each of which the tests must notice.

Loaded as a pytest plugin (``-p mutants``), this runs every collected test once for each mistake, until one fails.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase

from qserve.broker import connection
from qserve.broker.functions import LIBRARY, LOAD
from qserve.machine.embedded_broker import EmbeddedBroker


@dataclass(frozen=True)
class Mutant:
    """One mistake: ``search``, which occurs once in the library, or in the function ``within``, becomes ``replace``."""

    name: str
    search: str
    replace: str = ""
    within: str = ""

    def apply(self, library: str) -> str:
        """The library with the mistake.

        Raises:
          ValueError: The text that is to be changed is not there, or more than once.
        """
        start, end = 0, len(library)
        if self.within:
            start = library.index(f"'qserve_{self.within}_")
            end = library.index("\nend }\n", start)
        found = library.count(self.search, start, end)
        if found != 1:
            where = self.within or "the library"
            raise ValueError(f"mutant {self.name!r}: {self.search!r} occurs {found} times in {where}, not once")
        at = library.index(self.search, start)
        return library[:at] + self.replace + library[at + len(self.search) :]


CHECK_EPOCH = "if known ~= epoch then return OTHER_EPOCH .. known end\n"
CHECK_HELD = "if not is_held then return Reply.STALE end"

MUTANTS = (
    Mutant(
        "the end of a request does not reach its webhook",
        "if w.webhook then return end_webhook(w.webhook, request_id, state, uses == empty and payload or '') end",
        "if w.webhook then return end",
    ),
    Mutant("a webhook is taken early", "'-inf', now_ms(), 'LIMIT'", "'-inf', '+inf', 'LIMIT'", "due"),
    Mutant("a webhook that was taken is due at once", "now_ms() + HOOK_LEASE_MS", "now_ms()", within="due"),
    Mutant("a webhook that was delivered comes again", "write('DEL', webhook)", within="settle"),
    Mutant(
        "who was slower brings a webhook back", "wait_ms < 0 or not exists(webhook)", "wait_ms < 0", within="settle"
    ),
    Mutant("an end without a commit is not counted", "if not by then count_end(request, state) end", ""),
    Mutant("what a replica has committed is counted twice", "if not by then count_end", "if true then count_end"),
    Mutant("counts of ends are taken twice", "write('DEL', ends)", within="take_ends"),
    Mutant("a request that nobody ends is never due", "- CLOCK_MARGIN_MS + LATE_MS", ""),
    Mutant("submit accepts what it has accepted", "if redis.call('EXISTS', request) == 1 then", "if false then"),
    Mutant("submit does not look at the epoch", CHECK_EPOCH, within="submit"),
    Mutant(
        "submit does not look whether there are queues",
        "if not is_stream(stream) then return Reply.MOVED end\n  local limit",
        "local limit",
    ),
    Mutant(
        "submit does not look at the limit",
        ">= limit then return refuse({ Reply.FULL",
        ">= limit and false then return refuse({ Reply.FULL",
    ),
    Mutant("calls that run count as waiting", "redis.call('XLEN', stream) - running", "redis.call('XLEN', stream)"),
    Mutant(
        "submit takes an unknown result for one that comes later",
        "if not argument.state then return refuse(Reply.LOST) end",
        "argument.state = argument.state or State.OPEN",
    ),
    Mutant("an open request lives for ever", "lives[request] = ttl_ms", "", within="submit"),
    Mutant(
        "a result that comes later is not waited for",
        "add_waiter(argument.request, cmsgpack.pack({",
        "math.max(0, #cmsgpack.pack({",
    ),
    Mutant("nothing tells that a queue is waited for", "note_waiting(request, common, step, ttl_ms)", ""),
    Mutant(
        "a failed argument leaves the other calls on their queues",
        "  finish(request, request_id, failed.state, inherited(header, awaited_id, failed.result or ''))\n",
        "  apply(moves, streams, request, header, enqueue)\n"
        "  finish(request, request_id, failed.state, inherited(header, awaited_id, failed.result or ''))\n",
    ),
    Mutant("a join takes the value that comes last", "    if not hget(request, name) then\n", "    if true then\n"),
    Mutant(
        "a join starts before its last slot is filled",
        "if count ~= needs then return false end",
        "if count < needs - 1 then return false end",
    ),
    Mutant(
        "a join that has started keeps its values",
        "  for _, name in ipairs(names) do hdel(request, name) end\n  return true",
        "  return true",
    ),
    Mutant(
        "where a call lies is not kept",
        "  hset(request, PLACE .. step, add_entry(stream, fields))",
        "  add_entry(stream, fields)",
    ),
    Mutant("a mailbox lives for ever", "    redis.pcall('PEXPIRE', mailbox, MAILBOX_TTL_MS)\n"),
    Mutant(
        "a mailbox that is never empty ends", " or type(length) == 'number' and length > MAILBOX_CROWDED then", " then"
    ),
    Mutant(
        "what runs for a request that was cancelled stays pending",
        "    redis.pcall('XACK', removed[k], GROUP, removed[k + 1])\n",
    ),
    Mutant("waiters are forgotten", "local waiters = more and waiters_of(request) or empty", "local waiters = empty"),
    Mutant(
        "the submitter is forgotten",
        "if mailbox and mailbox ~= '' then deliver(mailbox, request_id, state, payload) end",
    ),
    Mutant(
        "a result that comes for a dead letter is dropped",
        "if state == State.DONE and may_be(letter, 'hash') and exists(letter) then",
        "if false then",
    ),
    Mutant(
        "the other calls of a request that fails with its argument stay queued",
        "    remove_calls(w.request, w.request_id, state, ended)\n",
    ),
    Mutant("a result lives for ever", "    lives[request] = keep\n"),
    Mutant("a result that nobody asks for is kept", "  if keep > 0 then", "  if true then keep = math.max(keep, 1000)"),
    Mutant("a final commit does not say whose it was", "Field.COMMITTED_BY, by or '')", "Field.COMMITTED_BY, '')"),
    Mutant("joins stay beside the result", "  renew(request)\n"),
    Mutant("commit does not look at the epoch", CHECK_EPOCH, within="commit"),
    Mutant(
        "commit does not look whether the delivery is still its own",
        "local is_mine = place == stream .. ' ' .. entry_id",
        "local is_mine = place and true",
    ),
    Mutant("a committed entry stays on the queue", "remove_entry(stream, entry_id)\n", "", within="commit"),
    Mutant("a closed request moves on", "    keeper, place = nil, nil\n", "    keeper = request\n"),
    Mutant("a branch of a dead letter is forgotten", "    apply(moves, streams, keeper, header, keep_call)\n"),
    Mutant(
        "a branch of a dead letter that fails is forgotten",
        "    keep_call(keeper, stream, step, entry[2])\n",
        "",
        within="commit",
    ),
    Mutant("a commit does not say whose it was", "  hset(request, Field.COMMITTED_BY, by)\n"),
    Mutant(
        "a lost reply looks like the commit of another", "if not is_mine and last == by then return Reply.DUP end\n"
    ),
    Mutant(
        "the other calls of a request that fails stay queued",
        "    remove_calls(request, request_id, state, payload)\n",
        within="commit",
    ),
    Mutant(
        "a queue's key may hold something else", "  if not may_be(streams[k], 'stream') then return Reply.BADKEY end\n"
    ),
    Mutant(
        "a postponed call stays on the queue",
        "  remove_entry(stream, entry_id)\n  return true, found",
        "  return true, found",
    ),
    Mutant("a try that was handed over is postponed", CHECK_HELD, "if false then return 1 end", within="postpone"),
    Mutant("a call is woken early", "'-inf', now_ms(), 'LIMIT'", "'-inf', '+inf', 'LIMIT'", within="wake"),
    Mutant("a call is woken twice", "    write('ZREM', delayed, member)\n"),
    Mutant(
        "delayed calls live for ever", "  write('PEXPIRE', delayed, math.max(redis.call('PTTL', delayed), ttl_ms))\n"
    ),
    Mutant(
        "a step that waits for a result is woken",
        "if request and is_open(request) and not is_call(fields) then",
        "if false then",
    ),
    Mutant(
        "a watcher is told of nothing",
        "  if mailbox == '' or mailbox == hget(request, Field.MAILBOX) then",
        "  if true then",
    ),
    Mutant("a watcher is told as often as it asks", "if known == waiter then return", "if known == 0 then return"),
    Mutant("a submitter that watches is told twice", " or mailbox == hget(request, Field.MAILBOX) then", " then"),
    Mutant("dead letters may take all memory", "bytes > 0 and share_of_memory(LETTERS_SHARE)", "nil"),
    Mutant("a dead letter that was thrown away counts", "  uncount_bytes(letter)\n", within="purge"),
    Mutant("a dead letter that was replayed counts", "uncount_bytes(letter)\n", within="replay"),
    Mutant("the calls of a dead letter do not count", "  count_bytes(letter, #packed)\n"),
    Mutant("what a dead letter gets later does not count", "put == keep_call", "false"),
    Mutant("what the request of a dead letter held does not count", "    count_bytes(letter, bytes)\n"),
    Mutant("a long result comes unannounced", "#payload > ANNOUNCED_FROM", "false"),
    Mutant(
        "a long result is announced to those who want it whole",
        "ANNOUNCED_FROM and string.sub(mailbox, -1) == COUNTS",
        "ANNOUNCED_FROM",
    ),
    Mutant("an item is announced", " and state ~= ITEM"),
    Mutant("what was asked is not looked at", "hget(request, Field.FINGERPRINT) == fingerprint", "true"),
    Mutant("a result does not know what was asked", "if asked then hset(request, Field.FINGERPRINT, asked) end"),
    Mutant(
        "what is given back is lost",
        "    requeue(to, stream, entry_id, fields, request_prefix)\n",
        "",
        within="give_back",
    ),
    Mutant(
        "what nobody holds is taken from its queue",
        "if pending.err or #pending == 0 then return false end",
        "if pending.err then return false end",
    ),
    Mutant("a result goes to a queue that is gone", "elseif not is_stream(w.stream) then", "elseif false then"),
    Mutant("an item is sent twice", "for k = before + 1, #items do", "for k = 1, #items do"),
    Mutant("items that were sent are sent anew", "before >= 0 and before < #items", "before >= 0"),
    Mutant("an item comes before its turn", "before >= 0 and before", "before"),
    Mutant("a stream that nobody reads is delivered", "if count >= UNREAD then hset(request, Field.MAILBOX, '') end"),
    Mutant("a stream that nobody reads looks ended", "math.max(0, sent - taken)", "sent - taken"),
    Mutant("an item of an ended request is sent", "if state == State.OPEN then", "if true then", within="emit"),
    Mutant("a forgotten result is kept", "    hset(request, Field.KEEP, -1)\n"),
    Mutant("an ended request is ended again", "if not is_open(request) then return 0 end", within="close"),
    Mutant(
        "a replica is not told that what it runs was cancelled",
        "if running then deliver(mailbox_of(stream, running[2]), request_id, state, payload) end",
    ),
    Mutant("a replica is told of the end that it has just sent", "    hdel(request, slot)\n", within="commit"),
    Mutant(
        "a cancelled call stays on the queue", "remove_calls(request, request_id, state, payload)\n", within="close"
    ),
    Mutant("a dead replica keeps its deliveries", "  remove_entry(stream, entry_id)\n", "", within="reclaim"),
    Mutant(
        "what a dead replica held stays on the queue as well", "    redis.pcall('XDEL', removed[k], removed[k + 1])\n"
    ),
    Mutant("deaths are not counted", "(tonumber(call[CallField.DEATHS]) or 0) + 1", "1"),
    Mutant("a call may kill for ever", "if deaths < death_limit then", "if true then"),
    Mutant(
        "what a dead replica held is lost", "      requeue(to, stream, entry_id, fields, request_prefix, changed)\n"
    ),
    Mutant(
        "a consumer is removed with what it still holds", "if count < RECLAIM_COUNT then write", "if true then write"
    ),
    Mutant(
        "queues are retired with calls on them",
        "if kind_of(key) == 'stream' then return redis.call('XLEN', key) > 0 end",
        "if kind_of(key) == 'stream' then return false end",
    ),
    Mutant(
        "queues are retired while calls wait for them", "    if request and is_open(request) then return true end\n"
    ),
    Mutant(
        "what is left at a deletion waits for ever",
        "    finish(request, id_of(request), State.FAILED, failure)\n",
    ),
    Mutant(
        "what waits for a replica that is gone is lost",
        "for _, entry in ipairs(left) do requeue(stream, personal, entry[1], entry[2], request_prefix) end",
    ),
    Mutant("a dead letter lives for ever", "  lives[letter] = DEAD_LETTER_TTL_MS\n"),
    Mutant(
        "the caller of a dead letter's call waits for ever",
        "if state then finish(request, id, State.FAILED, failure) end",
    ),
    Mutant("a dead letter may have been handed over", CHECK_HELD, "if false then return 1 end", within="dead_letter"),
    Mutant("a replay leaves the letter in the list", "write('ZREM', index, request_id)\n", "", within="replay"),
    Mutant("a replay forgets the joins", "write('RENAME', letter, request)", "write('DEL', letter)"),
    Mutant("a replay forgets the calls", "for _, call in ipairs(calls) do enqueue(request, unpack(call)) end"),
    Mutant("a replayed request lives for ever", "lives[request] = ttl_ms\n", "", within="replay"),
    Mutant("an entry that has ended may end again", "  hset(request, slot, '')\n", "", within="commit"),
    Mutant("a copy ends the call of a dead letter", "  hset(keeper, slot, '')\n", "", within="commit"),
    Mutant(
        "a copy is postponed",
        "if keeper and not is_named(keeper, step, stream, entry_id) then",
        "if false then",
        within="postpone",
    ),
    Mutant(
        "a copy makes its request a dead letter",
        "if keeper and not is_named(",
        "if false and not is_named(",
        within="dead_letter",
    ),
    Mutant(
        "a copy is handed over", "  if keeper and is_named(keeper, step, stream, entry_id) then\n", "  if keeper then\n"
    ),
    Mutant(
        "a copy that killed a replica makes its request a dead letter",
        "if not keeper or is_named(keeper,",
        "if true or is_named(keeper,",
        within="reclaim",
    ),
    Mutant(
        "a postponed call that is put back is woken again",
        "    if keeper and is_postponed(keeper, step) then",
        "    if keeper then",
        within="wake",
    ),
    Mutant(
        "a copy fails its request when its queue is deleted",
        "    if keeper and is_named(keeper, step, key, entry[1]) then",
        "    if keeper then",
        within="retire",
    ),
    Mutant(
        "a branch that waits for its next try is lost to a dead letter when its queue is deleted",
        "(keeper and is_postponed(keeper, step))",
        "is_postponed(request, step)",
        within="retire",
    ),
    Mutant("a replica is not told of copies", "elseif request_id_of(header) and", "elseif false and", within="strays"),
    Mutant(
        "a branch of a dead letter is a copy",
        "return kind_of(letter) == 'hash' and",
        "return false and",
    ),
    Mutant(
        "a function reads on after it has written",
        "local count = #due\ncarry_out()\nreturn count",
        "carry_out()\nreturn #due",
        within="wake",
    ),
    Mutant(
        "a commit acknowledges before all is computed",
        "remove_entry(stream, entry_id)\nif not keeper",
        "redis.call('XACK', stream, GROUP, entry_id)\nremove_entry(stream, entry_id)\nif not keeper",
        within="commit",
    ),
    Mutant(
        "a step has more inputs than one entry can hold",
        "  if count > INPUTS_LIMIT then fail(",
        "  if false then fail(",
    ),
    Mutant("the type of a key is not looked at", "  if not may_be(key, kind) then fail(", "  if false then fail("),
    Mutant(
        "a stream without ids leaves a commit half done",
        "        for before = 1, k - 1 do redis.pcall('XDEL', added[before].stream, added[before].id) end\n",
        "",
    ),
    Mutant(
        "what a failed function has collected is written by the next one",
        "  for k = #removed, 1, -1 do removed[k] = nil end\n",
    ),
    Mutant("calls for single replicas are no load", "if is_own and is_stream(stream)", "if false"),
    Mutant(
        "streams of other queues are load",
        "== 's:' and common_of(stream) == queue",
        "== 's:'",
    ),
    Mutant(
        "all calls of a queue run",
        "redis.call('XLEN', stream) - waiting",
        "redis.call('XLEN', stream)",
        within="backlog",
    ),
    Mutant("two may lead", "if (redis.call('GET', lead) or '') ~= was then return Reply.STALE end", ""),
    Mutant("who leads does so for ever", "write('SET', lead, now, 'PX', ttl_ms)", "write('SET', lead, now)"),
    Mutant("nobody gives up the lead", "write('DEL', lead)", ""),
    Mutant("anybody may say what workers run", "if redis.call('GET', lead) ~= mine then return Reply.STALE end", ""),
    Mutant(
        "what has ended still makes progress", "if not is_open(request) then return Reply.CLOSED end", "", within="note"
    ),
    Mutant(
        "a call that others have taken over makes progress",
        "if not is_named(request, step, stream, entry_id) then return Reply.STALE end",
        "",
        within="note",
    ),
    Mutant("a part is told as often as it is sent", "if number == told then", "if number >= 0 then", within="tell"),
    Mutant(
        "a session that nobody runs is told",
        "  if not running then return {} end\n",
        "  running = running or { '', 'replica' }\n",
        within="tell",
    ),
    Mutant(
        "what was heard is forgotten",
        "math.max(count, count_in(request, Field.HEARD))",
        "count",
        within="heard",
    ),
    Mutant("a session runs again elsewhere", "if call[CallField.STEP] == SESSION then", "if false then"),
    Mutant(
        "a copy of a session ends it",
        "if id and is_open(request) and is_named(request, SESSION, stream, entry_id) then",
        "if id and is_open(request) then",
    ),
    Mutant("a session moves to another version", "local is_session = step == SESSION and is_held", "local is_session"),
    Mutant("events are kept without a limit", "'XADD', log, 'MAXLEN', EVENTS_KEPT, number", "'XADD', log, number"),
    Mutant(
        "events outlive their request",
        "if events then write('PEXPIRE', events_of(request)",
        "if false then write('PEXPIRE', events_of(request)",
    ),
    Mutant("traces are kept without a limit", "'XADD', traces, 'MAXLEN', TRACES_KEPT, '*'", "'XADD', traces, '*'"),
    Mutant("a trace may be as long as it likes", "if size > room then return end", ""),
    Mutant("the error in a trace may be as long as it likes", "or #payload > room / 2 then", "then"),
    Mutant("traces are kept for ever", "write('PEXPIRE', traces, TRACES_TTL_MS)", ""),
    Mutant("a replay is as old as its first try", "Field.PROGRESS, Field.TRACED }", "Field.PROGRESS }"),
    Mutant(
        "a look at the queues reads all that is in them",
        "for _, value in ipairs(fields) do room = room - #(value .. '') end",
        "",
        within="peek",
    ),
    Mutant(
        "replicas are told again and again", "if state == State.OPEN and not events then", "if state == State.OPEN then"
    ),
    Mutant(
        "a value stays when its last use is over",
        "    if left <= 0 and before > 0 then payloads.count(holder, name, -1) end\n",
    ),
    Mutant("a value is counted for each of its uses", "if left > 0 and before <= 0 then", "if left > 0 then"),
    Mutant("a value that nobody holds stays", "hash[HOLDERS] <= 0 then return redis", "false then return redis"),
    Mutant("nobody learns that a value is gone", "found[#found + 1] = id_of(key) end", "found = found end"),
    Mutant(
        "a value lives as long as its last holder",
        "lives[value] = math.max(before, ttl_ms)",
        "lives[value] = ttl_ms",
    ),
    Mutant("a value lives as long as its upload may take", "local before = hget(value, HOLDERS) and", "local before ="),
    Mutant("a request keeps its values for ever", "  if values then payloads.count_all(request, values, -1) end\n"),
    Mutant("a stored result that nobody wants stays", "    payloads.drop(request, uses)\n"),
    Mutant(
        "a stored result is not held",
        "    payloads.change(request, uses, is_kept",
        "    payloads.change(request, empty, is_kept",
    ),
    Mutant("a stored result that is only sent is gone", "and (keep == 0 or more) then keep", "and false then keep"),
    Mutant("who drops a stored result takes it from others", "(keep == 0 or more)", "keep == 0"),
    Mutant("who waits for a stored result does not hold it", "    payloads.change(w.request, uses)\n"),
    Mutant("a dead letter does not hold what it waits for", "      payloads.change(letter, uses)\n"),
    Mutant(
        "a stored result that is there is not held",
        "if argument.values then payloads.change(request, payloads.read(argument.values)) end",
    ),
    Mutant("what a request is given is not held", "payloads.change(request, values)\n", within="submit"),
    Mutant("what a step returns is not held", "payloads.change(request, values)\n", within="commit"),
    Mutant("what a branch returns to a dead letter is not held", "payloads.change(keeper, values)\n", within="commit"),
    Mutant("a dead letter holds nothing", "    payloads.count_all(letter, values, 1, DEAD_LETTER_TTL_MS)\n"),
    Mutant("values outlive a dead letter that was dropped", "    payloads.release(letter)\n"),
    Mutant("values outlive a dead letter that was thrown away", "  payloads.release(letter)\n", within="purge"),
    Mutant(
        "a replay lives longer than its values",
        "payloads.count_all(request, hget(letter, Field.VALUES), 0, ttl_ms + 0)\n",
    ),
    Mutant("a forgotten stored result stays", "    payloads.count_all(request, hget(request, Field.VALUES), -1)\n"),
    Mutant("a stream that was stopped keeps what nobody reads", "payloads.drop_items(request, items)", ""),
    Mutant("what was refused stays in the broker", "payloads.drop(request, values)\n", within="submit"),
    Mutant("the value of an item is not held", "if value ~= '' then payloads", "if false then payloads", within="emit"),
    Mutant("an item that was read stays", "payloads.count(value, id_of(value), -1)", within="release"),
    Mutant("the values of a dead letter do not count", "#failure + payloads.bytes(letter, values)", "#failure"),
    Mutant(
        "stored results that are left do not count", "leave(request, #payload + stored,", "leave(request, #payload,"
    ),
    Mutant(
        "a result without room stays as long as others", "is_kept and keep or math.min(keep, MAILBOX_TTL_MS)", "keep"
    ),
    Mutant("what a worker was to run is never removed", "assignments[k] ~= '' and assignments[k]", "assignments[k]"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mutation-report", type=Path, help="where to write which test noticed which mutant, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Noticing(config.getoption("--mutation-report")))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("mutant", MUTANTS, ids=lambda one: one.name, indirect=True, scope="session")


@pytest.fixture(scope="session", autouse=True)
def mutant(request: pytest.FixtureRequest, broker: EmbeddedBroker) -> Iterator[None]:
    """The library of the tests' broker, and any that tests load, has the mistake in it."""
    with pytest.MonkeyPatch.context() as patch:
        changed = request.param.apply(LIBRARY.text)
        patch.setattr(connection, "LOAD", (*LOAD[:-1], changed))
        with connection.connect(broker.url) as client:
            connection.load_functions(client)
        # that there is a counter-example is all that is asked here, not the shortest one
        patch.setattr("test_state_machine.PHASES", (Phase.generate,))
        yield


class _Noticing:
    """Notes the first test that fails for each mutant, and skips the others."""

    def __init__(self, report: Path | None) -> None:
        self._report = report
        self._noticed: dict[str, str] = {}
        self._broken: dict[str, str] = {}

    def pytest_runtest_setup(self, item: Any) -> None:
        if item.callspec.params["mutant"].name in self._noticed:
            pytest.skip("another test has noticed it")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: Any, call: Any) -> Iterator[None]:
        report = yield
        if report.failed:
            # a library that cannot be loaded proves nothing about the tests
            found = self._broken if report.when == "setup" else self._noticed
            found.setdefault(item.callspec.params["mutant"].name, item.originalname)
        return report

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        # a test that fails is what is wanted here
        session.exitstatus = pytest.ExitCode.TESTS_FAILED if self._broken else pytest.ExitCode.OK
        if self._report is not None:
            self._report.write_text(json.dumps({"noticed": self._noticed, "broken": self._broken}))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        missed = [mutant.name for mutant in MUTANTS if mutant.name not in self._noticed]
        terminalreporter.write_line(f"{len(MUTANTS) - len(missed)} of {len(MUTANTS)} mutants were noticed, all but:")
        for name in missed:
            terminalreporter.write_line(f"  {name}")
