"""What the broker sends is decoded in qserve.wire, and nowhere else."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import house

ROOM = "qserve.wire"
OTHER_DOORS = (
    "qserve.base",  # settings, logs, processes
    "qserve.cli.build",  # the file that a child process has written
    "qserve.cli.graph",  # the picture that a child process has drawn
    "qserve.cli.user_code",  # what a child process says
    "qserve.define",  # options that users write
    "qserve.drawing",
    "qserve.engine.policy",  # what a worker tells its child process, and user code returns
    "qserve.engine.streaming",  # headers of responses that user code returns
    "qserve.http",  # HTTP bodies
    "qserve.machine",  # processes, files
    "qserve.mypy_plugin",
    "qserve.porting",  # programs and config files
    "qserve.stacks.files",  # what pip has noted
    "qserve.payloads.folder_process",  # what a child process says
    "qserve.web",  # ASGI and WSGI
    "qserve_workers.supervisor.preloads",  # what a child process says
    "qserve_gateway.request",  # headers and bodies of HTTP requests
    "qserve_gateway.jobs",  # the header Prefer
    "qserve_gateway.server",
    "qserve_gateway.ui.sessions",  # cookies
    "qserve_gateway.admin.deploys",  # what a child process says
    "qserve_workers.supervisor.page",  # HTTP requests of Prometheus
    "qserve_workers.supervisor.replica_process",  # files of the kernel
)
"""Modules that read what does not come from the broker."""
_PARSERS = {
    f"{library}.{name}"
    for library in ("json", "msgpack", "pickle", "cloudpickle", "marshal", "ast")
    for name in ("loads", "load", "unpackb", "unpack", "Unpacker", "Unpickler", "literal_eval")
}
_NUMBERS = {"int", "float"}
_COMPUTED = (ast.BinOp, ast.UnaryOp, ast.Compare, ast.Constant)


def decodings(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of every call that turns bytes into text, numbers or values."""
    for node in ast.walk(ast.parse(text)):
        if ast.unparse(node) in _PARSERS:
            yield node.lineno, ast.unparse(node)
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Attribute) and called.attr == "decode" and _is_of_bytes(node):
            yield node.lineno, ast.unparse(node)
        if isinstance(called, ast.Name) and called.id == "str" and len(node.args) > 1:
            yield node.lineno, ast.unparse(node)
        if isinstance(called, ast.Name) and called.id in _NUMBERS and not isinstance(node.args[0], _COMPUTED):
            yield node.lineno, ast.unparse(node)


def _is_of_bytes(call: ast.Call) -> bool:
    """Whether a call of ``decode`` has the arguments of ``bytes.decode``; a codec's takes bytes."""
    return all(isinstance(argument, ast.Constant) for argument in call.args)


@pytest.mark.parametrize("module", house.modules())
def test_only_the_wire_decodes_what_the_broker_sent(module: str) -> None:
    if any(f"{module}.".startswith(f"{door}.") for door in (ROOM, *OTHER_DOORS)):
        return

    found = [f"line {line}: {call}" for line, call in decodings(house.modules()[module].read_text())]
    assert not found, f"use a reader of qserve/wire/replies.py, or write one: {found}"


@pytest.mark.parametrize(
    "text",
    [
        "name.decode()",
        "name.decode('latin-1')",
        "name.decode(errors='replace')",
        "str(name, 'utf-8')",
        "json.loads(data)",
        "msgpack.unpackb(data)",
        "pickle.loads(data)",
        "read = json.loads",
        "int(reply)",
        "int(parts.get(b'n', 0))",
        "float(reply[0])",
    ],
)
def test_a_decoding_is_found_however_it_is_written(text: str) -> None:
    assert [*decodings(text)]


@pytest.mark.parametrize("text", ["codec.decode(data)", "Header.decode(data)", "int(seconds * 1000)", "str(name)"])
def test_what_decodes_no_reply_is_not_found(text: str) -> None:
    assert not [*decodings(text)]
