"""What code that travels by value may refer to, and how an object that cannot travel is named."""

from __future__ import annotations

import contextvars
import fnmatch
import functools
import pickle
import subprocess
import sys
import threading
from types import ModuleType
from typing import Any

import cloudpickle
import pytest

from qserve.base.keyring import Keyring
from qserve.deploy.registration import DeploymentCode, pack_code
from qserve.exceptions import PayloadError
from qserve.wire.pickling import dumps

SOURCE = """
import contextvars, functools, threading, tempfile, typing
from concurrent.futures import ThreadPoolExecutor
from threads_of_mine import IMPORTED

USER = contextvars.ContextVar("user", default="nobody")
TRACE = contextvars.ContextVar("trace")
SET = contextvars.ContextVar("set", default=1)
SET.set(None)
HELD = contextvars.ContextVar("held", default="nothing")
HELD.set(threading.Lock())
OWN = contextvars.ContextVar("own")
OWN.set(lambda: OWN.get() is not None)
LOCK = threading.Lock()
THREADS = ThreadPoolExecutor(1)
FILE = tempfile.TemporaryFile("w+")

class Holder:
    def __init__(self): self.deep = {"locks": [LOCK]}

HOLDER = Holder()

def lock(): return LOCK

class Variables:
    def name(self, name): USER.set(name)
    def seen(self): return USER.get(), TRACE.get("none"), IMPORTED

class Values:
    def run(self): return [SET.get(), HELD.get(), OWN.get()()]

class Plain: pass
class Direct:
    def run(self): return LOCK
class Indirect:
    def run(self): return [lock() for _ in range(3)]
class Pool:
    def run(self): return THREADS
class Deep:
    async def run(self): return HOLDER
class Member:
    held = LOCK
class Default:
    def run(self, held=LOCK): return held
class Derived(Direct): pass
class Property:
    @property
    def run(self): return LOCK
class Writes:
    def run(self): FILE.write("x")

UserId = typing.NewType("UserId", int)
P, Ts = typing.ParamSpec("P"), typing.TypeVarTuple("Ts")

@functools.lru_cache(maxsize=7)
def fibonacci(n): return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

@functools.singledispatch
def kind(value): return "object"

@kind.register
def kind_of_int(value: int): return "int"

class Uses:
    def __init__(self): self.made = 0
    @functools.cached_property
    def model(self):
        self.made += 1
        return self.made
    @functools.cache
    def square(self, number): return number * number
    @functools.singledispatchmethod
    def name(self, value): return "object"
    @name.register
    def name_of_int(self, value: int): return "int"
    def run(self, user: UserId = UserId(3)):
        local = functools.cache(lambda: [user])
        return [
            fibonacci(40), fibonacci.cache_parameters()["maxsize"], fibonacci.__name__, kind(1), kind(""), self.model,
            self.model, self.square(3), self.name(1), self.name(""), local() is local(), P.__name__, Ts.__name__,
        ]

def enclosing():
    inner = LOCK
    class Enclosed:
        def run(self): return inner
    return Enclosed
Enclosed = enclosing()
"""


@pytest.fixture(scope="module")
def script() -> Any:
    """A module that replicas cannot import, as ``__main__`` is."""
    library, module = ModuleType("threads_of_mine"), ModuleType("script_of_mine")
    library.IMPORTED = contextvars.ContextVar("imported")  # type: ignore[attr-defined]
    sys.modules[library.__name__], sys.modules[module.__name__] = library, module
    cloudpickle.register_pickle_by_value(module)
    exec(SOURCE, vars(module))
    yield module
    module.FILE.close()
    module.THREADS.shutdown()
    cloudpickle.unregister_pickle_by_value(module)
    del sys.modules[library.__name__], sys.modules[module.__name__]


def packed(target: Any, *args: Any, **kwargs: Any) -> bytes:
    return pack_code({"Model": DeploymentCode(target, args, kwargs)}, Keyring(b"k" * 32))


