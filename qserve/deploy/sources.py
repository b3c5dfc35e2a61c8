"""The user's own modules: found without running them, compared by their content, and imported exactly as compared."""

from __future__ import annotations

import ast
import hashlib
import importlib
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import resolve_name, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

from qserve.base.import_path import user_folders_first
from qserve.define.target import split_target

_OURS = ("qserve", "qserve_gateway", "qserve_workers")
_STDLIB = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
_INSTALLED = ("site-packages", "dist-packages", "lib-dynload")


class Module(NamedTuple):
    """One module of the user: its file, and what was in it."""

    path: str
    is_package: bool
    source: bytes

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.source).hexdigest()[:16]


@dataclass(frozen=True)
class Sources:
    """The code of an application: its module and all that this imports, also inside functions, from the user's folders.

    The standard library, installed packages and qserve are not part of it.

    Parameters:
      modules: By their full names.
      are_sent: Whether they are from another host, so that this one does not have the folders that they lie in.
    """

    modules: Mapping[str, Module]
    are_sent: bool = False

    @cached_property
    def digests(self) -> dict[str, str]:
        """A digest of each module by its name: the same on every host, in every folder and process."""
        return {name: self.modules[name].digest for name in sorted(self.modules)}

    def install(self) -> None:
        """Have this process import these modules from here, even if their files change or disappear."""
        sys.meta_path.insert(0, _Finder(self.modules, self.are_sent))


def difference(wanted: Mapping[str, str], found: Mapping[str, str]) -> str:
    """Say in which modules two versions of some code differ."""
    words = [
        f"{name} " + ("is missing" if name not in found else "is new" if name not in wanted else "differs")
        for name in sorted({*wanted, *found})
        if wanted.get(name) != found.get(name)
    ]
    return ", ".join(words[:5]) + (f" and {len(words) - 5} more" if len(words) > 5 else "")


def read_sources(target: str, also: Iterable[str] = ()) -> Sources:
    """Find the code of ``module:node`` by reading it; nothing is run.

    Parameters:
      also: Further modules that belong to it, such as those that are imported by computed names.
    """
    module_name, _ = split_target(target)
    search, found = _Search(module_name), dict[str, Module]()
    names = [module_name, *also]
    with user_folders_first():
        while names:
            name = names.pop()
            module = None if name in found else search.find(name)
            if module is not None:
                found[name] = module
                names += (imported for imported in _parse(name, *module).imports if imported not in found)
    return Sources(found)


def own_modules(target: str, names: Iterable[str]) -> list[str]:
    """Return those of these modules that lie in the user's folders."""
    search = _Search(split_target(target)[0])
    with user_folders_first():
        return [name for name in names if search.find(name) is not None]


class _Search:
    """Looks for modules as an import does, in the same order, without importing the packages that they are in."""

    def __init__(self, target: str) -> None:
        importlib.invalidate_caches()
        self._target = target.partition(".")[0]
        self._specs: dict[str, ModuleSpec | None] = {}
        self._installed: dict[Path, set[str]] = {}

    def find(self, name: str) -> Module | None:
        """Return a module of the user; None for one that is installed, is built in, or does not exist."""
        if not self._is_own(name.partition(".")[0]):
            return None
        spec = self._spec(name)
        if spec is None or not spec.has_location or spec.origin is None:
            return None
        try:
            source = Path(spec.origin).read_bytes()
        except OSError:
            read: Any = getattr(spec.loader, "get_data", None)  # it may lie in an archive
            try:
                source = read(spec.origin)
            except (OSError, TypeError):
                return None
        return Module(spec.origin, spec.submodule_search_locations is not None, source)

    def _is_own(self, top: str) -> bool:
        spec = self._spec(top)
        if spec is None or top in _OURS:
            return False
        folders = _folders(spec)
        at = Path(folders[0] if folders else spec.origin if spec.has_location and spec.origin else "").parent
        return bool(at.parts) and str(at) not in _STDLIB and (top == self._target or not self._is_installed(at, top))

    def _is_installed(self, folder: Path, top: str) -> bool:
        if folder.name in _INSTALLED:
            return True
        if folder not in self._installed:
            # `pip install --target` may put packages beside the user's modules
            lines = (line for record in folder.glob("*.dist-info/RECORD") for line in record.read_text().splitlines())
            self._installed[folder] = {re.split("[/,]", line, maxsplit=1)[0] for line in lines}
        return not self._installed[folder].isdisjoint((top, f"{top}.py"))

    def _spec(self, name: str) -> ModuleSpec | None:
        if name not in self._specs:
            parent, _, _ = name.rpartition(".")
            above = self._spec(parent) if parent else None
            folders = _folders(above) if above is not None else None
            self._specs[name] = None if parent and not folders else _find_spec(name, folders)
        return self._specs[name]


