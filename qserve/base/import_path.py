"""The search path of modules: the user's folders are first while user code is imported, and otherwise last or absent.

A file of the user may have the name of a module that a library of ours imports later (``email.py``, ``token.py``), and
it must not run in its place. So the processes of the command keep the user's folders off their path, which is what
``-P`` does for the working folder alone.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType

_FOLDERS = "QSERVE_IMPORT_PATH"
"""The variable in which a parent names the user's folders to a child."""
_PATH = "PYTHONPATH"
_OWN_FOLDER = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_MODULES = {"qserve", "qserve_gateway", "qserve_workers"}
_KEPT = {*_MODULES, "sitecustomize.py", "usercustomize.py"}
_INSTALLED = ("site-packages", "dist-packages")
_folders: list[str] = []
_given: list[str] = []
_is_command = False
_is_named = False
_imports = 0


def set_aside_in_commands() -> None:
    """Do what ``set_aside`` does if this is a process of the command; call it before all other imports."""
    global _is_command
    arguments = sys.orig_argv
    module = arguments[arguments.index("-m") + 1 :][0] if "-m" in arguments[:-1] else ""
    script = os.path.split(sys.argv[0]) if sys.argv else ("", "")
    _is_command = module.partition(".")[0] in _MODULES or script == (os.path.dirname(sys.executable), "qserve")
    if _is_command:
        set_aside()


def set_aside() -> None:
    """Take the user's folders off the path of this process.

    They are the working folder, where ``python -m`` or PYTHONPATH brings it, and those that the parent process names.
    Other folders of PYTHONPATH are searched last, unless packages are installed there.
    """
    global _is_named
    _folders[:] = _split(os.environ.pop(_FOLDERS, ""))
    _given[:] = _split(os.environ.get(_PATH, "")) if os.environ.get(_PATH) else []
    _is_named = bool(_folders)
    here = _absolute("")
    users = {*_folders, here}
    for entry in list(sys.path):
        folder = _absolute(entry)
        is_pythons = folder != here and folder not in _given
        is_users = folder == here or not _holds_packages(folder)
        if not is_pythons and folder != _OWN_FOLDER and is_users:
            sys.path.remove(entry)
            if folder not in _folders:
                _folders.append(folder)
            if folder not in users:
                sys.path.append(folder)
    if _given:
        os.environ[_PATH] = os.pathsep.join(folder for folder in _given if folder not in _folders)


def search_for_user_code(app_dir: str) -> None:
    """Have user code searched for in this folder first, unless the parent process has named folders."""
    folder = _absolute(app_dir)
    if not _is_named:
        _folders[:] = [folder, *(other for other in _folders if other != folder)]


def user_folders() -> tuple[str, ...]:
    """Return the folders in which user code is searched for before all others."""
    return tuple(_folders)


@contextlib.contextmanager
def user_folders_first() -> Iterator[None]:
    """Search the user's folders before all others in this block."""
    sys.path[:0] = _folders
    try:
        yield
    finally:
        for folder in _folders:
            with contextlib.suppress(ValueError):  # user code may have removed it
                sys.path.remove(folder)


@contextlib.contextmanager
def all_at_once() -> Iterator[None]:
    """Import our own modules in this block without the garbage collector, which makes that a sixth faster.

    Hardly anything becomes garbage meanwhile, and the collector would go through all that was defined, time after time.
    In processes of the command it never looks there again: it would take 0.1 s at the end of each.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
        if _is_command:
            gc.freeze()


@contextlib.contextmanager
def standing_in(types: Mapping[str, str]) -> Iterator[None]:
    """Let a process of the command import empty types in this block, instead of modules that it does not have yet.

    Parameters:
      types: The name of a type by that of its module.
    """
    made = {name: ModuleType(name) for name in types if _is_command and name not in sys.modules}
    for name, module in made.items():
        setattr(module, types[name], type(types[name], (), {}))
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


def is_importing_user_code() -> bool:
    """Return whether qserve imports a module of the user now, as its commands and replicas do."""
    return bool(_imports)


@contextlib.contextmanager
def importing_user_code() -> Iterator[None]:
    """Search the user's folders first in this block, and last after it, for what user code imports while it runs."""
    global _imports
    if _given or _is_named:  # the programs that user code starts find its modules as well
        os.environ[_PATH] = os.pathsep.join(dict.fromkeys([*_folders, *_given]))
    _imports += 1
    try:
        with user_folders_first():
            yield
    finally:
        _imports -= 1
        sys.path.extend(folder for folder in _folders if folder not in sys.path)


def variables_of_child(folders: Sequence[str] = ()) -> dict[str, str]:
    """Return the variables with which a child finds all packages that this process finds, and no file of the user.

    Parameters:
      folders: The user's folders, for a child that imports user code.
    """
    found = [folder for folder in map(_absolute, sys.path) if folder == _OWN_FOLDER or _holds_packages(folder)]
    # a new interpreter knows those by itself, and searches them after the standard library
    users = {_script_folder(), _absolute("")} - {_OWN_FOLDER}
    kept = [folder for folder in dict.fromkeys(found) if not folder.endswith(_INSTALLED) and folder not in users]
    return {_PATH: os.pathsep.join(kept), _FOLDERS: os.pathsep.join(folders)}


def _script_folder() -> str:
    return os.path.dirname(os.path.abspath(sys.argv[0])) if sys.argv else ""


def _holds_packages(folder: str) -> bool:
    """Return whether packages are installed in a folder, or Python itself is extended there, as tracing tools do."""
    try:
        names = os.listdir(folder)
        return any(name in _KEPT or name.endswith((".dist-info", ".egg-info")) for name in names)
    except OSError:
        return False


def _split(variable: str) -> list[str]:
    return list(dict.fromkeys(map(_absolute, variable.split(os.pathsep)))) if variable else []


def _absolute(entry: str) -> str:
    try:
        return os.path.abspath(entry)  # links are kept: a release may lead one to another folder
    except OSError:  # the working folder was removed
        return entry
