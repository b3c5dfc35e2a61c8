"""The last log lines of an application: what a process keeps of them in the broker, and what ``qserve logs`` shows."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import redis
from click.testing import CliRunner, Result
from processes import wait_until

from qserve.__main__ import main
from qserve.base.context import RequestContext, request_context
from qserve.base.keys import LOG_LINES_KEPT
from qserve.cli import logs as command
from qserve.deploy.installation import Installation
from qserve.deploy.log_tail import LINES_PER_S, TEXT_LIMIT, LogTail, about, lines_of
from qserve.exceptions import BrokerUnavailable
from qserve.wire.application import ApplicationRecord, DeploymentRecord

DEPLOYMENTS = {"Front": DeploymentRecord("Front"), "Model": DeploymentRecord("Model")}
SHOP = ApplicationRecord("shop", "v1", "Front", deployments=DEPLOYMENTS)


@pytest.fixture
def installation(installation: Installation) -> Installation:
    installation.registry.stage(SHOP)
    installation.registry.promote(SHOP)
    return installation


@pytest.fixture
def model(installation: Installation) -> LogTail:
    return LogTail(installation, "Model-a-1", "shop", "Model")


def say(
    tail: LogTail, *messages: str, level: int = logging.WARNING, error: BaseException | None = None, **extra: Any
) -> None:
    trace = None if error is None else (type(error), error, error.__traceback__)
    for message in messages:
        record = logging.LogRecord("shop", level, __file__, 1, message, (), trace)
        record.__dict__.update(extra)
        tail.handle(record)


def logs(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["logs", *arguments])


def texts(installation: Installation, app: str = "shop") -> list[str]:
    return [line.text for _, line in lines_of(installation, app)]


def shown(*arguments: str) -> list[str]:
    result = logs(*arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    return [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "", line) for line in result.stdout.splitlines()]


def test_lines_of_all_processes_are_shown_with_deployment_request_and_traceback(
    installation: Installation, model: LogTail
) -> None:
    front = LogTail(installation, "Front-b-1", "shop", "Front")
    supervisor = LogTail(installation, "b")
    say(model, "one")
    token = request_context.set(RequestContext("r" * 32))
    say(front, "two\nINFO [forged] line", error=ValueError("no\x1b[2J"))
    request_context.reset(token)
    say(supervisor, "of no application")
    say(supervisor, "Model died", **about("shop", "Model"))
    for tail in (model, front, supervisor):
        tail.send()
        tail.send()  # nothing twice

    everything = shown("shop")
    assert everything[:2] == ["WARNING [Model-a-1] one", f"WARNING [Front-b-1 {'r' * 32}] two\\nINFO [forged] line"]
    assert everything[2:] == ["    ValueError: no\\x1b[2J", "WARNING [b] Model died"]
    assert shown("shop", "Model") == ["WARNING [Model-a-1] one", "WARNING [b] Model died"]
    assert shown("shop", "--request", "r" * 32) == everything[1:3]
    assert shown("shop", "-n", "1") == ["WARNING [b] Model died"]
    assert shown("shop", "-n", "0") == []


def test_a_process_that_logs_without_end_keeps_fifty_lines_a_second_and_counts_the_others(
    installation: Installation, model: LogTail, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.chain([100.0] * 80, itertools.repeat(101.0))
    monkeypatch.setattr("qserve.deploy.log_tail.time.monotonic", lambda: next(clock))
    say(model, *[f"line {number}" for number in range(80)])
    model.send()
    say(model, "later")
    model.send()

    found = texts(installation)
    assert found[: LINES_PER_S + 1][-1] == (
        "30 further lines are only in the log of this process: it writes more than 50 a second"
    )
    assert (found[LINES_PER_S - 1], found[LINES_PER_S + 1 :]) == ("line 49", ["later"])


def test_the_lines_of_an_application_and_their_length_are_bounded(installation: Installation, model: LogTail) -> None:
    error = ValueError("the end")
    error.__cause__ = ValueError("x" * TEXT_LIMIT)
    say(model, "long", error=error)
    model.send()
    (text,) = texts(installation)
    assert len(text) <= TEXT_LIMIT + 20
    assert (text[:9], text[-7:]) == ("long\n    ", "the end")

    key = installation.keys.log_lines("shop")
    for number in range(LOG_LINES_KEPT):
        installation.client.xadd(key, {"l": f"{number}"})
    say(model, "last")
    model.send()
    assert installation.client.xlen(key) == LOG_LINES_KEPT
    assert texts(installation) == ["last"]  # those of others are skipped


def test_a_broker_that_is_away_costs_no_line_before_there_is_no_room_and_never_blocks(
    installation: Installation, model: LogTail, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(100.0, 1.0)
    monkeypatch.setattr("qserve.deploy.log_tail.time.monotonic", lambda: next(clock))
    away = redis.Redis(port=1, socket_connect_timeout=0.1)
    monkeypatch.setattr(installation, "client", away)
    say(model, *[f"line {number}" for number in range(2 * LINES_PER_S + 7)])
    with pytest.raises(BrokerUnavailable):
        model.send()
    monkeypatch.undo()
    model.send()

    found = texts(installation)
    assert found[:-1] == [f"line {number}" for number in range(2 * LINES_PER_S)]
    assert found[-1].startswith("7 further lines")


def test_a_thread_sends_what_is_logged_and_nothing_of_its_own_trouble(
    installation: Installation, model: LogTail, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([BrokerUnavailable("away"), ValueError("a mistake")])
    store = model._store

    def fail_twice(*what: Any) -> None:
        for failure in failures:
            raise failure
        store(*what)

    monkeypatch.setattr(model, "_store", fail_twice)
    monkeypatch.setattr("qserve.deploy.log_tail._SENT_EVERY_S", 0.01)
    model.start()
    try:
        say(model, "one")
        wait_until(lambda: texts(installation) == ["one"], description="the line is kept after two errors")
        monkeypatch.setattr("qserve.deploy.log_tail._FLUSH_FOR_S", 60.0)
        say(model, "two")
        model.flush()
        assert texts(installation) == ["one", "two"]
    finally:
        logging.getLogger().removeHandler(model)


def test_what_cannot_be_opened_is_skipped_and_a_key_of_another_type_is_replaced(
    installation: Installation, model: LogTail, caplog: pytest.LogCaptureFixture
) -> None:
    key = installation.keys.log_lines("shop")
    other = replace(SHOP, name="office")
    say(LogTail(installation, "x", other.name, "Model"), "of another")
    installation.client.set(key, "x", px=60_000)
    assert texts(installation) == []
    assert "no log lines can be read" in caplog.text

    say(model, "one")
    model.send()
    installation.client.xadd(key, {"l": b"forged"})
    installation.client.xadd(key, {"other": b"forged"})
    assert texts(installation) == ["one"]


@pytest.fixture
def polls(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What happens between two looks of ``logs -f``; it ends with Ctrl-C after the last."""
    steps: list[Any] = []

    def sleep(seconds: float) -> None:
        if not steps:
            raise KeyboardInterrupt
        steps.pop(0)()

    class Time:
        pass

    monkeypatch.setattr(Time, "sleep", staticmethod(sleep), raising=False)
    monkeypatch.setattr(command, "time", Time)
    yield steps


