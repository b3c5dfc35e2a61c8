"""``@multiplexed``: many models take turns in one replica, loaded when a request first asks for them.

``Shelf`` is the rule, without waiting: which models are held, which must go, whether there is room for another.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import wraps
from typing import Any, TypeVar, cast, overload
from weakref import WeakSet

from qserve.base.context import request_context
from qserve.base.log import get_logger
from qserve.base.promise import Promise
from qserve.define.decorators import Failure, has_self, state_of, value_of
from qserve.exceptions import QserveException

Loader = TypeVar("Loader", bound=Callable[..., Coroutine[Any, Any, Any]])
log = get_logger(__name__)
_PLACE = "__qserve_models__"


class Shelf:
    """Models by id, the least recently used first, and places taken for those that are loading.

    Parameters:
      places: How many models may be held or loading at the same time; -1 for any number.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._held: OrderedDict[str, Any] = OrderedDict()
        self._loading = 0

    def ids(self) -> tuple[str, ...]:
        """The models that are held."""
        return tuple(self._held)

    def use(self, model_id: str) -> Any:
        """A model, from now on the most recently used; KeyError when it is not held."""
        self._held.move_to_end(model_id)
        return self._held[model_id]

    def reserve(self) -> list[Any] | None:
        """Take a place for a model; the models that had to go for it, or None while all places are loading."""
        if 0 <= self._places <= self._loading:
            return None
        evicted = []
        while 0 <= self._places <= self._loading + len(self._held):
            evicted.append(self._held.popitem(last=False)[1])
        self._loading += 1
        return evicted

    def put(self, model_id: str, model: Any) -> None:
        """Hold a model in the place that was reserved for it."""
        self._loading -= 1
        self._held[model_id] = model

    def give_up(self) -> None:
        """Free a place that was reserved."""
        self._loading -= 1

    def clear(self) -> list[Any]:
        """Take all out."""
        held, self._held = self._held, OrderedDict()
        return list(held.values())


