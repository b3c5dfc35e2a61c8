"""``@multiplexed``: one replica serves many models, and loads each when a request first asks for it.

``ModelCache`` decides, without waiting, which models are kept and which are evicted.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable
from contextlib import suppress
from functools import partial, wraps
from itertools import chain
from typing import Any, Final, TypeVar, cast, overload
from weakref import WeakSet, ref

from qserve.base.context import request_context, scope_here
from qserve.base.destructor import disarm
from qserve.base.entry import enter, own_context
from qserve.base.forks import end_if_child
from qserve.base.log import get_logger
from qserve.base.promise import Promise
from qserve.define.decorators import Failure, check_async, has_self, state_of, value_of
from qserve.exceptions import QserveException
from qserve.metrics.measures import count, timed

Loader = TypeVar("Loader", bound=Callable[..., Coroutine[Any, Any, Any]])
log: Final = get_logger(__name__)


class ModelCache:
    """Models by id, the least recently used first, who uses each, and slots reserved for those that are loading.

    Parameters:
      capacity: How many models may be loaded or loading at the same time; -1 for any number.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._models: OrderedDict[str, Any] = OrderedDict()
        self._users: dict[str, set[Hashable]] = {}
        self._loading = 0

    def ids(self) -> tuple[str, ...]:
        return tuple(self._models)

    def use(self, model_id: str, users: Iterable[Hashable] = ()) -> Any:
        """Return a model and mark it as the most recently used; raises KeyError when it is not loaded.

        Parameters:
          users: Those that use it from now on, until they ``leave``.
        """
        self._models.move_to_end(model_id)
        self._users.setdefault(model_id, set()).update(users)
        return self._models[model_id]

    def leave(self, user: Hashable) -> None:
        for users in self._users.values():
            users.discard(user)

    def reserve(self, waiting: Iterable[Hashable] = ()) -> list[Any] | None:
        """Reserve a slot; returns the models evicted for it, or None while all are loading or in use.

        Parameters:
          waiting: The users that wait for a slot. If no other uses any model, and none is loading, one of theirs is
            evicted, since they would wait for each other.
        """
        evicted = []
        if 0 <= self._capacity <= self._loading + len(self._models):
            idle = [model_id for model_id in self._models if not self._users.get(model_id)]
            if not idle and not self._loading and set(waiting).issuperset(chain(*self._users.values())):
                idle = list(self._models)
            if not idle:
                return None
            self._users.pop(idle[0], None)
            evicted.append(self._models.pop(idle[0]))
        self._loading += 1
        return evicted

    def put(self, model_id: str, model: Any, users: Iterable[Hashable] = ()) -> None:
        self._loading -= 1
        self._models[model_id] = model
        self._users[model_id] = set(users)

    def release(self) -> None:
        self._loading -= 1

    def clear(self) -> list[Any]:
        models, self._models, self._users = list(self._models.values()), OrderedDict(), {}
        return models


class _Loading:
    """A model that is loaded for those that wait for it.

    Parameters:
      waiting: What each of them belongs to, see ``_Models._users``.
      has_slot: Whether there is room for it.
    """

    def __init__(self) -> None:
        self.loaded: Promise = Promise()
        self.waiting: list[list[Hashable]] = []
        self.has_slot = False