def test_code_finds_its_context_variables_once_in_a_process_and_with_their_defaults(script: Any) -> None:
    reading = (
        "import sys, types, pickle, contextvars\n"
        "library = sys.modules['threads_of_mine'] = types.ModuleType('threads_of_mine')\n"
        "library.IMPORTED = contextvars.ContextVar('of this process')\n"
        "first, second = (pickle.loads(data)() for data in pickle.load(sys.stdin.buffer))\n"
        "before = first.seen()[:2]\n"
        "second.name('bob')\n"
        "print(before, first.seen()[0], first.seen()[2] is library.IMPORTED)\n"
    )
    twice = pickle.dumps([dumps(script.Variables), dumps(script.Variables)])

    found = subprocess.run([sys.executable, "-c", reading], input=twice, capture_output=True, check=True)

    assert found.stdout.decode().strip() == "('nobody', 'none') bob True"


@pytest.mark.slow
def test_the_variables_of_a_script_keep_the_values_that_it_has_set(script: Any) -> None:
    data, sent = packed(script.Values), dumps(script.Values)
    reading = (
        "import contextvars, pickle, sys\n"
        "from qserve.base.keyring import Keyring\n"
        "from qserve.deploy.registration import unpack_code\n"
        "data, sent = pickle.load(sys.stdin.buffer)\n"
        "context = contextvars.Context()\n"
        "code = context.run(unpack_code, data, Keyring(b'k' * 32), 'Model')\n"
        "print(context.copy().run(code.func_or_class().run))\n"
        "pickle.loads(sent)\n"  # as a value of a call, which brings nothing of its sender's context
        "print([value for variable, value in contextvars.copy_context().items() if variable.name == 'set'])\n"
    )

    found = subprocess.run([sys.executable, "-c", reading], input=pickle.dumps((data, sent)), capture_output=True)

    assert found.stdout.decode().splitlines() == ["[None, 'nothing', True]", "[]"], found.stderr.decode()


def test_code_may_use_what_python_pickles_by_name_or_with_a_lock(script: Any) -> None:
    reading = "import sys, pickle; print(pickle.load(sys.stdin.buffer)().run())"
    expected = script.Uses().run()

    found = subprocess.run([sys.executable, "-c", reading], input=dumps(script.Uses), capture_output=True, check=True)

    assert found.stdout.decode().strip() == repr(expected)
    assert expected[0] == 102_334_155


def test_a_cached_function_of_a_module_is_imported_and_one_of_a_function_travels() -> None:
    @functools.cache
    def twice(number: int) -> int:
        return 2 * number

    cached: Any = fnmatch._compile_pattern  # type: ignore[attr-defined]
    assert pickle.loads(dumps(cached)) is cached
    assert pickle.loads(dumps(twice))(3) == 6


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Direct", "the global variable 'LOCK', which Direct.run uses, cannot be pickled"),
        ("Indirect", "the global variable 'LOCK', which lock uses, cannot be pickled"),
        ("Pool", "the global variable 'THREADS', which Pool.run uses, cannot be pickled: THREADS._work_queue:"),
        ("Deep", "the global variable 'HOLDER', which Deep.run uses, cannot be pickled: HOLDER.deep['locks'][0]:"),
        ("Member", "the attribute 'held' of the class Member cannot be pickled"),
        ("Default", "the default of 'held' in Default.run cannot be pickled"),
        ("Derived", "the global variable 'LOCK', which Direct.run uses, cannot be pickled"),
        ("Property", "the global variable 'LOCK', which Property.run uses, cannot be pickled"),
        ("Writes", "the global variable 'FILE', which Writes.run uses, cannot be pickled: Cannot pickle files that"),
        ("Enclosed", "the variable 'inner' of an enclosing function, which enclosing.<locals>.Enclosed.run uses,"),
    ],
)
def test_an_object_that_cannot_travel_is_named_with_the_code_that_uses_it(script: Any, name: str, said: str) -> None:
    with pytest.raises(PayloadError) as caught:
        packed(vars(script)[name])

    text = str(caught.value)
    assert text.startswith(f"deployment 'Model' cannot be sent to its replicas: {said}")
    assert "\n" not in text
    assert "Make it in the constructor or in a module that the replicas import" in text


@pytest.mark.parametrize(
    ("args", "kwargs", "place"), [((1, [threading.Lock()]), {}, "args[1][0]"), ((), {"held": threading.Lock()}, "held")]
)
def test_an_argument_of_bind_that_cannot_travel_is_named(script: Any, args: Any, kwargs: Any, place: str) -> None:
    with pytest.raises(PayloadError) as caught:
        packed(script.Plain, *args, **kwargs)

    assert f"an argument of bind cannot be pickled: {place}: cannot pickle '_thread.lock' object" in str(caught.value)
