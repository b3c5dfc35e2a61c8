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

from qserve.broker import connection, library


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
            start = library.index(f"local function {self.within}(")
            end = library.index("\nend\n", start)
        found = library.count(self.search, start, end)
        if found != 1:
            where = self.within or "the library"
            raise ValueError(f"mutant {self.name!r}: {self.search!r} occurs {found} times in {where}, not once")
        at = library.index(self.search, start)
        return library[:at] + self.replace + library[at + len(self.search) :]


MUTANTS = (
    Mutant("submit accepts what it has accepted", "if redis.call('EXISTS', request) == 1 then", "if false then"),
    Mutant("submit does not look at the epoch", "  if epoch ~= argv[2] then return 'EPOCH ' .. epoch end\n"),
    Mutant(
        "submit does not look whether there are queues",
        "if not is_stream(keys[k]) then return 'MOVED' end\n    local limit",
        "local limit",
    ),
    Mutant(
        "submit does not look at the limit",
        ">= limit then return { 'FULL'",
        ">= limit and false then return { 'FULL'",
    ),
    Mutant(
        "calls that run count as waiting", "redis.call('XLEN', keys[k]) - running >=", "redis.call('XLEN', keys[k]) >="
    ),
    Mutant(
        "submit takes an unknown result for one that comes later",
        "if not state then return 'LOST' end",
        "state = state or 'o'",
    ),
    Mutant("an open request lives for ever", "  redis.call('PEXPIRE', request, argv[5])\n"),
    Mutant(
        "a result that comes later is not waited for",
        "redis.call('HSET', argv[at], 'w' .. redis.call('HINCRBY', argv[at], 'w', 1), argv[at + 1])\n",
    ),
    Mutant(
        "nothing tells that a queue is waited for",
        "redis.call('ZADD', delayed, now_ms() + LOOK_AGAIN",
        "redis.call('ZREM', delayed, 0",
    ),
    Mutant(
        "a failed argument leaves the other calls on their queues",
        "      unqueue(request)\n      finish(request, id, ref.state",
        "      finish(request, id, ref.state",
    ),
    Mutant(
        "a join takes the value that comes last",
        "redis.call('HSETNX', request, step .. '.' .. pair[1], pair[2])",
        "redis.call('HSET', request, step .. '.' .. pair[1], pair[2])",
    ),
    Mutant(
        "a join starts before its last slot is filled",
        "filled) ~= needs then return false end",
        "filled) < needs - 1 then return false end",
    ),
    Mutant(
        "a join that has started keeps its values",
        "  redis.call('HDEL', request, unpack(fields))\n  return true",
        "  return true",
    ),
    Mutant(
        "where a call lies is not kept",
        "    notes[#notes + 1] = 'e:' .. step\n    notes[#notes + 1] = place\n",
    ),
    Mutant("where a call that comes later lies is not kept", "    redis.call('HSET', request, 'e:' .. step, place)\n"),
    Mutant("a mailbox lives for ever", "    redis.call('PEXPIRE', mailbox, MAILBOX_TTL)\n"),
    Mutant(
        "a mailbox that is never empty ends", " or type(length) == 'number' and length > MAILBOX_READ then", " then"
    ),
    Mutant(
        "what runs for a request that was cancelled stays pending",
        "      redis.pcall('XACK', stream, GROUP, entry)\n",
    ),
    Mutant("waiters are forgotten", "for k = 1, tonumber(more or 0) do waiters[k]", "for k = 1, 0 do waiters[k]"),
    Mutant("the submitter is forgotten", "if mailbox ~= '' then deliver(mailbox, request_id, state, payload) end"),
    Mutant(
        "a result that comes for a dead letter is dropped",
        "if state == 'd' and redis.call('EXISTS', dead) == 1 then",
        "if false then",
    ),
    Mutant("the other calls of a request that fails with its argument stay queued", "    unqueue(w.request)\n"),
    Mutant("a result lives for ever", "redis.call('PEXPIRE', request, keep)"),
    Mutant(
        "a result that nobody asks for is kept",
        "if tonumber(keep) > 0 then",
        "if true then keep = math.max(keep, 1000)",
    ),
    Mutant("a final commit does not say whose it was", "'by', by or '')", "'by', '')"),
    Mutant("joins stay beside the result", "  redis.call('DEL', request)\n  if tonumber(keep)", "  if tonumber(keep)"),
    Mutant("commit does not look at the epoch", "  if epoch ~= argv[3] then return 'EPOCH ' .. epoch end\n"),
    Mutant(
        "commit does not look whether the delivery is still its own",
        "local is_mine = redis.call('XACK', stream, GROUP, entry) == 1",
        "local is_mine = redis.call('XACK', stream, GROUP, entry) ~= 2",
    ),
    Mutant("a committed entry stays on the queue", "    redis.call('XDEL', stream, entry)\n  elseif", "  elseif"),
    Mutant("a closed request moves on", "local dead = state ~= 'o' and dead_of(request)", "local dead = nil"),
    Mutant(
        "a branch of a dead letter is forgotten", "apply(keys, argv, 8, dead, redis.call('HGET', dead, 'h'), hold)", ""
    ),
    Mutant(
        "a branch of a dead letter that fails is forgotten",
        "      held(request, stream, found[2])\n    end\n    return 'HELD'",
        "    end\n    return 'HELD'",
    ),
    Mutant("a commit does not say whose it was", "local notes = { 'by', by }", "local notes = { 'by', '' }"),
    Mutant("a lost reply looks like the commit of another", "  elseif last == by then\n    return 'DUP'\n", ""),
    Mutant("the other calls of a request that fails stay queued", "if argv[6] ~= 'd' then unqueue(request) end"),
    Mutant(
        "a queue's key may hold something else", "if kind ~= 'stream' and kind ~= 'none' then return 'BADKEY' end", ""
    ),
    Mutant("a postponed call stays on the queue", "redis.call('XDEL', keys[1], argv[1])", within="postpone"),
    Mutant(
        "a try that was handed over is postponed", "== 0 then return 'STALE' end", "== 2 then return 1 end", "postpone"
    ),
    Mutant("a call is woken early", "'-inf', now_ms(), 'LIMIT'", "'-inf', '+inf', 'LIMIT'"),
    Mutant("a call is woken twice", "redis.call('ZREM', keys[1], member)"),
    Mutant(
        "delayed calls live for ever",
        "redis.call('PEXPIRE', keys[3], math.max(redis.call('PTTL', keys[3]), tonumber(argv[4])))",
    ),
    Mutant("a step that waits for a result is woken", "if is_open and not is_call(fields) then", "if false then"),
    Mutant("a watcher is told of nothing", "if state == 'o' and mailbox ~= ''", "if false and mailbox ~= ''"),
    Mutant("a watcher is told as often as it asks", "== waiter then return", "== 0 then return"),
    Mutant("a submitter that watches is told twice", " and mailbox ~= owner then", " then"),
    Mutant("what was asked is not looked at", "redis.call('HGET', request, 'fp') == argv[9]", "true"),
    Mutant("a result does not know what was asked", "if asked then redis.call('HSET', request, 'fp', asked) end"),
    Mutant("what is given back is lost", "move(keys[2], found[2], argv[1])", within="give_back"),
    Mutant(
        "what was handed over is given back",
        "keys[1], GROUP, argv[k]) == 1 and found",
        "keys[1], GROUP, argv[k]) and found",
    ),
    Mutant("what is given back stays where it was", "redis.call('XDEL', keys[1], argv[k])", within="give_back"),
    Mutant("a result goes to a queue that is gone", "elseif not is_stream(w.stream) then", "elseif false then"),
    Mutant("an item is sent twice", "if number == sent then", "if number <= sent then"),
    Mutant("an item of an ended request is sent", "  if state ~= 'o' then return -1 end\n"),
    Mutant("a forgotten result is kept", "      redis.call('HSET', request, 'keep', 0)\n"),
    Mutant(
        "an ended request is ended again",
        "if redis.call('HGET', keys[1], 'st') ~= 'o' then return 0 end\n  unqueue",
        "unqueue",
    ),
    Mutant("a cancelled call stays on the queue", "  unqueue(keys[1])\n"),
    Mutant("a dead replica keeps its deliveries", "    redis.call('XACK', stream, GROUP, entry[1])\n"),
    Mutant("what a dead replica held stays on the queue as well", "    redis.call('XDEL', stream, entry[1])\n"),
    Mutant("deaths are not counted", "local deaths = (tonumber(call.x) or 0) + 1", "local deaths = 1"),
    Mutant("a call may kill for ever", "if deaths < limit then", "if true then"),
    Mutant("what a dead replica held is lost", "move(keys[2], with(found[2], { x = deaths, y = log }), prefix)"),
    Mutant(
        "a consumer is removed with what it still holds",
        "if #pending < 1000 then redis.call('XGROUP'",
        "if true then redis.call('XGROUP'",
    ),
    Mutant(
        "queues are retired with calls on them",
        "if not is_zset(key) then return redis.call('XLEN', key) > 0 end",
        "if not is_zset(key) then return false end",
    ),
    Mutant(
        "queues are retired while calls wait for them",
        "if redis.call('HGET', cmsgpack.unpack(member)[1], 'st') == 'o' then return true end",
    ),
    Mutant(
        "what is left at a deletion waits for ever",
        "    finish(request, string.match(request, '[^:]*$'), 'f', failure)\n",
    ),
    Mutant(
        "what waits for a replica that is gone is lost",
        "for _, found in ipairs(left) do move(keys[2], found[2], argv[2]) end",
    ),
    Mutant("a dead letter lives for ever", "  redis.call('PEXPIRE', dead, DEAD_TTL)\n"),
    Mutant("the caller of a buried call waits for ever", "if state then finish(request, id, 'f', failure) end"),
    Mutant("a buried call may have been handed over", "== 0 then return 'STALE' end", "== 2 then return 1 end", "bury"),
    Mutant("a replay leaves the letter in the list", "  redis.call('ZREM', dead_index(request), argv[1])\n"),
    Mutant(
        "a replay forgets the joins",
        "redis.call('RENAME', dead, request)",
        "redis.call('DEL', dead)\n  redis.call('HSET', request, 'st', 'o', 'h', argv[2], 'to', '', 'keep', argv[4])",
    ),
    Mutant(
        "a replay forgets the calls", "for _, call in ipairs(calls) do enqueue(request, call[1], call[3], call[2]) end"
    ),
    Mutant("a replayed request lives for ever", "  redis.call('PEXPIRE', request, argv[3])\n"),
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
        changed = request.param.apply(library.LIBRARY)
        patch.setattr(connection, "LOAD", (*library.LOAD[:-1], changed))
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
