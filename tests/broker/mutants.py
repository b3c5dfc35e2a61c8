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
TAKE_ENTRY = "take_entry(stream, entry_id)"
LEAVE_ENTRY = (
    "redis.call('XACK', stream, GROUP, entry_id) == 1, (redis.call('XRANGE', stream, entry_id, entry_id)[1] or {})[2]"
)

MUTANTS = (
    Mutant("submit accepts what it has accepted", "if redis.call('EXISTS', request) == 1 then", "if false then"),
    Mutant("submit does not look at the epoch", CHECK_EPOCH, within="submit"),
    Mutant(
        "submit does not look whether there are queues",
        "if not is_stream(stream) then return Reply.MOVED end\n  local limit",
        "local limit",
    ),
    Mutant(
        "submit does not look at the limit",
        ">= limit then return { Reply.FULL",
        ">= limit and false then return { Reply.FULL",
    ),
    Mutant("calls that run count as waiting", "redis.call('XLEN', stream) - running", "redis.call('XLEN', stream)"),
    Mutant(
        "submit takes an unknown result for one that comes later",
        "if not argument.state then return Reply.LOST end",
        "argument.state = argument.state or State.OPEN",
    ),
    Mutant("an open request lives for ever", "redis.call('PEXPIRE', request, ttl_ms)", within="submit"),
    Mutant(
        "a result that comes later is not waited for",
        "add_waiter(argument.request, cmsgpack.pack({",
        "math.max(0, #cmsgpack.pack({",
    ),
    Mutant(
        "nothing tells that a queue is waited for",
        "redis.call('ZADD', delayed, now_ms() + RECHECK_MS, cmsgpack",
        "redis.call('ZREM', delayed, cmsgpack",
    ),
    Mutant(
        "a failed argument leaves the other calls on their queues",
        "    remove_calls(request)\n    finish(request, request_id, argument.state",
        "    finish(request, request_id, argument.state",
    ),
    Mutant(
        "a join takes the value that comes last",
        "redis.call('HSETNX', request, step .. '.' .. slot[1], slot[2])",
        "redis.call('HSET', request, step .. '.' .. slot[1], slot[2])",
    ),
    Mutant(
        "a join starts before its last slot is filled",
        "filled) ~= needs then return false end",
        "filled) < needs - 1 then return false end",
    ),
    Mutant(
        "a join that has started keeps its values",
        "  redis.call('HDEL', request, unpack(names))\n  return true",
        "  return true",
    ),
    Mutant(
        "where a call lies is not kept",
        "    notes[#notes + 1] = 'e:' .. step\n    notes[#notes + 1] = place\n",
    ),
    Mutant("where a call that comes later lies is not kept", "    redis.call('HSET', request, 'e:' .. step, place)\n"),
    Mutant("a mailbox lives for ever", "    redis.call('PEXPIRE', mailbox, MAILBOX_TTL_MS)\n"),
    Mutant(
        "a mailbox that is never empty ends", " or type(length) == 'number' and length > MAILBOX_CROWDED then", " then"
    ),
    Mutant(
        "what runs for a request that was cancelled stays pending",
        "      redis.pcall('XACK', stream, GROUP, entry)\n",
    ),
    Mutant("waiters are forgotten", "for k = 1, tonumber(more or 0) do waiters[k]", "for k = 1, 0 do waiters[k]"),
    Mutant("the submitter is forgotten", "if mailbox ~= '' then deliver(mailbox, request_id, state, payload) end"),
    Mutant(
        "a result that comes for a dead letter is dropped",
        "if state == State.DONE and redis.call('EXISTS', letter) == 1 then",
        "if false then",
    ),
    Mutant("the other calls of a request that fails with its argument stay queued", "    remove_calls(w.request)\n"),
    Mutant("a result lives for ever", "redis.call('PEXPIRE', request, keep)"),
    Mutant(
        "a result that nobody asks for is kept",
        "if tonumber(keep) > 0 then",
        "if true then keep = math.max(keep, 1000)",
    ),
    Mutant("a final commit does not say whose it was", "Field.COMMITTED_BY, by or '')", "Field.COMMITTED_BY, '')"),
    Mutant("joins stay beside the result", "  redis.call('DEL', request)\n  if tonumber(keep)", "  if tonumber(keep)"),
    Mutant("commit does not look at the epoch", CHECK_EPOCH, within="commit"),
    Mutant(
        "commit does not look whether the delivery is still its own",
        "local is_mine = redis.call('XACK', stream, GROUP, entry_id) == 1",
        "local is_mine = redis.call('XACK', stream, GROUP, entry_id) ~= 2",
    ),
    Mutant("a committed entry stays on the queue", "  redis.call('XDEL', stream, entry_id)\nelseif", "elseif"),
    Mutant(
        "a closed request moves on", "local letter = current ~= State.OPEN and dead_letter_of(request)", "local letter"
    ),
    Mutant(
        "a branch of a dead letter is forgotten",
        "apply(moves, streams, letter, redis.call('HGET', letter, Field.HEADER), keep_call)",
        "",
    ),
    Mutant(
        "a branch of a dead letter that fails is forgotten",
        "    keep_if_dead(request, stream, entry[2])\n  end\n  return Reply.HELD",
        "  end\n  return Reply.HELD",
    ),
    Mutant(
        "a commit does not say whose it was",
        "local notes = { Field.COMMITTED_BY, by }",
        "local notes = { Field.COMMITTED_BY, '' }",
    ),
    Mutant("a lost reply looks like the commit of another", "elseif last == by then\n  return Reply.DUP\n", ""),
    Mutant(
        "the other calls of a request that fails stay queued", "if state ~= State.DONE then remove_calls(request) end"
    ),
    Mutant(
        "a queue's key may hold something else",
        "if kind ~= 'stream' and kind ~= 'none' then return Reply.BADKEY end",
        "",
    ),
    Mutant("a postponed call stays on the queue", TAKE_ENTRY, LEAVE_ENTRY, within="postpone"),
    Mutant("a try that was handed over is postponed", CHECK_HELD, "if false then return 1 end", within="postpone"),
    Mutant("a call is woken early", "'-inf', now_ms(), 'LIMIT'", "'-inf', '+inf', 'LIMIT'"),
    Mutant("a call is woken twice", "redis.call('ZREM', delayed, member)"),
    Mutant(
        "delayed calls live for ever",
        "redis.call('PEXPIRE', delayed, math.max(redis.call('PTTL', delayed), ttl_ms))",
        within="postpone",
    ),
    Mutant("a step that waits for a result is woken", "if is_wanted and not is_call(fields) then", "if false then"),
    Mutant("a watcher is told of nothing", "if state == State.OPEN and mailbox ~= ''", "if false and mailbox ~= ''"),
    Mutant("a watcher is told as often as it asks", "== waiter then return", "== 0 then return"),
    Mutant("a submitter that watches is told twice", " and mailbox ~= owner then", " then"),
    Mutant("what was asked is not looked at", "redis.call('HGET', request, Field.FINGERPRINT) == fingerprint", "true"),
    Mutant(
        "a result does not know what was asked",
        "if asked then redis.call('HSET', request, Field.FINGERPRINT, asked) end",
    ),
    Mutant("what is given back is lost", "requeue(to, fields, request_prefix)", within="give_back"),
    Mutant("what was handed over is given back", "if is_held and fields then", "if fields then", within="give_back"),
    Mutant("what is given back stays where it was", TAKE_ENTRY, LEAVE_ENTRY, within="give_back"),
    Mutant("a result goes to a queue that is gone", "elseif not is_stream(w.stream) then", "elseif false then"),
    Mutant("an item is sent twice", "if number == sent then", "if number <= sent then"),
    Mutant("an item of an ended request is sent", "if state ~= State.OPEN then return -1 end\n"),
    Mutant("a forgotten result is kept", "    redis.call('HSET', request, Field.KEEP, 0)\n"),
    Mutant("an ended request is ended again", "if not is_open(request) then return 0 end", within="close"),
    Mutant("a cancelled call stays on the queue", "remove_calls(request)\n", within="close"),
    Mutant(
        "a dead replica keeps its deliveries",
        "local _, fields = take_entry(stream, entry_id)",
        "local fields = redis.call('XRANGE', stream, entry_id, entry_id)[1][2]\n  redis.call('XDEL', stream, entry_id)",
        within="reclaim",
    ),
    Mutant("what a dead replica held stays on the queue as well", TAKE_ENTRY, LEAVE_ENTRY, within="reclaim"),
    Mutant("deaths are not counted", "(tonumber(call[CallField.DEATHS]) or 0) + 1", "1"),
    Mutant("a call may kill for ever", "if deaths < death_limit then", "if true then"),
    Mutant(
        "what a dead replica held is lost",
        "requeue(to, with(fields, { [CallField.DEATHS] = deaths, [CallField.HISTORY] = history }), request_prefix)",
    ),
    Mutant(
        "a consumer is removed with what it still holds",
        "if #pending < RECLAIM_COUNT then redis.call('XGROUP'",
        "if true then redis.call('XGROUP'",
    ),
    Mutant(
        "queues are retired with calls on them",
        "if not is_zset(key) then return redis.call('XLEN', key) > 0 end",
        "if not is_zset(key) then return false end",
    ),
    Mutant(
        "queues are retired while calls wait for them",
        "if is_open(cmsgpack.unpack(member)[1]) then return true end",
    ),
    Mutant(
        "what is left at a deletion waits for ever",
        "    finish(request, string.match(request, '[^:]*$'), State.FAILED, failure)\n",
    ),
    Mutant(
        "what waits for a replica that is gone is lost",
        "for _, entry in ipairs(left) do requeue(stream, entry[2], request_prefix) end",
    ),
    Mutant("a dead letter lives for ever", "  redis.call('PEXPIRE', letter, DEAD_LETTER_TTL_MS)\n"),
    Mutant(
        "the caller of a dead letter's call waits for ever",
        "if state then finish(request, id, State.FAILED, failure) end",
    ),
    Mutant("a dead letter may have been handed over", CHECK_HELD, "if false then return 1 end", within="dead_letter"),
    Mutant("a replay leaves the letter in the list", "redis.call('ZREM', dead_letters_of(request), request_id)\n"),
    Mutant(
        "a replay forgets the joins",
        "redis.call('RENAME', letter, request)",
        "redis.call('DEL', letter)\n"
        "redis.call('HSET', request, Field.STATE, State.OPEN, Field.HEADER, header, Field.MAILBOX, '', Field.KEEP,"
        " keep_ms)",
    ),
    Mutant(
        "a replay forgets the calls",
        "for _, call in ipairs(calls) do enqueue(request, call.stream, call.step, call.fields) end",
    ),
    Mutant("a replayed request lives for ever", "redis.call('PEXPIRE', request, ttl_ms)\n", within="replay"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mutation-report", type=Path, help="where to write which test noticed which mutant, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Noticing(config.getoption("--mutation-report")))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("mutant", MUTANTS, ids=lambda one: one.name, indirect=True, scope="session")


@pytest.fixture(scope="session", autouse=True)
def mutant(request: pytest.FixtureRequest) -> Iterator[None]:
    """The library that all tests load has the mistake in it."""
    with pytest.MonkeyPatch.context() as patch:
        changed = request.param.apply(LIBRARY.text)
        patch.setattr(connection, "LOAD", (*LOAD[:-1], changed))
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
