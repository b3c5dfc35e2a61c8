"""A function library for the broker, made from typed Python stubs and one Lua file for each of them.

    LIBRARY = Library("qserve", Path(__file__).parent / "lua", {"GROUP": "replicas"})

    @LIBRARY.function("allow-oom")
    def give_back(stream: Key, to: Key, entry_ids: Strings, request_prefix: str) -> Command: ...

    LOAD = LIBRARY.complete()

A stub says once what a function takes. Two things are made from it: the names that ``lua/give_back.lua`` finds its
parameters under, and the code of the stub itself, which returns the command that calls the function. It is compiled at
import, so a call costs what building the tuple by hand would. Modules with stubs do without ``from __future__ import
annotations``: the annotations are read.

Functions and not EVALSHA: they survive restarts and FLUSHALL, and an ACL can deny EVAL to all users.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

Argument = bytes | str | int
Command = tuple[Argument, ...]
_Declared = TypeVar("_Declared", bound=Callable[..., Command])


@dataclass(frozen=True)
class Kind:
    """How the parameters of one kind travel; ``{}`` is the parameter.

    Parameters:
      key: The key that it adds, in Python.
      keys: The keys that it adds after all others, in Python.
      arg: The argument that it adds, in Python.
      lua: What the argument becomes, in Lua.
      read: Reads a list in Lua, a function of lua/lib/lists.lua: its arguments come after all others.
      items: The arguments of the list, in Python, the number of its items first.
      pack: Gives ``items``; it takes the streams as well, and adds those that it names: they are the last keys.
    """

    key: str = ""
    keys: str = ""
    arg: str = ""
    lua: str = "{}"
    read: str = ""
    items: str = "{}"
    pack: Callable[..., Sequence[Argument]] | None = None


Key = Annotated[str, Kind(key="{}")]
Keys = Annotated[Sequence[str], Kind(keys="{}")]
Word = Annotated[str | bytes, Kind(arg="{}")]
Strings = Annotated[Sequence[str] | Sequence[bytes], Kind(read="read_list", items="(len({0}), *{0})")]
Pairs = Annotated[
    Mapping[str, str], Kind(read="read_pairs", items="(len({0}), *(part for pair in {0}.items() for part in pair))")
]
Counts = Annotated[
    Mapping[str, int],
    Kind(
        read="read_pairs",
        items="((len({0}), *(part for pair in {0}.items() for part in pair)) if {0} else (0,))",
    ),
]
Number = Annotated[int, Kind(arg="{}", lua="{} + 0")]
"""A number that the Lua file compares; it gets an ``int`` as the text that its commands take."""
_KINDS = {
    str: Kind(arg="{}"),
    bytes: Kind(arg="{}"),
    int: Kind(arg="{}"),
    bool: Kind(arg="int({})", lua="{} == '1'"),
}


class Stub:
    """The parameters of one function, and its replies.

    Parameters:
      declared: The Python function whose signature says it, and whose code is replaced.
      flags: What the broker must know of it: ``allow-oom``, ``no-writes``.
      replies: The members of an enum that it may return.
      start: The Lua with which it begins.
    """

    def __init__(self, declared: Any, flags: Sequence[str], replies: Sequence[Enum], start: str) -> None:
        self.declared = declared
        self.start = start
        self.name: str = declared.__name__
        self.flags = flags
        self.replies = replies
        self.kinds: dict[str, Kind] = {
            name: _kind_of(annotation) for name, annotation in declared.__annotations__.items() if name != "return"
        }
        # the keys that are always there: their names in Lua, and what they are in Python
        self._keys = {
            f"{name}_key" if kind.arg else name: kind.key.format(name) for name, kind in self.kinds.items() if kind.key
        }
        self._args = {name: kind for name, kind in self.kinds.items() if kind.arg}
        self._lists = {name: kind for name, kind in self.kinds.items() if kind.read}
        has_streams = any(kind.pack for kind in self.kinds.values())
        self._rest = ["streams"] if has_streams else [name for name, kind in self.kinds.items() if kind.keys]

    @property
    def names(self) -> list[str]:
        """The names under which the Lua file finds what it is given."""
        return [*self._keys, *self._rest, *self._args, *self._lists]

    def builder(self, called: bytes) -> str:
        """Return the text of a Python function that builds the command which calls ``called``."""
        packed = {name: f"pack_{name}" for name, kind in self._lists.items() if kind.pack}
        parameters = [*self.kinds, "*", *packed.values()] if packed else self.kinds
        rest = [f"*{name}" for name in self._rest]
        count = " + ".join((str(len(self._keys)), *(f"len({name})" for name in self._rest)))
        args = [kind.arg.format(name) for name, kind in self._args.items()]
        args += [f"*{kind.items.format(name)}" for name, kind in self._lists.items()]
        parts = ", ".join((repr("FCALL"), repr(called), count, *self._keys.values(), *rest, *args))
        lines = [f"def {self.name}({', '.join(parameters)}):"]
        lines += ["    streams = {}"] if packed else []
        lines += [f"    {name} = {pack}({name}, streams)" for name, pack in packed.items()]
        return "\n".join((*lines, f"    return ({parts})"))

    def replace_code(self, builder: Any) -> None:
        """Give the declared function the code of its builder; its name, text and defaults stay."""
        self.declared.__code__ = builder.__code__
        self.declared.__kwdefaults__ = {f"pack_{name}": kind.pack for name, kind in self._lists.items() if kind.pack}

    def prologue(self) -> str:
        """Return the Lua that begins the function, and gives names to keys and arguments."""
        rest = f"rest(keys, {len(self._keys) + 1})" if self._keys else "keys"
        lines = [self.start] if self.start else []
        lines += [f"local {name} = keys[{number}]" for number, name in enumerate(self._keys, 1)]
        lines += [f"local {name} = {rest}" for name in self._rest]
        lines += [
            f"local {name} = {kind.lua.format(f'argv[{number}]')}"
            for number, (name, kind) in enumerate(self._args.items(), 1)
        ]
        at = str(len(self._args) + 1)
        for name, kind in self._lists.items():
            lines.append(f"local {name}, at = {kind.read}(argv, {at})")
            at = "at"
        return "\n".join(lines)


def _kind_of(annotation: Any) -> Kind:
    declared = [kind for kind in get_args(annotation) if isinstance(kind, Kind)]
    return declared[0] if declared else _KINDS[annotation]


_NOT_CODE = re.compile(r"'(?:[^'\\\n]|\\.)*'|--[^\n]*")
_WORD = re.compile(r"(?<![.\w])[A-Za-z_]\w*")
_DEFINED = re.compile(r"^local (?:function )?(\w+)", re.MULTILINE)


class Library:
    """The text that is loaded into the broker.

    Its digest is part of every function's name, so two versions of qserve can share a broker.

    Parameters:
      name: What the names of the library and its functions begin with.
      folder: Has one Lua file for each function; each is the body of that function. What they share is in ``lib``.
      constants: Where the capitalised names that Lua files use are found: numbers, strings, and enums, which become
        tables.
      start: The Lua with which each function begins.
    """

    def __init__(self, name: str, folder: Path, constants: Mapping[str, Any], start: str = "") -> None:
        self._name = name
        self._start = start
        self._folder = folder
        self.constants = constants
        self.stubs: dict[str, Stub] = {}
        self.text: str = ""
        self.digest: str = ""

    def function(self, *flags: str, replies: Sequence[Enum] = ()) -> Callable[[_Declared], _Declared]:
        """Declare a function by its stub, which builds commands once the library is complete."""

        def declare(stub: _Declared) -> _Declared:
            self.stubs[stub.__name__] = Stub(stub, flags, replies, self._start)
            return stub

        return declare

    def complete(self) -> Command:
        """Return the command that loads the library, once all of its functions are declared."""
        files = {file.name: file.read_text() for file in (self._folder / "lib").iterdir()}
        shared = "\n".join(files[name] for name in _in_order(files))
        bodies = {name: (self._folder / f"{name}.lua").read_text() for name in self.stubs}
        uses = Counter(name for text in (shared, *bodies.values()) for name in _constants(text))
        unknown = sorted(name for name in uses if name not in self.constants)
        if unknown:
            raise NameError(f"Lua files use {', '.join(unknown)}, which no Python module declares")
        # Lua allows 200 local names beside each other, so a function has those to itself that no other text uses
        common = {name for name, count in uses.items() if count > 1} | _constants(shared)
        parts = [self._registered(self.stubs[name], body, common) for name, body in bodies.items()]
        text = "\n".join([self._declared(common), "", shared, *parts])
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        self.text = f"#!lua name={self._name}_{self.digest}\n{text.replace('@@', self.digest)}"
        builders: dict[str, Any] = {}
        # one compilation: a dozen and a half would take as long as all else that is done here
        exec("\n".join(stub.builder(self.name_of(name)) for name, stub in self.stubs.items()), builders)
        for name, stub in self.stubs.items():
            stub.replace_code(builders[name])
        return ("FUNCTION", "LOAD", "REPLACE", self.text)

    def name_of(self, function: str) -> bytes:
        """Return the name under which this version's function is called."""
        return f"{self._name}_{function}_{self.digest}".encode()

    def _declared(self, names: set[str]) -> str:
        return "\n".join(f"local {name} = {_in_lua(self.constants[name])}" for name in sorted(names))

    def _registered(self, stub: Stub, body: str, common: set[str]) -> str:
        own = self._declared(_constants(body) - common)
        flags = ", ".join(map(repr, stub.flags))
        return (
            f"redis.register_function{{ function_name = '{self._name}_{stub.name}_@@', flags = {{ {flags} }},"
            f" callback = function(keys, argv)\n{stub.prologue()}\n{own}\n{body}\nend }}\n"
        )


def _in_lua(value: str | bytes | int | type[Enum]) -> str:
    if isinstance(value, type):
        return f"{{ {', '.join(f'{member.name} = {_in_lua(member.value)}' for member in value)} }}"
    if isinstance(value, int):
        return str(value)
    data = value.encode() if isinstance(value, str) else value
    shown = (chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\{byte:03}" for byte in data)
    return f"'{''.join(shown)}'"


def words(lua: str) -> set[str]:
    """Return the names that a Lua text uses or defines; not those of a table's fields."""
    return set(_WORD.findall(_NOT_CODE.sub("''", lua)))


def _constants(lua: str) -> set[str]:
    return {name for name in words(lua) if name[0].isupper()}


def _in_order(shared: Mapping[str, str]) -> list[str]:
    """Return the files so that each comes after those whose definitions it uses."""
    home = {name: file for file, text in sorted(shared.items()) for name in _DEFINED.findall(text)}
    uses = {file: {home[name] for name in words(text) if name in home} - {file} for file, text in shared.items()}
    return list(TopologicalSorter({file: sorted(uses[file]) for file in sorted(uses)}).static_order())
