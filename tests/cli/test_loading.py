"""Modules that fail to load, in every way that user code has: what the command says of each, and that it goes on."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from processes import is_alive, wait_until

from qserve.base import import_path
from qserve.cli.user_code import load_apart
from qserve.define.application import compiled
from qserve.define.target import load_target

NODE = "import qserve\n\n@qserve.deployment\ndef served(request=None):\n    return 1\n\nnode = served.bind()\n"
Load = Callable[..., str]
_LOAD = "lambda: compiled(load_target(target), 'app').ingress.name.encode()"


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Write modules, load ``shop:node`` or another target, and return the name of its deployment."""
    path = list(sys.path)

    def load(files: dict[str, str] | str, target: str = "shop:node", limit_s: float = 60.0) -> str:
        for name, text in ({"shop": files} if isinstance(files, str) else files).items():
            file = tmp_path / f"{name}.py"
            file.parent.mkdir(exist_ok=True)
            file.write_text(textwrap.dedent(text).replace("NODE\n", NODE))
        import_path.search_for_user_code(str(tmp_path))
        # not a line of this file, which would count as user code
        names = {"compiled": compiled, "load_target": load_target, "target": target}
        return load_apart(target, limit_s, eval(_LOAD, names)).decode()

    yield load
    assert sys.path == path, "what is imported in a child changes nothing here"


# -- how a module fails ----------------------------------------------------------------------------

FAILURES = {
    "def node(:": "SyntaxError: invalid syntax (shop.py, line 1)",
    "import nothing_of_that_name": "ModuleNotFoundError: No module named 'nothing_of_that_name'",
    "from . import sibling": "ImportError: attempted relative import with no known parent package",
    "import sys; sys.exit(0)": "SystemExit: 0",
    "exit(2)": "SystemExit: 2",
    "import sys; sys.exit('no model')": "SystemExit: no model",
    "NODE\nqserve.run(node)": (
        "RuntimeError: qserve.run() was called while qserve was importing this module to serve it."
        ' Put the call under `if __name__ == "__main__":`'
    ),
    "raise KeyboardInterrupt": "KeyboardInterrupt",
    "raise GeneratorExit('ends')": "GeneratorExit: ends",
    "import asyncio; raise asyncio.CancelledError": "CancelledError",
    "class Odd(BaseException): pass\nraise Odd('odd')": "Odd: odd",
    "def again(): again()\nagain()": "RecursionError: maximum recursion depth exceeded",
    "raise ValueError('first\\nsecond')": "ValueError: first …",
    "class Mute(Exception):\n    def __str__(self): 1 / 0\nraise Mute": (
        "Mute: <its text is not available: ZeroDivisionError>"
    ),
    "import asyncio\nasync def fails(): raise LookupError('inside')\nasyncio.run(fails())": "LookupError: inside",
}
ENDS = {
    "import os; os._exit(0)": "it ended the process that imported it (exit code 0)",
    "import os; os._exit(3)": "it ended the process that imported it (exit code 3)",
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)": (
        "it ended the process that imported it (SIGKILL, perhaps out of memory)"
    ),
    "import ctypes; ctypes.string_at(0)": "it ended the process that imported it (SIGSEGV)",
    "import os; os.abort()": "it ended the process that imported it (SIGABRT)",
    "import os; os.closerange(3, 4096)\nNODE\n": "it closed the files of the process that imported it",
}


@pytest.mark.parametrize(("source", "why"), FAILURES.items())
def test_an_error_of_any_kind_is_one_line_that_names_it_below_its_traceback(
    load: Load, capfd: pytest.CaptureFixture[str], source: str, why: str
) -> None:
    with pytest.raises(click.ClickException) as caught:
        load(source)

    assert caught.value.message.removesuffix("; you may use --app-dir") == f"shop:node cannot be loaded: {why}"
    assert 'shop.py", line ' in capfd.readouterr().err


@pytest.mark.row("F35")
@pytest.mark.parametrize(("source", "why"), ENDS.items())
def test_a_module_that_ends_its_process_is_told_by_how_it_ended(load: Load, source: str, why: str) -> None:
    with pytest.raises(click.ClickException) as caught:
        load(source)

    assert caught.value.message == f"shop:node cannot be loaded: {why}"