def _find_spec(name: str, folders: list[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        found = None if isinstance(finder, _Finder) else finder.find_spec(name, folders)
        if found is not None:
            return found
    return None


def _folders(spec: ModuleSpec) -> list[str]:
    # a namespace package asks its parent for its folders again, which works only when the parent is imported
    folders: Any = spec.submodule_search_locations or ()
    return list(getattr(folders, "_path", folders))


# -- what a module imports -------------------------------------------------------------------------


class _Parsed(NamedTuple):
    imports: tuple[str, ...]
    code: CodeType | None


@lru_cache(maxsize=4096)
def _parse(name: str, path: str, is_package: bool, source: bytes) -> _Parsed:
    """Return what a module imports, and its code; nothing when it is not Python, or not valid."""
    if not path.endswith(".py"):
        return _Parsed((), None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the user sees them when the module is imported for a deploy
            tree = ast.parse(source, path)
            code = compile(tree, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _Parsed((), None)
    package = name if is_package else name.rpartition(".")[0]
    names = dict.fromkeys(name for node in ast.walk(tree) for name in _imported(node, package))
    parts = [name.split(".") for name in names]
    # an import of a.b.c runs a and a.b as well
    return _Parsed((*dict.fromkeys(".".join(part[: n + 1]) for part in parts for n in range(len(part))),), code)


def _imported(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = _absolute("." * node.level + (node.module or ""), package)
        if base:
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called, name = getattr(node.func, "attr", getattr(node.func, "id", "")), node.args[0].value
        if called in ("import_module", "__import__") and isinstance(name, str):
            yield from filter(None, [_absolute(name, package)])


def _absolute(name: str, package: str) -> str:
    try:
        return resolve_name(name, package)
    except ImportError:
        return ""


# -- importing them --------------------------------------------------------------------------------


class _Finder:
    """Finds the modules of ``Sources``, and no others but the folders around modules that were sent."""

    def __init__(self, modules: Mapping[str, Module], are_sent: bool) -> None:
        self._modules = modules
        parts = [name.split(".") for name in modules] if are_sent else []
        self._folders = {".".join(part[:n]) for part in parts for n in range(1, len(part))} - modules.keys()

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        module = self._modules.get(name)
        if name in self._folders:
            return ModuleSpec(name, None, is_package=True)  # a namespace package
        if module is None or not module.path.endswith(".py"):
            return None
        folders = [str(Path(module.path).parent)] if module.is_package else None
        loader = _Loader(name, module)
        return spec_from_file_location(name, module.path, loader=loader, submodule_search_locations=folders)


class _Loader(SourceFileLoader):
    """Loads a module from the bytes that were compared, and never from its file or its ``.pyc``."""

    is_users = True

    def __init__(self, name: str, module: Module) -> None:
        super().__init__(name, module.path)
        self._module = module

    def get_data(self, path: str) -> bytes:
        return self._module.source if path == self._module.path else super().get_data(path)

    def get_code(self, fullname: str) -> CodeType:
        code = _parse(fullname, *self._module).code
        return self.source_to_code(self._module.source, self.path) if code is None else code
