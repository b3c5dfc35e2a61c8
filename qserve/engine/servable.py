"""The user's object: it is constructed, reconfigured, checked and destroyed here, and its methods are looked up."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from time import perf_counter
from types import MethodType
from typing import Any, get_origin

from qserve.base import context
from qserve.base.context import NO_REQUEST, request_context
from qserve.base.destructor import disarm
from qserve.base.entry import enter, own_context
from qserve.base.forks import end_if_child
from qserve.base.loop_at_hand import loop_at_hand, seen_in_thread
from qserve.base.promise import for_future
from qserve.calls.handles import DeploymentHandle, RayServeDeploymentHandle
from qserve.exceptions import QserveException, WebSocketNotSupported
from qserve.http.websocket import NO_WEBSOCKETS
from qserve.wire.outcome import SESSION

_get_loop, _set_loop = asyncio._get_running_loop, asyncio._set_running_loop
FAST_S = 0.002
"""A sync method that takes less time runs on the loop: handing it to a thread and back costs 0.1 ms."""
_LOOP_S = 0.00002
"""To run an event loop of its own takes a sync method longer."""
LONGEST_BATCH = 64
_HOOKS = ("reconfigure", "check_health", "record_autoscaling_stats")
COROUTINE_BATCH = 16
"""Coroutines do not hold the loop: reading ahead delays nothing."""


@dataclass(slots=True)
class Method:
    """A method ready to be called, and the measured time of a sync one, which decides where it runs.

    Parameters:
      call: The bound method or the function itself.
      is_async: Whether calling it returns a coroutine.
      makes_generator: Whether calling it only makes a generator, and runs nothing yet.
      takes_request: False when it has no parameters at all, and so is called without the request.
      seconds: The average time of a call; infinite before the first.
      makes_calls: Whether it has called a deployment. It may wait for the result, which comes by the loop.
      is_fast: Whether it runs on the loop, although it is not async.
      calls: How often it was called.
    """

    call: Callable[..., Any]
    is_async: bool
    makes_generator: bool
    takes_request: bool
    seconds: float = inf
    makes_calls: bool = False
    is_fast: bool = False
    calls: int = 0

    @property
    def batch(self) -> int:
        """How many calls make about 2 ms of work; a slow method takes one, so that others wait elsewhere."""
        if self.is_async:
            return COROUTINE_BATCH
        return max(1, min(LONGEST_BATCH, int(FAST_S / max(self.seconds, 1e-6))))

    def measure(self, args: Any, kwargs: dict[str, Any]) -> Any:
        """Call it, and take the time into the average; one slow call is enough to be slow again."""
        # as in a thread: it may run a loop of its own
        loop, began = _get_loop(), perf_counter()
        _set_loop(None)
        try:
            return self.call(*args, **kwargs)
        finally:
            _set_loop(loop)
            seconds = perf_counter() - began
            if loop is not None and seconds > _LOOP_S:
                asyncio.set_event_loop(loop)  # the end of asyncio.run has removed it
            self.seconds = seconds if self.seconds == inf else (self.seconds + seconds) / 2
            # threads that it starts have no request, and it may wait for these
            if request_context.get().makes_calls or (NO_REQUEST.makes_calls and context.replica is not None):
                self.makes_calls = True
            self.is_fast = self.seconds < FAST_S and not self.makes_calls


@dataclass
class Servable:
    """A deployment's class or function, with an instance of the class.

    Parameters:
      target: What the user decorated.
      args, kwargs: Bound arguments, with handles in the place of bound deployments.
      instance: The user's object once it is constructed; the function itself for a function deployment.
      part: What of it runs until it takes calls, by its name for messages.
    """

    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    instance: Any = None
    part: str = "constructor"
    _methods: dict[str, Method] = field(default_factory=dict)

    def construct_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Construct the instance; errors of user code pass through.

        A sync ``__init__`` runs while the loop does not, and may run loops of its own.

        Parameters:
          loop: The loop of this thread, which does not run.
        """
        self.instance = None
        if not inspect.iscoroutinefunction(getattr(self.target, "__init__", None)):
            with loop_at_hand(loop):
                try:
                    own_context().run(self._instantiate)
                except BaseException as error:
                    end_if_child(error)
                    raise
                end_if_child(None)
        loop.run_until_complete(self.construct())

    async def construct(self) -> None:
        """Construct the instance unless that was done, awaiting an ``async def __init__``.

        An ``@serve.ingress`` class has a ``__qserve_start__`` as well, which starts its application.
        """
        if self.instance is None:
            await enter(self._instantiate)
        start = self._hook("__qserve_start__")
        if start is not None:
            self.part = "web application"
            await enter(start)

    def _instantiate(self) -> Awaitable[None] | None:
        """Construct the instance, or return the coroutine that does so."""
        if not inspect.isclass(self.target):
            self.instance = self.target
            return None
        args, kwargs = self._adapted_arguments(self.target.__init__)
        if not inspect.iscoroutinefunction(self.target.__init__):
            self.instance = self.target(*args, **kwargs)
            return None
        self.instance = self.target.__new__(self.target)
        made: Awaitable[None] = self.target.__init__(self.instance, *args, **kwargs)
        return made

    def _adapted_arguments(self, init: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Give handles of the newer kind where the constructor's annotations ask for them."""
        if not (self.args or self.kwargs):
            return (), {}
        hints = getattr(init, "__annotations__", {})
        new_style = {name for name, hint in hints.items() if _is_new_handle(hint)}
        try:
            bound = inspect.signature(init).bind(None, *self.args, **self.kwargs)
        except TypeError:  # the arguments do not fit: the call itself raises a better message
            return self.args, self.kwargs
        for name in new_style & set(bound.arguments):
            if isinstance(bound.arguments[name], RayServeDeploymentHandle):
                bound.arguments[name] = bound.arguments[name].options(use_new_handle_api=True)
        return bound.args[1:], bound.kwargs

    def _hook(self, name: str) -> Any:
        """Return a method that we call by ourselves; None where the user's class has none, or is a function."""
        return getattr(self.instance, name, None) if inspect.isclass(self.target) else None

    async def reconfigure(self, user_config: Any) -> None:
        """Pass a user_config to the instance; raise QserveException when there is no method to take it."""
        self.part, method = "reconfigure", self._hook("reconfigure")
        if method is None:
            name = getattr(self.target, "__name__", "the deployment")
            raise QserveException(
                f"user_config is set for {name!r}, so it must be a class with a method `reconfigure(self, user_config)`"
            )
        await enter(_at_hand, method, user_config)

    @property
    def has_coroutines(self) -> bool:
        """Whether some calls of a class run on the loop, so that they need not wait for a sync method."""
        members = inspect.getmembers(self.target) if inspect.isclass(self.target) else []
        return any(
            inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member)
            for name, member in members
            if (name == "__call__" or not name.startswith("_")) and name not in _HOOKS
        )

    @property
    def has_health_check(self) -> bool:
        return self._hook("check_health") is not None

    @property
    def has_stats(self) -> bool:
        return self._hook("record_autoscaling_stats") is not None

    async def check_health(self) -> None:
        """Call the user's ``check_health``; it raises if the object is not healthy."""
        await self._ask("check_health")

    async def autoscaling_stats(self) -> Any:
        """Return what the user's ``record_autoscaling_stats`` returns."""
        return await self._ask("record_autoscaling_stats")

    async def _ask(self, name: str) -> Any:
        """Call a method of the user's: a coroutine function on the loop, any other in its own thread."""
        hook = getattr(self.instance, name)
        try:
            if inspect.iscoroutinefunction(hook):
                return await enter(hook)
            return await enter(asyncio.to_thread, _in_thread, asyncio.get_running_loop(), for_future(hook))
        except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
            # unchanged, they would end the loop from within the task that awaits this
            raise RuntimeError(f"it raised {type(error).__name__}") from error

    async def destroy(self) -> None:
        """Shut an ingress's application down, then call the user's ``__del__``, once; errors pass through."""
        stop, delete = self._hook("__qserve_stop__"), self._hook("__del__")
        try:
            if stop is not None:
                await enter(stop)
        finally:
            if delete is not None:
                await enter(_at_hand, delete)
                disarm(self.instance)

    def public_methods(self) -> list[str]:
        """Return the names of the methods that callers may call; those that qserve calls are not among them."""
        if not inspect.isclass(self.target):
            return ["__call__"]
        members = [name for name, _ in inspect.getmembers(self.target, inspect.isroutine)]
        return [name for name in members if (name == "__call__" or not name.startswith("_")) and name not in _HOOKS]

    def counts(self) -> dict[str, int]:
        """Return how often each method was called; from any thread."""
        return {name: method.calls for name, method in self._methods.copy().items()}

    def method(self, name: str) -> Method:
        """Return a method by its name; raise QserveException, which lists those there are, for another name."""
        call = (
            self.target if self.instance is self.target and name == "__call__" else getattr(self.instance, name, None)
        )
        found = self._methods.get(name)
        if found is None or not _is_same(call, found.call):  # user code may put another function in its place
            calls = 0 if found is None else found.calls
            found = self._methods[name] = self._look_up(name, call)
            found.calls = calls
        return found

    def _look_up(self, name: str, call: Any) -> Method:
        is_class = inspect.isclass(self.target)
        if name == SESSION and call is None:
            raise WebSocketNotSupported(NO_WEBSOCKETS)
        if call is None or not callable(call):
            members = inspect.getmembers(self.target, callable) if is_class else []
            public = [name for name, _ in members if not name.startswith("_")]
            raise QserveException(f"Tried to call a method {name!r} that does not exist. Available methods: {public}.")
        body = call if inspect.isroutine(call) else type(call).__call__
        is_async = inspect.iscoroutinefunction(body) or inspect.iscoroutinefunction(call)
        makes_generator = inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body)
        return Method(call, is_async, makes_generator, _takes_anything(call))


def _is_same(call: Any, other: Any) -> bool:
    # a method is bound anew each time; other objects may have an `__eq__` of the user's
    return call is other or (type(call) is MethodType and type(other) is MethodType and call == other)


def _at_hand(hook: Callable[..., Any], *args: Any) -> Any:
    with loop_at_hand(asyncio.get_running_loop()):
        return hook(*args)


def _in_thread(loop: asyncio.AbstractEventLoop, hook: Callable[[], Any]) -> Any:
    asyncio.set_event_loop(seen_in_thread(loop))
    try:
        return hook()
    finally:
        asyncio.set_event_loop(None)


def _is_new_handle(hint: Any) -> bool:
    # Annotations are text under `from __future__ import annotations`. Code that travelled by value left behind the
    # names that only its annotations use, so the text cannot be evaluated here.
    if isinstance(hint, str):
        return hint.partition("[")[0].rpartition(".")[2] == DeploymentHandle.__name__
    return (get_origin(hint) or hint) is DeploymentHandle


def _takes_anything(call: Callable[..., Any]) -> bool:
    try:
        return bool(inspect.signature(call).parameters)
    except (TypeError, ValueError):  # a builtin without a signature: let the call decide
        return True
