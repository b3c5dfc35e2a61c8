"""Decides what becomes of each import and each use of a program, and lists what cannot be moved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider

from qserve.porting import table
from qserve.porting.names import TO_QSERVE, Direction, Moved
from qserve.porting.references import Binding, References, Use, dotted
from qserve.porting.table import Advice

_TAKE_NAMES = {
    *("patch", "setattr", "delattr", "import_module", "__import__", "importorskip", "find_spec", "getLogger"),
    "http_adapter",
}
"""Functions whose first argument names a module or something in it by text, and an argument that does."""


@dataclass(frozen=True, order=True)
class Left:
    """Something that was not moved.

    Parameters:
      line, column: Where it is, from 1.
      name: What it is, in the words of the program.
      code: A word to search for.
      advice: What to do.
    """

    line: int
    column: int
    name: str
    code: str
    advice: str


@dataclass(frozen=True)
class Unit:
    """One name that a new import binds: ``import module as asname``, or ``from module import name as asname``.

    Parameters:
      alias: The part of the old statement that this replaces, for its comments.
    """

    module: str
    name: str | None = None
    asname: str | None = None
    alias: cst.ImportAlias | None = None


@dataclass
class Plan:
    """What is changed in a program, and what is left.

    Parameters:
      texts: The new text of names and of texts that name something.
      imports: What an import becomes: parts of it that stay, and new ones.
      left: What was not moved.
    """

    texts: dict[cst.CSTNode, str] = field(default_factory=dict)
    imports: dict[cst.CSTNode, list[cst.ImportAlias | Unit]] = field(default_factory=dict)
    left: list[Left] = field(default_factory=list)


class Planner:
    """Makes the plan for one program."""

    def __init__(self, found: References, wrapper: MetadataWrapper, direction: Direction) -> None:
        self._found = found
        self._wrapper = wrapper
        self._direction = direction
        self._plan = Plan()

    def plan(self) -> Plan:
        """Return what is to be done."""
        parts: dict[cst.ImportAlias, list[cst.ImportAlias | Unit]] = {}
        own = [one for one in self._found.bindings if one.path.split(".")[0] == self._direction.source]
        for binding in own:
            parts[binding.alias] = [*(self._root(binding) if binding.is_root else self._named(binding))]
        for statement in {id(one.statement): one.statement for one in own}.values():
            new = [part for alias in statement.names for part in parts.get(alias, [alias])]
            if new != [*statement.names]:
                self._plan.imports[statement] = new
        for star in self._found.stars:
            self._star(star)
        for binding in self._found.bindings:
            if binding not in own:
                self._strays(binding)
        self._strings()
        self._arguments()
        self._plan.left = sorted({*self._plan.left})
        return self._plan

    # -- imports and uses --------------------------------------------------------------------------

    def _root(self, binding: Binding) -> Iterator[cst.ImportAlias | Unit]:
        """Plan ``import ray.serve`` and all uses of ``ray``: they name the new package in full."""
        module = self._direction.moved(binding.module).name
        is_rebound = binding.name in self._found.mentioned or any(use.is_rebound for use in binding.uses)
        if is_rebound or module is None:
            advice = table.REBOUND if is_rebound else self._direction.advice(binding.module)
            self._leave(binding.alias, binding.module, advice)
        if is_rebound:
            yield binding.alias
            return
        moved, left = self._uses(binding, self._direction.target)
        for use, new in moved.items():
            self._plan.texts[use.node] = new.name or ""
        needed = {new.module for new in moved.values()}
        is_used = any(f"{binding.path}{use.rest}.".startswith(f"{binding.module}.") for use in binding.uses)
        if module is not None and "." in binding.module and not is_used:
            needed.add(module)
        stays = module is None or bool(left)
        if stays:
            yield binding.alias
        alias = None if stays else binding.alias
        for one in sorted(needed):
            if not any(other.startswith(f"{one}.") for other in needed):
                yield Unit(one, alias=alias)
                alias = None

    def _uses(self, binding: Binding, near: str) -> tuple[dict[Use, Moved], list[Use]]:
        """Return what becomes of the uses of a name, and list those that cannot be moved."""
        moved: dict[Use, Moved] = {}
        left: list[Use] = []
        for use in binding.uses:
            new = self._new_name(binding, use, near)
            if new.name is None:
                left.append(use)
                self._leave(use.at, binding.path + use.rest, new.advice)
            else:
                moved[use] = new
        return moved, left

    def _new_name(self, binding: Binding, use: Use, near: str) -> Moved:
        if use.rest:
            return self._direction.moved(binding.path + use.rest, near)
        if use.known_attribute:
            new = self._direction.moved(f"{binding.path}.{use.known_attribute}", near)
            if new.name == f"{new.module}.{use.known_attribute}":
                return Moved(new.module, new.module)
        return Moved(None, advice=table.AS_VALUE) if binding.is_root else self._direction.moved(binding.path, near)

    def _named(self, binding: Binding) -> Iterator[cst.ImportAlias | Unit]:
        """Plan an import that binds one name to one thing."""
        if binding.path in self._direction.names:
            yield self._of_object(binding, *self._direction.names[binding.path][0])
            return
        module = self._module_for(binding)
        if module is None and not any(self._new_name(binding, use, "").name for use in binding.uses):
            self._leave(binding.alias, binding.path, self._direction.advice(binding.path))
            yield binding.alias
            return
        moved, left = self._uses(binding, module or "")
        moves = module is not None and (not left or binding.path in table.ALWAYS)
        if moves and module is not None:
            yield self._of_module(binding, module)
        elif left:
            yield binding.alias
        needed = set()
        for use, new in moved.items():
            name = new.name or ""
            if moves and f"{name}.".startswith(f"{module}."):
                name = binding.name + name.removeprefix(module or "")
            elif not use.rest:
                continue  # the old module stays, and is passed on
            self._plan.texts[use.node] = name
            needed.add(new.module)
        yield from (Unit(one) for one in sorted(needed - {module if moves else None}))

    def _module_for(self, binding: Binding) -> str | None:
        """Return the module that has most of what the program uses of one."""
        modules = self._direction.modules.get(binding.path, [])
        uses = [[self._new_name(binding, use, one).module for use in binding.uses if use.rest] for one in modules]
        return max(zip(modules, uses, strict=True), key=lambda pair: pair[1].count(pair[0]), default=(None, []))[0]

    def _of_object(self, binding: Binding, module: str, name: str) -> Unit:
        if name != binding.name and binding.alias.asname is None:
            taken = {*self._found.bound, *(one.name for one in self._found.bindings), *self._found.mentioned}
            if name in taken or binding.name in self._found.mentioned or any(use.is_rebound for use in binding.uses):
                return Unit(module, name, binding.name, binding.alias)
            for use in binding.uses:
                self._plan.texts[use.node] = name + use.rest
            return Unit(module, name, None, binding.alias)
        return Unit(module, name, binding.name if name != binding.name else None, binding.alias)

    def _of_module(self, binding: Binding, module: str) -> Unit:
        above, _, name = module.rpartition(".")
        is_import = isinstance(binding.statement, cst.Import)
        if not above or (is_import and "." in binding.path):
            return Unit(module, None, binding.name if module != binding.name else None, binding.alias)
        return Unit(above, name, binding.name if name != binding.name else None, binding.alias)

    def _star(self, star: cst.ImportFrom) -> None:
        module = dotted(star.module) or ""
        if module.split(".")[0] != self._direction.source:
            return
        new = self._direction.moved(module)
        if new.name is None or module == "ray":
            self._leave(star, f"{module}.*", table.STAR if new.name else new.advice)
        else:
            self._plan.texts[star] = new.name

    def _strays(self, binding: Binding) -> None:
        """List what the other package has not, such as what was moved with its module."""
        if not binding.is_root and "." in binding.path:
            self._stray(binding.alias, binding.path)
        for use in binding.uses:
            if use.rest and not (binding.path == "ray" and self._direction.source == "ray"):
                self._stray(use.at, binding.path + use.rest)

    def _stray(self, at: cst.CSTNode, name: str) -> None:
        advice = self._direction.stray(name)
        if advice is not None:
            self._leave(at, name, advice)

    # -- text and arguments ------------------------------------------------------------------------

    def _strings(self) -> None:
        for node, taker in self._found.names_in_text:
            name = str(node.evaluated_value).replace(":", ".")
            package = self._direction.source
            if not all(part.isidentifier() for part in name.split(".")):
                continue
            if name != package and not name.startswith(f"{package}."):
                if taker in ("patch", "setattr", "delattr") and f".{package}." in f"{name}.":
                    self._leave(node, name, table.IN_TEXT)
                continue
            moved = self._direction.moved(name)
            if taker not in _TAKE_NAMES:
                if moved.name is not None and "." in name:
                    self._leave(node, name, table.IN_TEXT)
            elif moved.name is None:
                self._leave(node, name, moved.advice)
            else:
                self._plan.texts[node] = node.value.replace(str(node.evaluated_value), moved.name)

    def _arguments(self) -> None:
        to_ray = self._direction is not TO_QSERVE
        calls: Mapping[str, Mapping[str, Advice | str]] = table.OWN_CALLS if to_ray else table.CALLS
        for call in self._found.calls:
            use = self._found.uses.get(call.func)
            if use is not None:
                name = use.bindings[0].path + use.rest
                name = TO_QSERVE.moved(name).name or name
                self._keywords(call, calls.get(name, {}))
                first = call.args[0] if call.args else None
                if name == "qserve.init" and not to_ray and first is not None and first.keyword is None:
                    self._leave(first, "address", table.CALLS[name]["address"])
            is_options = isinstance(call.func, cst.Attribute) and call.func.attr.value == "options"
            if is_options and any(arg.keyword and arg.keyword.value in table.DISTINCTIVE for arg in call.args):
                self._keywords(call, calls["qserve.deployment"])

    def _keywords(self, call: cst.Call, advice: Mapping[str, Advice | str]) -> None:
        for arg in call.args:
            name = arg.keyword.value if arg.keyword else ""
            found = advice.get(name)
            if isinstance(found, str):
                self._plan.texts[arg.keyword] = found
            elif found is not None:
                self._leave(arg, name, found)
            if name == "ray_actor_options" and self._direction is TO_QSERVE:
                self._keys(arg.value, table.ACTOR_OPTIONS, f"{name}.")

    def _keys(self, value: cst.BaseExpression, advice: Mapping[str, Advice], before: str) -> None:
        for element in value.elements if isinstance(value, cst.Dict) else ():
            if isinstance(element, cst.DictElement) and isinstance(element.key, cst.SimpleString):
                key = str(element.key.evaluated_value)
                if key in advice:
                    self._leave(element.key, before + key, advice[key])
                if key == "runtime_env":
                    self._keys(element.value, table.RUNTIME_ENV, f"{key}.")

    def _leave(self, at: cst.CSTNode, name: str, advice: Advice) -> None:
        place = self._wrapper.resolve(PositionProvider)[at].start
        self._plan.left.append(Left(place.line, place.column + 1, name, advice.code, advice.text))
