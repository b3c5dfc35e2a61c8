"""``@multiplexed``: one replica serves many models, and loads each when a request first asks for it.

``ModelCache`` decides, without waiting, which models are kept and which are evicted.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial, wraps
from typing import Any, TypeVar, cast, overload
from weakref import WeakSet

from qserve.base.context import request_context
from qserve.base.destructor import disarm
from qserve.base.entry import enter, own_context
from qserve.base.log import get_logger
from qserve.base.promise import Promise
from qserve.define.decorators import Failure, check_async, has_self, state_of, value_of
from qserve.exceptions import QserveException

Loader = TypeVar("Loader", bound=Callable[..., Coroutine[Any, Any, Any]])
log = get_logger(__name__)


class ModelCache:
    """Models by id, the least recently used first, and slots reserved for those that are loading.

    Parameters:
      capacity: How many models may be loaded or loading at the same time; -1 for any number.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._models: OrderedDict[str, Any] = OrderedDict()
        self._loading = 0

    def ids(self) -> tuple[str, ...]:
        return tuple(self._models)

    def use(self, model_id: str) -> Any:
        """Return a model and mark it as the most recently used; raises KeyError when it is not loaded."""
        self._models.move_to_end(model_id)
        return self._models[model_id]

    def reserve(self) -> list[Any] | None:
        """Reserve a slot; returns the models evicted for it, or None while all slots are loading."""
        if 0 <= self._capacity <= self._loading:
            return None
        evicted = []
        while 0 <= self._capacity <= self._loading + len(self._models):
            evicted.append(self._models.popitem(last=False)[1])
        self._loading += 1
        return evicted

    def put(self, model_id: str, model: Any) -> None:
        self._loading -= 1
        self._models[model_id] = model

    def release(self) -> None:
        self._loading -= 1

    def clear(self) -> list[Any]:
        models, self._models = list(self._models.values()), OrderedDict()
        return models


