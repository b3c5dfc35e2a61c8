"""The gateway as a process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from qserve_gateway import command
from qserve_gateway.request.environ import keep_header_lines

REMEDY = "choose another port with --port (port=... in Python)"
HEAVY = ("pydantic", "pydantic_core", "starlette", "numpy", "celery", "yaml", "qserve.overview", "qserve.drawing")


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    unset = {"QSERVE_BROKER_URL": "", "REDIS_URL": "", "PORT": ""}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **unset, **env},
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.row("F40")
@pytest.mark.parametrize("shared", [False, True], ids=["", "of one who would share it"])
@pytest.mark.slow
def test_a_taken_port_is_told_at_once_in_one_line(shared: bool) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=shared) as taken:
        port = str(taken.getsockname()[1])
        done = run("-m", "qserve_gateway", "--port", port, "--broker", "redis://127.0.0.1:1")
        socket.create_connection(taken.getsockname()).close()
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"qserve gateway: cannot listen on 127.0.0.1:{port}: Address already in use; {REMEDY}\n"


@pytest.mark.slow
def test_a_gateway_without_a_broker_says_how_to_name_one() -> None:
    done = run("-m", "qserve_gateway")
    assert done.returncode == 1
    assert "--broker" in done.stderr


@pytest.mark.slow
def test_the_process_imports_nothing_that_only_user_code_or_the_page_needs() -> None:
    code = f"import sys, qserve_gateway.server; print([m for m in {HEAVY} if m in sys.modules])"
    assert run("-c", code).stdout.strip() == "[]"


def test_the_command_starts_a_fresh_interpreter_and_hides_the_brokers_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QSERVE_BROKER_URL", "")
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: started.append(arguments))

    result = CliRunner().invoke(command.gateway, ["--port", "1234", "--broker", "redis://:pw@h"])

    assert result.exit_code == 0, result.output
    assert started[0][1:6] == ["-P", "-m", "qserve_gateway", "--host", "127.0.0.1"]
    assert "1234" in started[0]
    assert not any("pw" in argument for argument in started[0])
    assert os.environ["QSERVE_BROKER_URL"] == "redis://:pw@h"


def test_headers_that_would_pass_for_others_are_dropped_but_not_ray_serves_own() -> None:
    headers = [("X-USER", "a"), ("X_USER", "b"), ("SERVE_MULTIPLEXED_MODEL_ID", "m")]
    request = SimpleNamespace(headers=headers, body=SimpleNamespace())

    keep_header_lines(None, request)

    assert request.headers == [("X-USER", "a"), ("SERVE_MULTIPLEXED_MODEL_ID", "m")]
