"""Functions that are made of stubs and Lua files: what Python packs, Lua reads."""

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgpack
import pytest
import redis

from qserve.broker.functions import LIBRARY, AwaitedResults, EpochArg, Limits, Moves
from qserve.broker.library import Command, Key, Keys, Library, Number, Pairs, Strings
from qserve.wire.moves import Awaited, Epoch, Join, Start
from qserve.wire.outcome import CallField

LISTS = (Path(__file__).parents[2] / "qserve" / "broker" / "lua" / "lib" / "lists.lua").read_text()


class Color(StrEnum):
    RED = "it's \\ red\n"


@pytest.fixture
def library(tmp_path: Path, client: redis.Redis) -> Iterator[Library]:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "lists.lua").write_text(LISTS)
    yield Library("test", tmp_path, {"Color": Color, "CallField": CallField, "LIMIT": 7, "BYTES": b"\0\xff"})
    for found in client.function_list("test_*"):
        client.function_delete(found[1].decode())


def write(library: Library, name: str, text: str) -> None:
    Path(str(library._folder), f"{name}.lua").write_text(text)


def call(client: redis.Redis, library: Library, command: Command) -> Any:
    """What a function gets, as it packs it for us."""
    client.execute_command(*library.complete())
    name = command[1] or library.name_of(next(iter(library.stubs)))
    return msgpack.unpackb(client.execute_command(command[0], name, *command[2:]), raw=False)


def test_parameters_of_every_kind_arrive_under_their_names(library: Library, client: redis.Redis) -> None:
    names = "text, data, whole, number, yes, no, epoch, epoch_key, key, some, pairs, limits, moves, awaited, streams"
    write(library, "echo", f"return cmsgpack.pack({{ {', '.join(f'{n} = {n}' for n in names.split(', '))} }})")

    @library.function("allow-oom")
    def echo(
        text: str, some: Strings, key: Key, data: bytes, pairs: Pairs, whole: int, epoch: EpochArg, number: Number,
        moves: Moves, yes: bool, no: bool, awaited: AwaitedResults = (), limits: Limits = None,
    ) -> Command: ...  # fmt: skip

    library.complete()
    moves = [Start("{t}:q:one", "0", [b"x", b"y"]), Join("{t}:q:two", "1", 3, [(1, b"z"), (2, b"")])]
    awaited = [Awaited("{t}:r:1", "{t}:q:two", "1", 3, 0), Awaited("{t}:r:2", "{t}:q:more", "2", 1, 0)]
    command = echo(
        "a", ["b", "c"], "{t}:k", b"d", {"e": "f"}, 5, Epoch("{t}:e", "g"), 6, moves, True, False, awaited,
        {"{t}:q:two": 4},
    )  # fmt: skip

    assert call(client, library, command) == {
        "text": "a",
        "some": ["b", "c"],
        "key": "{t}:k",
        "data": "d",
        "pairs": {"e": "f"},
        "whole": "5",
        "epoch": "g",
        "epoch_key": "{t}:e",
        "number": 6,
        "yes": True,
        "no": False,
        "streams": ["{t}:q:one", "{t}:q:two", "{t}:q:more"],
        "moves": [
            {"place": 1, "step": "0", "fields": ["h", False, "s", "0", 0, "x", 1, "y"]},
            {"place": 2, "step": "1", "needs": 3, "slots": [["1", "z"], ["2", ""]]},
        ],
        "awaited": [
            {"request": "{t}:r:1", "place": 2, "step": "1", "needs": 3, "slot": 0},
            {"request": "{t}:r:2", "place": 3, "step": "2", "needs": 1, "slot": 0},
        ],
        "limits": ["-1", "4", "-1"],
    }


def test_lists_may_be_empty(library: Library, client: redis.Redis) -> None:
    write(library, "echo", "return cmsgpack.pack({ #some, next(pairs) == nil, #moves, #awaited, #streams, #limits })")

    @library.function()
    def echo(some: Strings, pairs: Pairs, moves: Moves, awaited: AwaitedResults, limits: Limits) -> Command: ...

    library.complete()

    assert call(client, library, echo([], {}, [], [], None)) == [0, True, 0, 0, 0, 0]


@pytest.mark.parametrize("number", [0, 1, 9000])
def test_any_number_of_keys_follows_the_others(library: Library, client: redis.Redis, number: int) -> None:
    write(library, "count", "return cmsgpack.pack({ first, #others, others[#others] or '' })")

    @library.function()
    def count(first: Key, others: Keys) -> Command: ...

    library.complete()
    others = [f"{{t}}:{place}" for place in range(number)]

    assert call(client, library, count("{t}:first", others)) == ["{t}:first", number, others[-1] if others else ""]


def test_constants_and_enums_have_the_values_that_python_has(library: Library, client: redis.Redis) -> None:
    write(library, "give", "return cmsgpack.pack({ Color.RED, LIMIT, BYTES == string.char(0, 255) })")

    @library.function("no-writes")
    def give() -> Command: ...

    assert call(client, library, ("FCALL", b"", 0)) == ["it's \\ red\n", 7, True]


def test_a_constant_that_no_module_declares_is_an_error(library: Library) -> None:
    write(library, "give", "return UNKNOWN -- and OTHER, 'ANOTHER'")

    @library.function()
    def give() -> Command: ...

    with pytest.raises(NameError, match="Lua files use UNKNOWN, which no Python module declares"):
        library.complete()


def test_what_functions_share_comes_before_what_uses_it(library: Library) -> None:
    shared = Path(str(library._folder), "lib")
    (shared / "a.lua").write_text("local function last()\n  return middle() .. 'first()'\nend\n")
    (shared / "b.lua").write_text("local function first()\n  return 1\nend -- and not last()\n")
    (shared / "c.lua").write_text("local function middle()\n  return first()\nend\n")

    library.complete()

    places = [library.text.index(f"function {name}()") for name in ("first", "middle", "last")]
    assert places == sorted(places)


def test_the_name_of_a_function_changes_with_the_text_of_any(library: Library) -> None:
    write(library, "give", "return 1")

    @library.function()
    def give() -> Command: ...

    library.complete()
    first, command = library.name_of("give"), give()
    write(library, "give", "return 2")
    library.complete()

    assert command[1] == first != library.name_of("give")
    assert library.text.count(library.digest) == 2


def test_stubs_give_their_builders_names_texts_and_defaults() -> None:
    assert LIBRARY.stubs["commit"].flags == ("allow-oom",)
    assert LIBRARY.stubs["submit"].flags == ()
    assert LIBRARY.stubs["look"].flags == ("no-writes",)