class _Models:
    """The models that one loader keeps for one instance; safe for several threads and event loops."""

    def __init__(self, capacity: int) -> None:
        self._lock = threading.Lock()
        self.cache = ModelCache(capacity)
        self._loading: dict[str, Promise] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._waiting: list[Promise] = []

    async def get(self, model_id: str, load: Callable[[], Awaitable[Any]]) -> Any:
        with self._lock:
            with suppress(KeyError):
                return self.cache.use(model_id)
            is_first = model_id not in self._loading
            loading = self._loading.setdefault(model_id, Promise())
        if is_first:
            # a task of its own, because the first caller may be cancelled while others wait
            context = own_context()
            context.run(request_context.set, request_context.get())
            task = asyncio.get_running_loop().create_task(self._load(model_id, load), context=context)
            self._tasks.add(task)
            task.add_done_callback(partial(self._on_loaded, model_id, loading))
            del task  # like `loading` below
        try:
            return value_of(await loading)
        finally:
            del loading  # as in value_of: it holds the error, whose traceback holds this frame

    async def _load(self, model_id: str, load: Callable[[], Awaitable[Any]]) -> Any:
        evicted = await self._reserve()
        try:
            if evicted:
                _notify_listeners()
            while evicted:
                await _dispose(evicted.pop())  # pop frees its memory before the next one loads
            model = await load()
        except BaseException as error:
            with self._lock:
                self.cache.release()
            return Failure(error)
        with self._lock:
            self.cache.put(model_id, model)
        return model

    def _on_loaded(self, model_id: str, loading: Promise, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        result = Failure(asyncio.CancelledError()) if task.cancelled() else task.result()
        if isinstance(result, Failure) and isinstance(result.error, asyncio.CancelledError):
            # raised as it is, it would look to each waiter as if that had been cancelled itself
            result = Failure(QserveException(f"the loading of model {model_id!r} was cancelled"))
        with self._lock:
            del self._loading[model_id]
            waiting, self._waiting = self._waiting, []
        for slot in waiting:
            slot.set(None)
        loading.set(result)
        if not isinstance(result, Failure):
            _notify_listeners()

    async def _reserve(self) -> list[Any]:
        while True:
            with self._lock:
                evicted = self.cache.reserve()
                if evicted is not None:
                    return evicted
                slot = Promise()
                self._waiting.append(slot)
            await slot

    async def unload(self) -> None:
        with self._lock:
            models = self.cache.clear()
        for model in models:
            await _dispose(model)


async def _dispose(model: Any) -> None:
    """Await the model's ``async def __del__``; Python calls a plain one when the last request drops the model."""
    kind = type(model)
    if not inspect.iscoroutinefunction(getattr(kind, "__del__", None)):
        return
    try:
        await enter(model.__del__)
    except Exception as error:
        log.warning("__del__ of a model of type %s failed: %s", kind.__name__, error, exc_info=error)
    disarm(model)


_all_models: WeakSet[_Models] = WeakSet()
_listeners: list[Callable[[], object]] = []
_registry_lock = threading.Lock()


def _models_of(owner: Any, loader: Any, capacity: int) -> _Models:
    state = state_of(owner, "__qserve_models__")
    if loader not in state:
        with _registry_lock:
            _all_models.add(state.setdefault(loader, _Models(capacity)))
    return cast(_Models, state[loader])


def loaded_models() -> tuple[str, ...]:
    """Return the ids of all models in this process, each once, with the least recently used of a loader first."""
    with _registry_lock:
        return tuple(dict.fromkeys(model_id for models in _all_models for model_id in models.cache.ids()))


def on_change(listener: Callable[[], object]) -> Callable[[], None]:
    """Call ``listener`` in the thread that changed ``loaded_models``, after each change, until the result is called."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


def _notify_listeners() -> None:
    for listener in list(_listeners):
        try:
            listener()
        except Exception as error:  # a request must not fail because of a listener
            log.warning("a listener for loaded models failed: %s", error, exc_info=error)


async def unload_models() -> None:
    """Drop all models and await each ``async def __del__``; a replica calls this when it stops."""
    with _registry_lock:
        found = list(_all_models)
    for models in found:
        await models.unload()
    _notify_listeners()


def get_multiplexed_model_id() -> str:
    """Return the model id of the current request; "" when it has none, and outside of a request."""
    return request_context.get().multiplexed_model_id


@overload
def multiplexed(func: Loader, /) -> Loader: ...


@overload
def multiplexed(func: None = None, /, max_num_models_per_replica: int = 3) -> Callable[[Loader], Loader]: ...


def multiplexed(func: Callable[..., Any] | None = None, /, max_num_models_per_replica: int = 3) -> Any:
    """Cache the models that an ``async def`` function or method loads by id.

        @serve.multiplexed(max_num_models_per_replica=3)
        async def load(self, model_id: str) -> Model: ...

        model = await self.load(serve.get_multiplexed_model_id())

    Concurrent calls for the same model load it once; different models load at the same time. Loaded and loading models
    never exceed the limit: the least recently used one is evicted, and lives on only in requests that still use it. A
    failed load raises to all its callers, and the next call tries again. The first parameter of a method must be
    called ``self``.

    Parameters:
      max_num_models_per_replica: How many models an instance keeps; -1 for any number.

    Raises:
      TypeError: It is not an ``async def`` with one parameter for the model's id, or the limit is not an integer.
      ValueError: The limit is neither positive nor -1.
    """
    capacity = max_num_models_per_replica
    if not isinstance(capacity, int) or isinstance(capacity, bool):
        raise TypeError(f"max_num_models_per_replica must be an integer, not {capacity!r}")
    if capacity != -1 and capacity < 1:
        raise ValueError(f"max_num_models_per_replica must be positive, or -1 for no limit, not {capacity!r}")

    def decorate(loader: Callable[..., Any]) -> Any:
        check_async("multiplexed", loader, inspect.iscoroutinefunction(loader))
        name, signature = loader.__qualname__, inspect.signature(loader)
        is_method = has_self(signature)
        try:
            signature.bind(*[None] * is_method, "model_id")
        except TypeError:
            right = f"async def {name}({'self, ' * is_method}model_id)"
            raise TypeError(f"@multiplexed needs one parameter, the model's id: `{right}`, not {signature}") from None

        @wraps(loader)
        async def get(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            model_id = _checked_id(name, *bound.args[is_method:])
            owner = bound.args[0] if is_method else get
            return await _models_of(owner, loader, capacity).get(model_id, lambda: loader(*bound.args))

        return get

    return decorate if func is None else decorate(func)


def _checked_id(loader: str, *args: Any) -> str:
    if len(args) != 1 or not isinstance(args[0], str):
        raise TypeError(f"{loader} must be called with one model id, a string, not with {args!r}")
    if not args[0]:
        raise ValueError(f"{loader} got an empty model id; set it with handle.options(multiplexed_model_id=...)")
    return args[0]