def test_following_shows_what_comes_until_ctrl_c_also_over_an_outage(
    installation: Installation, model: LogTail, polls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    say(model, "before")
    model.send()
    real = command.lines_of

    def log(*messages: str) -> Any:
        return lambda: (say(model, *messages), model.send())

    def away(*arguments: Any) -> Any:
        raise BrokerUnavailable("the broker is away")

    polls += [
        log("one", "two"),
        lambda: None,
        lambda: monkeypatch.setattr(command, "lines_of", away),
        log("three"),
        lambda: monkeypatch.setattr(command, "lines_of", real),
        log("four"),
    ]

    result = logs("shop", "-f", "-n", "0")

    assert [line.rpartition(" ")[2] for line in result.stdout.splitlines()] == ["one", "two", "three", "four"]
    assert (result.exit_code, result.stderr) == (0, "qserve: the broker is away; trying again\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["shopp"], "application 'shopp' is not deployed; deployed are: shop. Did you mean 'shop'?"),
        (["shop", "x"], "deployment 'x' is not in application 'shop'; it has: Front, Model"),
        (["shop", "-n", "1001"], "1001 is not in the range 0<=x<=1000."),
        (["shop", "-n", "many"], "'many' is not a whole number in the range 0<=x<=1000."),
        (["shop", "--request", ""], "it must not be empty"),
    ],
)
def test_what_is_not_there_is_refused(installation: Installation, arguments: Sequence[str], said: str) -> None:
    result = logs(*arguments)

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1].endswith(said)
