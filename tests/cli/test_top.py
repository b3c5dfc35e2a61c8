"""The table of `qserve top`: what it shows of a picture, and how it fits a terminal."""

from __future__ import annotations

from typing import Any

import pytest

from qserve.cli.top import table
from qserve.overview.picture import Application, Bottleneck, Broker, Deployment, Picture

FULL = "all 8 places of its 2 replicas are taken"


def deployment(name: str, **fields: Any) -> Deployment:
    return Deployment(name, "HEALTHY", **{"replicas": {"RUNNING": 2, "STARTING": 1}, "wanted": 3, **fields})


def application(*deployments: Deployment, name: str = "shop", held: str = "", why: str = FULL) -> Application:
    bottleneck = Bottleneck(held, 2.5, why) if held else None
    return Application(name, "/", "RUNNING", "v", "", 0.0, deployments, (), None, bottleneck)


def picture(*applications: Application, **fields: Any) -> Picture:
    return Picture(1.7e9, Broker(True, 12 << 20), applications, **fields)


def row_of(lines: list[str], name: str) -> list[str]:
    return next(line for line in lines if name in line.split()).split()


def test_a_row_has_replicas_queue_rates_and_times() -> None:
    busy = deployment("Model", waiting=7, oldest_s=65.04, rate=1234.56, errors=0.25, p50_ms=12.34, p99_ms=1e7)
    lines = table(picture(application(busy, deployment("Idle")), dead_letters=3))

    assert row_of(lines, "shop/Model")[1:] == ["2/3", "7", "65.0", "s", "1235", "0.2", "12.3", "1e+07"]
    assert row_of(lines, "shop/Idle")[1:] == ["2/3", "0", "-", "-", "-", "-", "-"]
    assert "broker 12 MiB, 3 dead letters" in lines[0]


def test_the_deployment_that_holds_its_application_up_is_marked_and_the_reason_said() -> None:
    lines = table(picture(application(deployment("A"), deployment("B"), held="B"), application(name="other")))

    assert [line[0] for line in lines[2:4]] == [" ", ">"]
    assert " ".join(" ".join(lines[4:]).split()) == f"> shop/B holds it up, calls wait 2.5 s: {FULL}"


def test_only_the_application_that_is_asked_for_is_shown() -> None:
    shown = picture(application(deployment("A")), application(deployment("B"), name="other", held="B"))

    assert "other" not in "\n".join(table(shown, "shop"))
    assert "shop" not in "\n".join(table(shown, "other"))


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 5), (80, 1), (200, 50), (40, 10), (1, 1)])
def test_it_fits_the_terminal(width: int, height: int) -> None:
    many = [deployment(f"Model-{number}" * 9, waiting=9, rate=9e9, oldest_s=1e9) for number in range(100)]

    lines = table(picture(application(*many, held=many[0].name, why="x" * 1000)), None, width, height)

    assert len(lines) <= height
    assert width < 80 or max(map(len, lines)) < width
    assert (width, height) != (80, 24) or any(line.strip() == "... 83 more" for line in lines)


def test_names_and_reasons_cannot_write_to_the_terminal() -> None:
    hostile = "\x1b]0;owned\x07\r\n"
    lines = table(picture(application(deployment(hostile), name=hostile, held=hostile, why=hostile)))

    assert all(line.isprintable() for line in lines)


def test_a_broker_that_does_not_reply_is_said() -> None:
    assert "the broker does not reply; this was so before" in table(Picture())[0]
    assert "no application is deployed" in "\n".join(table(Picture()))