class _Models:
    """The models that one loader keeps for one instance; safe for several threads and event loops."""

    def __init__(self, capacity: int, name: str = "") -> None:
        self._name = name
        self._lock = threading.Lock()
        self.cache = ModelCache(capacity)
        self._loading: dict[str, _Loading] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._waiting: list[Promise] = []
        self._known: set[Hashable] = set()
        """The users whose end is awaited."""

    async def get(self, model_id: str, load: Callable[[], Awaitable[Any]]) -> Any:
        users = self._users()
        count("serve_multiplexed_get_model_requests_counter", function_name=self._name)
        with self._lock:
            with suppress(KeyError):
                return self.cache.use(model_id, users)
            is_first = model_id not in self._loading
            loading = self._loading.setdefault(model_id, _Loading())
            loading.waiting.append(users)
        self._wake()  # what waits for a slot may now wait for this call as well
        if is_first:
            # its own task, because the first caller may be cancelled while others wait
            context = own_context()
            context.run(request_context.set, request_context.get())
            load_once = self._load(model_id, loading, load)
            task = asyncio.get_running_loop().create_task(load_once, context=context)
            self._tasks.add(task)
            task.add_done_callback(partial(self._on_loaded, model_id, loading))
            del task  # like `loading` below
        try:
            return value_of(await loading.loaded)
        finally:
            loading.waiting.remove(users)
            if not loading.waiting and not loading.has_slot:
                self._wake()
            del loading, users  # as in value_of: they may hold the error, whose traceback holds this frame

    def _users(self) -> list[Hashable]:
        """Return what the running code belongs to: its call or batch, and its task. At their end they use no model."""
        scope, models = scope_here.get(), ref(self)  # not to keep the models beyond their instance

        def leave(user: Hashable) -> None:
            found = models()
            if found is not None:
                with found._lock:
                    found._known.discard(user)
                    found.cache.leave(user)
                found._wake()

        users: list[Hashable] = []
        if scope is not None and not scope.is_over:
            users.append(scope)
            if scope not in self._known:
                scope.at_end(partial(leave, scope))
        task = asyncio.current_task()
        if task is not None:
            users.append(task)
            if task not in self._known:
                task.add_done_callback(leave)
        self._known.update(users)
        return users

    def _wake(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for slot in waiting:
            slot.set(None)

    async def _load(self, model_id: str, loading: _Loading, load: Callable[[], Awaitable[Any]]) -> Any:
        evicted = await self._reserve(model_id, loading)
        if evicted is None:
            return Failure(asyncio.CancelledError())
        try:
            if evicted:
                _notify_listeners()
                count("serve_multiplexed_models_unload_counter", len(evicted), function_name=self._name)
            while evicted:
                await _dispose(evicted.pop())  # pop frees its memory before the next one loads
            with timed("serve_multiplexed_model_load_latency_ms", function_name=self._name):
                model = await load()
            count("serve_multiplexed_models_load_counter", function_name=self._name)
        except BaseException as error:
            end_if_child(error)
            with self._lock:
                self.cache.release()
            return Failure(error)
        else:
            with self._lock:
                self.cache.put(model_id, model, chain(*loading.waiting))
            return model
        finally:
            del loading  # as in `get`

    def _on_loaded(self, model_id: str, loading: _Loading, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        result = Failure(asyncio.CancelledError()) if task.cancelled() else task.result()
        if isinstance(result, Failure) and isinstance(result.error, asyncio.CancelledError):
            # raised as it is, it would look to each waiter as if that had been cancelled itself
            result = Failure(QserveException(f"the loading of model {model_id!r} was cancelled"))
        with self._lock:
            if self._loading.get(model_id) is loading:
                del self._loading[model_id]
        self._wake()
        loading.loaded.set(result)
        if not isinstance(result, Failure):
            _notify_listeners()

    async def _reserve(self, model_id: str, loading: _Loading) -> list[Any] | None:
        """Wait for a slot and return the models evicted for it; None once no call waits for the model any more."""
        while True:
            with self._lock:
                if not loading.waiting:
                    del self._loading[model_id]  # so that the next call loads it again
                    return None
                queued = (other.waiting for other in self._loading.values() if not other.has_slot)
                evicted = self.cache.reserve(chain(*chain(*queued)))
                if evicted is not None:
                    loading.has_slot = True
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
            _all_models.add(state.setdefault(loader, _Models(capacity, loader.__qualname__)))
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
    """Return the model ID of the current request, which its caller has chosen.

    Over HTTP that is the header ``serve_multiplexed_model_id``; by handle
    ``handle.options(multiplexed_model_id="german")``.

    Returns:
      The ID; "" when the request has none, and outside of a request.

    Example:
      @serve.deployment
      class Model:
          def __call__(self) -> str:
              return serve.get_multiplexed_model_id()

      model = serve.run(Model.bind(), local=True)
      print(model.options(multiplexed_model_id="german").remote().result())  # german
    """
    return request_context.get().multiplexed_model_id


@overload
def multiplexed(func: Loader, /) -> Loader: ...


@overload
def multiplexed(func: None = None, /, max_num_models_per_replica: int = 3) -> Callable[[Loader], Loader]: ...


def multiplexed(func: Callable[..., Any] | None = None, /, max_num_models_per_replica: int = 3) -> Any:
    """Cache the models that an ``async def`` function or method loads by ID.

    Concurrent calls for the same model load it once; different models load at the same time. Loaded and loading models
    never exceed the limit: the least recently used one that no call uses is evicted first, and its ``__del__`` awaited
    if that is ``async def``. A call uses its models until it ends; when all are in use, a load waits for one. If all
    the calls that use models wait for others, the least recently used model of theirs is evicted all the same: that
    happens when one call asks for more models than the limit. A failed load raises to all its callers, and the next
    call tries again. The first parameter of a method must be called ``self``.

    Parameters:
      func: The function or method, which takes the model's ID and returns the model; None where options are given.
      max_num_models_per_replica: How many models an instance keeps; -1 for any number.

    Returns:
      The loader, which returns a model that is in the cache without loading it again.

    Raises:
      TypeError: It is not an ``async def`` with one parameter for the model's ID, or the limit is not an integer.
      ValueError: The limit is neither positive nor -1.

    Example:
      @serve.deployment
      class Translator:
          @serve.multiplexed(max_num_models_per_replica=3)
          async def load(self, model_id: str) -> dict[str, str]:
              return {"hello": {"german": "Hallo", "spanish": "Hola"}[model_id]}

          async def __call__(self, word: str) -> str:
              model = await self.load(serve.get_multiplexed_model_id())
              return model[word]

      translator = serve.run(Translator.bind(), local=True)
      print(translator.options(multiplexed_model_id="german").remote("hello").result())  # Hallo
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
        raise ValueError(
            f"{loader} got an empty model id; set it with handle.options(multiplexed_model_id=...), or with the header"
            " serve_multiplexed_model_id over HTTP"
        )
    return args[0]