def test_an_import_that_does_not_end_is_ended_and_shows_where_it_is(
    load: Load, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(click.ClickException, match=r"took longer than 0.3 s \(QSERVE_START_TIMEOUT_S\)"):
        load("import time\nwhile True:\n    time.sleep(0.01)\n", limit_s=0.3)

    assert 'shop.py", line 3 in <module>' in capfd.readouterr().err


# -- what a module may do --------------------------------------------------------------------------

HARMLESS = {
    "a loop of its own": "import asyncio\nasyncio.run(asyncio.sleep(0))\nNODE\n",
    "a loop that it leaves": "import asyncio\nasyncio.set_event_loop(asyncio.new_event_loop())\nNODE\n",
    "a fork that comes back": "import os\nos.fork()\nNODE\n",
    "a thread without end": "import threading, time\nthreading.Thread(target=time.sleep, args=(999,)).start()\nNODE\n",
    "another folder": "import os\nos.chdir('/')\nNODE\n",
    "another path": "import sys\nsys.path[:] = []\nimport qserve\nNODE\n",
    "no output": "import sys\nsys.stdout = sys.stderr = None\nNODE\n",
    "deaf to signals": "import signal\nfor n in (1, 2, 15):\n    signal.signal(n, signal.SIG_IGN)\nNODE\n",
    "an exit handler that raises": "import atexit\natexit.register(lambda: 1 / 0)\nNODE\n",
    "an exit handler that hangs": "import atexit, time\natexit.register(time.sleep, 999)\nNODE\n",
    "a trace function": "import sys\nsys.setprofile(lambda *a: None)\nNODE\n",
}


@pytest.mark.parametrize("source", HARMLESS.values(), ids=list(HARMLESS))
def test_what_a_module_does_to_its_process_changes_nothing_here(load: Load, source: str) -> None:
    before = (os.getcwd(), signal.getsignal(signal.SIGTERM), sys.stdout, threading.active_count())  # noqa: PTH109

    assert load(source) == "served"

    assert (os.getcwd(), signal.getsignal(signal.SIGTERM), sys.stdout, threading.active_count()) == before  # noqa: PTH109


def test_what_a_module_starts_ends_with_it(load: Load, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    load(
        f"import subprocess, sys\np = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(999)'])\n"
        f"open({str(note)!r}, 'w').write(str(p.pid))\nNODE\n"
    )

    wait_until(lambda: not is_alive(int(note.read_text())), description="its process has ended")


# -- what a name may lead to -----------------------------------------------------------------------

OTHERS = {
    "class node: pass": "'node' is a class: decorate it with @qserve.deployment and write node.bind(...)",
    "class Thing: pass\nnode = Thing()": "An instance is not a node: decorate the class",
    "def node(): pass": "If it makes the node, call it: node = node(...)",
    "async def node(): pass": "'node' is a coroutine function: decorate it",
    "async def make(): pass\nnode = make()": "'make' is a coroutine function that was called",
    "NODE\nnode = served": "Write served.bind(...)",
    "NODE\nnode = [node]": "DAGDriver.bind({route: node, ...})",
    "from fastapi import FastAPI\nnode = FastAPI()": "Put @qserve.ingress(...)",
    "from flask import Flask\nnode = Flask('shop')": "Put @qserve.ingress(...)",
    "import os as node": "it is a module. Use os:NODE",
    "node = None": "Got unexpected type NoneType",
}


@pytest.mark.parametrize(("source", "advice"), OTHERS.items())
def test_what_is_not_a_node_is_refused_with_what_to_write_instead(load: Load, source: str, advice: str) -> None:
    with pytest.raises(click.ClickException, match=r"shop:node cannot be served: ") as caught:
        load(source)

    assert advice in caught.value.message


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("shop:node", ""),
        ("shop.node", ""),
        ("shop:Box.inner", ""),
        ("shop:built", ""),
        ("pack.part:node", ""),
        ("shop", "Use shop:NODE"),
        ("nowhere:node", "module 'nowhere' was not found (searched from "),
        ("shop:nodes", "module 'shop' has no 'nodes'; it has: built, node"),
        ("shop:Box.outer", "shop:Box has no 'outer'; it has: inner"),
        ("pack.part", "it is a module. Use pack.part:NODE; it has: node"),
        ("pack:part", "it is a module. Use pack.part:NODE; it has: node"),
        ("shop.py:node", "Use a module name: shop:node"),
        ("shop.py", "Use a module name: shop:NODE"),
        ("./shop:node", "Use a module name: --app-dir . shop:node"),
        ("code/shop.py:node", "Use a module name: --app-dir code shop:node"),
        ("/shop.py:node", "Use a module name: --app-dir / shop:node"),
        (".shop:node", "is not an import path"),
        ("shop:", "is not an import path"),
        (":node", "is not an import path"),
        ("shop:a:b", "is not an import path"),
        ("", "is not an import path"),
    ],
)
def test_a_target_leads_to_its_node_or_to_the_target_that_was_meant(load: Load, target: str, found: str) -> None:
    files = {
        "shop": "NODE\nclass Box: inner = node\nbuilt = qserve.build(node)\n",
        "pack/__init__": "",
        "pack/part": "from . import other\nNODE\n",
        "pack/other": "",
    }
    if not found:
        assert load(files, target) == "served"
        return
    with pytest.raises(click.ClickException) as caught:
        load(files, target)
    assert found in caught.value.message


# -- files that have the name of another module ----------------------------------------------------


@pytest.mark.parametrize(
    ("files", "target", "named"),
    [
        (
            {"queue": "mine = 1", "shop": "from queue import mine"},
            "shop:node",
            "queue.py has the name of a module of Py",
        ),
        (
            {"click": "mine = 1", "shop": "import click; click.mine"},
            "shop:node",
            "click.py has the name of an installed",
        ),
        ({"queue": NODE}, "queue:node", "queue.py has the name of a module of Python, which qserve has imported"),
        ({"this": "", "shop": "from this import that"}, "shop:node", "this.py has the name of a module of Python"),
        (
            {"antigravity": "1 / 0", "shop": "import antigravity"},
            "shop:node",
            "antigravity.py has the name of a module",
        ),
    ],
)
def test_a_file_of_the_user_that_shadows_a_library_is_named(
    load: Load, tmp_path: Path, files: dict[str, str], target: str, named: str
) -> None:
    with pytest.raises(click.ClickException) as caught:
        load(files, target)

    assert f"{tmp_path}/{named}" in caught.value.message
    assert "rename it" in caught.value.message