class _Models:
    """The models of one instance and loader, for any number of threads and event loops."""

    def __init__(self, places: int) -> None:
        self._lock = threading.Lock()
        self.shelf = Shelf(places)
        self._loading: dict[str, Promise] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._waiting: list[Promise] = []

    async def get(self, model_id: str, load: Callable[[], Awaitable[Any]]) -> Any:
        with self._lock:
            with suppress(KeyError):
                return self.shelf.use(model_id)
            is_first = model_id not in self._loading
            loading = self._loading.setdefault(model_id, Promise())
        if is_first:
            self._begin(model_id, load, loading)
        try:
            return value_of(await loading)
        finally:
            del loading  # as in value_of: it holds the error, whose traceback holds this frame

    def _begin(self, model_id: str, load: Callable[[], Awaitable[Any]], loading: Promise) -> None:
        # a task of its own: the caller that happened to be first may be cancelled while others wait
        task = asyncio.get_running_loop().create_task(self._load(model_id, load))
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._on_loaded(model_id, loading, done))

    async def _load(self, model_id: str, load: Callable[[], Awaitable[Any]]) -> Any:
        evicted = await self._reserve()
        try:
            if evicted:
                _tell_listeners()
            while evicted:
                await _dispose(evicted.pop())  # popped, so that its memory is free before the next one loads
            model = await load()
        except BaseException as error:
            with self._lock:
                self.shelf.give_up()
            return Failure.of(error)
        with self._lock:
            self.shelf.put(model_id, model)
        return model

    def _on_loaded(self, model_id: str, loading: Promise, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        result = Failure.of(asyncio.CancelledError()) if task.cancelled() else task.result()
        if isinstance(result, Failure) and isinstance(result.error, asyncio.CancelledError):
            # raised as it is, it would look to each waiter as if that had been cancelled itself
            result = Failure.of(QserveException(f"the loading of model {model_id!r} was cancelled"))
        with self._lock:
            del self._loading[model_id]
            waiting, self._waiting = self._waiting, []
        for gate in waiting:
            gate.set(None)
        loading.set(result)
        if not isinstance(result, Failure):
            _tell_listeners()

    async def _reserve(self) -> list[Any]:
        while True:
            with self._lock:
                evicted = self.shelf.reserve()
                if evicted is not None:
                    return evicted
                gate = Promise()
                self._waiting.append(gate)
            await gate

    async def unload(self) -> None:
        with self._lock:
            models = self.shelf.clear()
        for model in models:
            await _dispose(model)


async def _dispose(model: Any) -> None:
    """Await an ``async def __del__``; a plain one is called by Python when the last request lets go of the model."""
    kind = type(model)
    if not inspect.iscoroutinefunction(getattr(kind, "__del__", None)):
        return
    try:
        await model.__del__()
    except Exception as error:
        log.warning("__del__ of a model of type %s failed: %s", kind.__name__, error, exc_info=error)
    # Python looks `__del__` up on the type, and would make the same coroutine again without running it;
    # a type whose layout forbids this only leaves Python's warning about that
    with suppress(TypeError):
        model.__class__ = type(kind.__name__, (kind,), {"__slots__": (), "__del__": lambda model: None})


_all_models: WeakSet[_Models] = WeakSet()
_listeners: list[Callable[[], None]] = []
_registry_lock = threading.Lock()


def _models_of(owner: Any, loader: Any, places: int) -> _Models:
    state = state_of(owner, _PLACE)
    if loader not in state:
        with _registry_lock:
            _all_models.add(state.setdefault(loader, _Models(places)))
    return cast(_Models, state[loader])


def _find(owner: Any) -> list[_Models]:
    with _registry_lock:
        return list(_all_models) if owner is None else list(vars(owner).get(_PLACE, {}).values())


def loaded_models(owner: Any = None) -> tuple[str, ...]:
    """The ids of the models that are loaded, each once, with the least recently used of a loader first.

    Parameters:
      owner: The instance whose methods loaded them, or the decorated function; None for all in this process.
    """
    return tuple(dict.fromkeys(model_id for models in _find(owner) for model_id in models.shelf.ids()))


def on_change(listener: Callable[[], None]) -> Callable[[], None]:
    """Have ``listener`` called after ``loaded_models`` changed, in the thread where it did; returns what ends that."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


def _tell_listeners() -> None:
    for listener in list(_listeners):
        try:
            listener()
        except Exception as error:  # a request must not fail because nobody could be told
            log.warning("a listener for loaded models failed: %s", error, exc_info=error)


async def unload_models(owner: Any = None) -> None:
    """Let go of all models, awaiting each ``async def __del__``; for a replica that ends."""
    for models in _find(owner):
        await models.unload()
    _tell_listeners()


def get_multiplexed_model_id() -> str:
    """The model that the running request is for; "" when it names none, and outside of a request."""
    return request_context.get().multiplexed_model_id


@overload
def multiplexed(func: Loader, /) -> Loader: ...


@overload
def multiplexed(func: None = None, /, max_num_models_per_replica: int = 3) -> Callable[[Loader], Loader]: ...


def multiplexed(func: Callable[..., Any] | None = None, /, max_num_models_per_replica: int = 3) -> Any:
    """Let an ``async def`` function or method that loads a model by its id keep the models it loaded.

    A model is loaded once, however many ask for it; different ones load at the same time. Those held or loading never
    exceed the limit: the least recently used makes room, and lives on only in requests that still use it. A failed
    load reaches all who wait, and is tried again by the next call. The first parameter of a method must be ``self``.

    Parameters:
      max_num_models_per_replica: How many models an instance holds; -1 for any number.

    Raises:
      TypeError: It is not an ``async def`` with one parameter for the model's id, or the limit is no integer.
      ValueError: The limit is neither positive nor -1.
    """
    places = max_num_models_per_replica
    if not isinstance(places, int) or isinstance(places, bool):
        raise TypeError(f"max_num_models_per_replica must be an integer, not {places!r}")
    if places != -1 and places < 1:
        raise ValueError(f"max_num_models_per_replica must be positive, or -1 for no limit, not {places!r}")

    def decorate(loader: Callable[..., Any]) -> Any:
        is_method = _check_loader(loader)
        signature = inspect.signature(loader)

        @wraps(loader)
        async def get(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            model_id = _checked_id(loader.__qualname__, *bound.args[is_method:])
            owner = bound.args[0] if is_method else get
            return await _models_of(owner, loader, places).get(model_id, lambda: loader(*bound.args))

        return get

    return decorate if func is None else decorate(func)


def _check_loader(loader: Any) -> bool:
    """Whether the loader is a method; TypeError when it is no loader."""
    name = getattr(loader, "__qualname__", repr(loader))
    if not inspect.iscoroutinefunction(loader):
        raise TypeError(f"@multiplexed needs an `async def` function or method, which {name} is not")
    signature = inspect.signature(loader)
    is_method = has_self(signature)
    try:
        signature.bind(*[None] * is_method, "model_id")
    except TypeError:
        right = f"async def {name}({'self, ' * is_method}model_id)"
        raise TypeError(f"@multiplexed needs one parameter, the model's id: `{right}`, not {signature}") from None
    return is_method


def _checked_id(loader: str, *args: Any) -> str:
    if len(args) != 1 or not isinstance(args[0], str):
        raise TypeError(f"{loader} must be called with one model id, a string, not with {args!r}")
    if not args[0]:
        raise ValueError(f"{loader} got an empty model id; callers name one: handle.options(multiplexed_model_id=...)")
    return args[0]
