"""A function library for the broker, made from typed Python stubs and one Lua file for each of them.

    LIBRARY = Library("qserve", files("qserve.broker") / "lua", {"GROUP": "replicas"})

    @LIBRARY.function("allow-oom")
    def give_back(stream: Key, to: Key, entry_ids: Strings, request_prefix: str) -> Command: ...

    LOAD = LIBRARY.complete()

A stub says once what a function takes. Two things are made from it: the names that ``lua/give_back.lua`` finds its
parameters under, and the builder that takes the stub's place in Python and returns the command that calls the function.
The builder is compiled at import, so a call costs what building the tuple by hand would. Modules with stubs do without
``from __future__ import annotations``: the annotations are read.

Functions and not EVALSHA: they survive restarts and FLUSHALL, and an ACL can deny EVAL to everybody.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from graphlib import TopologicalSorter
from importlib.resources.abc import Traversable
from typing import Annotated, Any, ParamSpec, get_args

Argument = bytes | str | int
Command = tuple[Argument, ...]
P = ParamSpec("P")


@dataclass(frozen=True)
class Kind:
    """How the parameters of one kind travel; ``{}`` stands for the parameter.

    Parameters:
      key: The key that it adds, in Python.
      keys: The keys that it adds after all others, in Python.
      arg: The argument that it adds, in Python.
      lua: What the argument becomes, in Lua.
      pack: Gives the arguments of a list, in Python, the number of its items first.
      read: Reads what ``pack`` gave, in Lua: a function of lua/lib/lists.lua.
      names_streams: ``pack`` takes the streams as well, and adds those that it names: they are the last keys.
    """

    key: str = ""
    keys: str = ""
    arg: str = ""
    lua: str = "{}"
    pack: Callable[..., Sequence[Argument]] | None = None
    read: str = ""
    names_streams: bool = False


def _pack_strings(items: Sequence[Argument]) -> list[Argument]:
    return [len(items), *items]


def _pack_pairs(pairs: Mapping[str, str]) -> list[Argument]:
    return [len(pairs), *(part for pair in pairs.items() for part in pair)]


Key = Annotated[str, Kind(key="{}")]
Keys = Annotated[Sequence[str], Kind(keys="{}")]
Strings = Annotated[Sequence[str] | Sequence[bytes], Kind(pack=_pack_strings, read="read_list")]
Pairs = Annotated[Mapping[str, str], Kind(pack=_pack_pairs, read="read_pairs")]
Number = Annotated[int, Kind(arg="{}", lua="{} + 0")]
"""A number that the Lua file compares; it gets an ``int`` as the text that its commands take."""
_KINDS = {
    str: Kind(arg="{}"),
    bytes: Kind(arg="{}"),
    int: Kind(arg="{}"),
    bool: Kind(arg="int({})", lua="{} == '1'"),
}


class Stub:
    """What one function takes and may return.

    Parameters:
      declared: The Python function whose signature says it.
      flags: What the broker must know of it: ``allow-oom``, ``no-writes``.
      replies: The members of an enum that it may return.
    """

    def __init__(self, declared: Callable[..., Command], flags: Sequence[str], replies: Sequence[Enum]) -> None:
        self.name = declared.__name__
        self.flags = flags
        self.replies = replies
        self._declared = declared
        self.kinds = {name: _kind_of(one.annotation) for name, one in inspect.signature(declared).parameters.items()}
        self._lists = {name: kind for name, kind in self.kinds.items() if kind.pack is not None}
        self._streams = ["streams"] if any(kind.names_streams for kind in self._lists.values()) else []
        self._rest = self._streams or [name for name, kind in self.kinds.items() if kind.keys]

    @property
    def names(self) -> list[str]:
        """The names under which the Lua file finds what it is given."""
        return [
            *self._fixed_keys(),
            *(name for name, kind in self.kinds.items() if not kind.key or kind.arg),
            *self._streams,
        ]

    def _fixed_keys(self) -> dict[str, str]:
        """The keys that are always there: their names in Lua, and what they are in Python."""
        return {
            f"{name}_key" if kind.arg else name: kind.key.format(name) for name, kind in self.kinds.items() if kind.key
        }

    def builder(self) -> Callable[..., Command]:
        """Return the function that takes the stub's place; ``NAME`` among its globals is what it calls."""
        lines = [f"def {self.name}({', '.join(self.kinds)}):"]
        lines += [f"    {streams} = {{}}" for streams in self._streams]
        for name, kind in self._lists.items():
            lines.append(f"    {name} = pack_{name}({name}{', streams' if kind.names_streams else ''})")
        keys = [*self._fixed_keys().values(), *(f"*{rest}" for rest in self._rest)]
        count = " + ".join((str(len(self._fixed_keys())), *(f"len({rest})" for rest in self._rest)))
        args = [kind.arg.format(name) for name, kind in self.kinds.items() if kind.arg]
        args += [f"*{name}" for name in self._lists]
        lines.append(f"    return ({', '.join((repr('FCALL'), 'NAME', count, *keys, *args))})")
        namespace: dict[str, Any] = {f"pack_{name}": kind.pack for name, kind in self._lists.items()}
        exec(compile("\n".join(lines), f"<builder of {self.name}>", "exec"), namespace)
        made: Any = namespace[self.name]
        made.__module__, made.__doc__ = self._declared.__module__, self._declared.__doc__
        made.__defaults__ = self._declared.__defaults__
        return made  # type: ignore[no-any-return]

    def prologue(self) -> str:
        """Return the Lua that gives names to keys and arguments."""
        keys, rest = list(self._fixed_keys()), self._rest
        args = {name: kind.lua for name, kind in self.kinds.items() if kind.arg}
        lines = [f"local {name} = keys[{number}]" for number, name in enumerate(keys, 1)]
        lines += [f"local {name} = " + (f"rest(keys, {len(keys) + 1})" if keys else "keys") for name in rest]
        lines += [f"local {name} = " + args[name].format(f"argv[{number}]") for number, name in enumerate(args, 1)]
        at = str(len(args) + 1)
        for name, kind in self._lists.items():
            lines.append(f"local {name}, at = {kind.read}(argv, {at})")
            at = "at"
        return "\n".join(lines)


