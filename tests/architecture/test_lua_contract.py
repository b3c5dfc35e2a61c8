"""Both sides of a function in the broker say the same: its stub in functions.py, and its Lua file."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from qserve.broker import functions
from qserve.broker.functions import LIBRARY, Reply
from qserve.broker.library import Kind, words
from qserve.wire.moves import Epoch, Start
from qserve.wire.outcome import CallField, Field, State

FOLDER = Path(functions.__file__).parent / "lua"
FILES = {path.stem: path.read_text() for path in FOLDER.glob("*.lua")}
SHARED = {path.stem: path.read_text() for path in (FOLDER / "lib").glob("*.lua")}
ALL = FILES | {f"lib/{name}": text for name, text in SHARED.items()}
STUBS = LIBRARY.stubs
ENUMS: tuple[type[Enum], ...] = (State, Reply, Field, CallField)

KNOWN = {
    *("and", "break", "do", "else", "elseif", "end", "false", "for", "function", "if", "in", "local", "nil", "not"),
    *("or", "repeat", "return", "then", "true", "until", "while"),
    *("redis", "cmsgpack", "math", "string", "table", "error", "ipairs", "next", "pairs"),
    *("pcall", "tonumber", "type", "unpack"),
}
"""What every Lua file may use: the language, and what the broker gives to functions."""
_COMMENT = re.compile(r"('(?:[^'\\\n]|\\.)*')|--[^\n]*")
_DECLARATIONS = (
    re.compile(r"\blocal (?!function\b)(\w+(?:, \w+)*)"),
    re.compile(r"\bfunction (\w+)\b(?!\.)"),
    re.compile(r"\bfunction(?: [\w.]+)?\(([^)]*)\)"),
    re.compile(r"\bfor (\w+(?:, \w+)*) (?:in|=)"),
)
_FIELD = re.compile(r"(?<=[{,])\s*\w+ = ")
_SHARED_NAMES = re.compile(r"^local (?:function )?(\w+(?:, \w+)*)|^function (\w+)\b(?!\.)", re.MULTILINE)
DEFINED = {name for text in SHARED.values() for name in re.findall(r"^local (?:function )?(\w+)", text, re.MULTILINE)}


def code(text: str) -> str:
    """A Lua text without its comments."""
    return _COMMENT.sub(lambda found: found[1] or "", text)


def used(text: str) -> set[str]:
    """The names that a Lua text uses and does not declare."""
    plain = code(text)
    return words(_FIELD.sub(" ", plain)) - local_names(text) - KNOWN


def shared_names(text: str) -> list[str]:
    """The names that a shared part gives to the whole library."""
    return [name for found in _SHARED_NAMES.findall(code(text)) for name in ", ".join(filter(None, found)).split(", ")]


def local_names(text: str) -> set[str]:
    """The names that a Lua text declares inside functions: parameters, and indented or in the file of a function."""
    plain = code(text)
    return {name for one in _DECLARATIONS for found in one.findall(plain) for name in found.replace(",", " ").split()}


def constants(text: str) -> set[str]:
    return {name for name in used(text) if name[0].isupper()}


def test_every_function_has_a_stub_and_a_file() -> None:
    assert set(STUBS) == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_file_uses_no_name_that_its_stub_the_shared_parts_or_a_constant_does_not_declare(name: str) -> None:
    unknown = used(FILES[name]) - set(STUBS[name].names) - DEFINED

    assert unknown == constants(FILES[name])  # these were found when the library was put together


@pytest.mark.parametrize("name", SHARED)
def test_a_shared_part_uses_no_name_that_is_declared_nowhere(name: str) -> None:
    assert used(SHARED[name]) - DEFINED == constants(SHARED[name])


def test_a_shared_name_is_declared_once() -> None:
    """The files of lua/lib become one text, where a second declaration hides the first without an error."""
    names = [name for text in SHARED.values() for name in shared_names(text)]

    assert not {name for name in names if names.count(name) > 1}


@pytest.mark.parametrize("name", ALL)
def test_no_local_name_hides_a_shared_one(name: str) -> None:
    own = name.removeprefix("lib/")
    local = local_names(SHARED[own] if name not in FILES else FILES[name])
    if name not in FILES:  # without what the shared part itself declares for all
        local = local_names(re.sub(_SHARED_NAMES, "", code(SHARED[own])))
    parameters = set(STUBS[name].names) if name in STUBS else set()

    assert not (local | parameters) & (DEFINED | KNOWN | {name for name in LIBRARY.constants if name.isupper()})


@pytest.mark.parametrize("name", STUBS)
def test_a_file_uses_every_parameter_by_its_name_and_none_by_its_position(name: str) -> None:
    found = words(FILES[name])

    assert set(STUBS[name].names) <= found
    assert not found & {"keys", "argv"}


def test_every_shared_function_is_used() -> None:
    prologues = "\n".join(stub.prologue() for stub in STUBS.values())
    everything = "\n".join((*map(code, ALL.values()), prologues))
    for name in DEFINED:
        assert len(re.findall(rf"\b{name}\b", everything)) > 1, name


@pytest.mark.parametrize("name", ALL)
def test_no_constant_is_written_as_a_literal(name: str) -> None:
    literals = set(re.findall(r"'((?:[^'\\]|\\.)*)'", code(ALL[name])))
    numbers = {int(found) for found in re.findall(r"(?<![\w.])\d+(?![\w.])", re.sub(r"'[^']*'", "", code(ALL[name])))}
    values = [value for name, value in LIBRARY.constants.items() if name[0].isupper()]
    values += [member.value for enum in ENUMS for member in enum]
    texts = {
        value.decode() if isinstance(value, bytes) else value for value in values if isinstance(value, str | bytes)
    }

    assert not literals & texts
    # a thousand is also the number of milliseconds in a second
    assert not {number for number in numbers if number >= 10} - {1000}
    assert 1000 not in numbers or name in ("lib/time", "lib/calls")


@pytest.mark.parametrize("name", ALL)
def test_states_replies_and_fields_are_members_of_their_enums(name: str) -> None:
    text = code(ALL[name])

    for enum in ENUMS:
        assert set(re.findall(rf"\b{enum.__name__}\.(\w+)", text)) <= set(enum.__members__)


@pytest.mark.parametrize("name", STUBS)
def test_a_file_replies_what_its_stub_declares_and_its_text_says(name: str) -> None:
    declared = {reply.name for reply in STUBS[name].replies}  # type: ignore[attr-defined]
    head = FILES[name].partition("\n\n")[0] + FILES[name].partition("-- Returns")[2].partition("\n\n")[0]

    assert set(re.findall(r"\bReply\.(\w+)", code(FILES[name]))) == declared
    assert all(re.search(rf"\b{reply}\b", head) for reply in declared)


@pytest.mark.parametrize("name", FILES)
def test_a_file_opens_with_what_it_does_what_is_true_without_it_and_what_it_returns(name: str) -> None:
    text, flags = FILES[name], STUBS[name].flags

    assert text.startswith(f"-- {name}: ")
    assert "\n-- Returns" in text
    assert "\n-- If it does not run, " in text or "no-writes" in flags
    assert max(map(len, text.splitlines())) <= 120


def test_replies_are_each_used() -> None:
    assert {reply for stub in STUBS.values() for reply in stub.replies} == set(Reply)


def sample(name: str, kind: Kind) -> Any:
    """Something to give for a parameter, which is found again in the command."""
    if kind.key and kind.arg:
        return Epoch(f"<{name}_key>", f"<{name}>")
    if kind.read == "read_moves":
        return [Start("<streams>", "0", [])]
    if kind.pack or kind.read:
        return {}
    return [f"<{name}>"] if kind.keys else int.from_bytes(name.encode()) if "int(" in kind.arg else f"<{name}>"


@pytest.mark.parametrize("name", STUBS)
def test_a_command_has_each_parameter_where_the_lua_file_looks_for_it(name: str) -> None:
    stub = STUBS[name]
    given = {parameter: sample(parameter, kind) for parameter, kind in stub.kinds.items()}
    command: Any = getattr(functions, name)(**given)
    parts = {"keys": command[3 : 3 + command[2]], "argv": command[3 + command[2] :]}

    found = re.findall(r"local (\w+) = [^\d\n]*(keys|argv)\[(\d+)\]", stub.prologue())

    assert len(found) == sum(bool(kind.key) + bool(kind.arg) for kind in stub.kinds.values())
    for local, where, position in found:
        assert parts[where][int(position) - 1] in (f"<{local}>", given.get(local))
