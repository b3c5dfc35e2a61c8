"""Numbers from outside: what only Python takes for a number is refused at every door."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import pytest
from click.testing import CliRunner
from qserve_gateway import command
from qserve_gateway.request.access import ClientLimits
from qserve_gateway.request.environ import timeout_of

from qserve.__main__ import main
from qserve.base.numbers import number, whole_number
from qserve.base.settings import Settings
from qserve.broker.address import Address
from qserve.exceptions import QserveException
from qserve.http.message import BadRequest

ONLY_PYTHON = ["1_0", " 5 ", "5\n", "+5", "\u0663", "\uff15", "0x5", "5j", "nan", "inf", "Infinity", "1" * 5000]


@pytest.mark.parametrize("text", [*ONLY_PYTHON, "", "-5", "5.", ".5", "1e", "1e999"])
def test_what_is_not_written_like_a_number_is_refused(text: str) -> None:
    for read in (number, whole_number):
        with pytest.raises(ValueError, match="is not a"):
            read(text)


def test_numbers_are_read_as_json_has_them() -> None:
    assert [number(text) for text in ("0", "5", "007", "2.50", "1e3", "25E-1")] == [0, 5, 7, 2.5, 1000, 2.5]
    assert [whole_number(text) for text in ("0", "5", "007")] == [0, 5, 7]
    with pytest.raises(ValueError, match="'2.0' is not a whole number"):
        whole_number("2.0")


def run(called: click.Command, *arguments: str) -> None:
    result = CliRunner().invoke(called, arguments)
    assert result.exit_code == 2, result.output
    raise QserveException(result.output)


DOORS: dict[str, Callable[[str], Any]] = {
    "the header of a deadline": lambda text: timeout_of({"HTTP_X_REQUEST_TIMEOUT_SECONDS": text}, 1.0),
    "a setting in seconds": lambda text: Settings.from_env({"QSERVE_LEASE_S": text}),
    "a limit of requests": lambda text: ClientLimits.from_env({"QSERVE_CLIENT_IN_FLIGHT": text}),
    "a limit of requests per second": lambda text: ClientLimits.from_env({"QSERVE_CLIENT_REQUESTS_PER_S": text}),
    "a database": lambda text: Address.of(f"redis://broker:6379/{text}"),
    "a database of Sentinels": lambda text: Address.of(f"sentinel://one/mine/{text}"),
    "a parameter of the broker's URL": lambda text: Address.of(f"unix:///broker.sock?db={text}"),
    "qserve run --port": lambda text: run(main, "run", "a:b", "--port", text),
    "qserve run --workers": lambda text: run(main, "run", "a:b", "--workers", text),
    "qserve run --request-timeout-s": lambda text: run(main, "run", "a:b", "--request-timeout-s", text),
    "qserve deploy --timeout-s": lambda text: run(main, "deploy", "a:b", "--timeout-s", text),
    "qserve deploy --gateways": lambda text: run(main, "deploy", "a:b", "--gateways", text),
    "qserve dlq list --limit": lambda text: run(main, "dlq", "list", "--limit", text),
    "qserve worker --replicas": lambda text: run(main, "worker", "--replicas", text),
    "qserve gateway --port": lambda text: run(command.gateway, "--port", text),
    "qserve gateway --workers": lambda text: run(command.gateway, "--workers", text),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("text", ["1_0", " 5 ", "+5", "\u0663"])
def test_no_door_takes_what_only_python_takes(door: str, text: str) -> None:
    # a blank in a URL is written as %20
    shown = text.replace(" ", "%20") if "URL" in door or "database" in door else text

    with pytest.raises((QserveException, BadRequest)):
        DOORS[door](shown)