def _kind_of(annotation: Any) -> Kind:
    declared = [one for one in get_args(annotation) if isinstance(one, Kind)]
    return declared[0] if declared else _KINDS[annotation]


_NOT_CODE = re.compile(r"'(?:[^'\\\n]|\\.)*'|--[^\n]*")
_WORD = re.compile(r"(?<![.\w])[A-Za-z_]\w*")
_CONSTANT = re.compile(r"[A-Z]")
_DEFINED = re.compile(r"^local (?:function )?(\w+)", re.MULTILINE)


class Library:
    """The text that is loaded into the broker.

    Its digest is part of every function's name, so two versions of qserve can share a broker.

    Parameters:
      name: What the names of the library and its functions begin with.
      folder: Has one Lua file for each function; each is the body of that function. What they share is in ``lib``.
      constants: Where the capitalised names that Lua files use are found: numbers, strings, and enums, which become
        tables.
    """

    def __init__(self, name: str, folder: Traversable, constants: Mapping[str, Any]) -> None:
        self._name = name
        self._folder = folder
        self.constants = constants
        self.stubs: dict[str, Stub] = {}
        self._builders: dict[str, Any] = {}
        self.text = ""
        self.digest = ""

    def function(
        self, *flags: str, replies: Sequence[Enum] = ()
    ) -> Callable[[Callable[P, Command]], Callable[P, Command]]:
        """Declare a function by its stub, and put its builder in the stub's place."""

        def declare(stub: Callable[P, Command]) -> Callable[P, Command]:
            declared = self.stubs[stub.__name__] = Stub(stub, flags, replies)
            builder = self._builders[stub.__name__] = declared.builder()
            return builder

        return declare

    def complete(self) -> Command:
        """Return the command that loads the library, once all of its functions are declared."""
        shared = {file.name: file.read_text() for file in (self._folder / "lib").iterdir()}
        parts = [shared[name] for name in _in_order(shared)]
        parts += [self._registered(stub) for stub in self.stubs.values()]
        constants = sorted(filter(_CONSTANT.match, words("\n".join(parts))))
        unknown = [name for name in constants if name not in self.constants]
        if unknown:
            raise NameError(f"Lua files use {', '.join(unknown)}, which no Python module declares")
        text = "\n".join([*(_in_lua(name, self.constants[name]) for name in constants), "", *parts])
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        for name, builder in self._builders.items():
            builder.__globals__["NAME"] = self.name_of(name)
        self.text = f"#!lua name={self._name}_{self.digest}\n{text.replace('@@', self.digest)}"
        return ("FUNCTION", "LOAD", "REPLACE", self.text)

    def name_of(self, function: str) -> bytes:
        """Return the name under which this version's function is called."""
        return f"{self._name}_{function}_{self.digest}".encode()

    def _registered(self, stub: Stub) -> str:
        body = (self._folder / f"{stub.name}.lua").read_text()
        flags = ", ".join(map(repr, stub.flags))
        return (
            f"redis.register_function{{ function_name = '{self._name}_{stub.name}_@@', flags = {{ {flags} }},"
            f" callback = function(keys, argv)\n{stub.prologue()}\n\n{body}\nend }}\n"
        )


def _in_lua(name: str, value: str | bytes | int | type[Enum]) -> str:
    if isinstance(value, type):
        members = ", ".join(f"{member.name} = {_literal(member.value)}" for member in value)
        return f"local {name} = {{ {members} }}"
    return f"local {name} = {_literal(value)}"


def _literal(value: str | bytes | int) -> str:
    if isinstance(value, int):
        return str(value)
    data = value.encode() if isinstance(value, str) else value
    return (
        "'" + "".join(chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\{byte:03}" for byte in data) + "'"
    )


def words(lua: str) -> set[str]:
    """Return the names that a Lua text uses or defines; not those of a table's fields."""
    return set(_WORD.findall(_NOT_CODE.sub("''", lua)))


def _in_order(shared: Mapping[str, str]) -> list[str]:
    """Return the files so that each comes after those whose definitions it uses."""
    home = {name: file for file, text in sorted(shared.items()) for name in _DEFINED.findall(text)}
    uses = {file: {home[name] for name in words(text) if name in home} - {file} for file, text in shared.items()}
    return list(TopologicalSorter({file: sorted(uses[file]) for file in sorted(uses)}).static_order())
