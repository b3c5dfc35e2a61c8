"""The user's object of one replica: constructed once, its methods looked up once."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_origin

from qserve.calls.handles import DeploymentHandle, RayServeDeploymentHandle
from qserve.exceptions import QserveException


@dataclass(frozen=True)
class Method:
    """A method ready to be called.

    Parameters:
      call: The bound method or the function itself.
      is_async: Whether calling it gives a coroutine.
      makes_generator: Whether calling it only makes a generator, and runs nothing yet.
      takes_request: False when it has no parameters at all, and so is called without the request.
    """

    name: str
    call: Callable[..., Any]
    is_async: bool
    makes_generator: bool
    takes_request: bool


class Servable:
    """A deployment's class or function, with an instance of the class.

    Parameters:
      func_or_class: What the user decorated.
      init_args, init_kwargs: Bound arguments, with handles in the place of bound deployments.
    """

    def __init__(
        self,
        func_or_class: Callable[..., Any],
        init_args: tuple[Any, ...],
        init_kwargs: Mapping[str, Any],
    ):
        self._target = func_or_class
        self._args = init_args
        self._kwargs = dict(init_kwargs)
        self._instance: Any = None
        self._methods: dict[str, Method] = {}

    @property
    def instance(self) -> Any:
        """The user's object; the function itself for a function deployment."""
        return self._instance

    async def construct(self) -> None:
        """Make the instance; an ``async def __init__`` is awaited. Errors of user code pass through."""
        if not inspect.isclass(self._target):
            self._instance = self._target
            return
        args, kwargs = self._adapted_arguments(self._target.__init__)
        if not inspect.iscoroutinefunction(self._target.__init__):
            self._instance = self._target(*args, **kwargs)
            return
        self._instance = self._target.__new__(self._target)
        await self._target.__init__(self._instance, *args, **kwargs)

    def _adapted_arguments(self, init: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Handles of the newer kind where the constructor's annotation asks for them."""
        hints = getattr(init, "__annotations__", {})
        wanted = {name for name, hint in hints.items() if _is_new_handle(hint)}
        try:
            bound = inspect.signature(init).bind(None, *self._args, **self._kwargs)
        except TypeError:  # arguments that do not fit: Python's own call will say it better
            return self._args, self._kwargs
        for name in wanted & set(bound.arguments):
            if isinstance(bound.arguments[name], RayServeDeploymentHandle):
                bound.arguments[name] = bound.arguments[name].options(use_new_handle_api=True)
        return bound.args[1:], bound.kwargs

    async def reconfigure(self, user_config: Any) -> None:
        """Pass a user_config to the instance.

        Raises:
          QserveException: There is no ``reconfigure`` method that could take it.
        """
        method = getattr(self._instance, "reconfigure", None)
        if method is None or not inspect.isclass(self._target):
            name = getattr(self._target, "__name__", "the deployment")
            raise QserveException(
                f"user_config is set for {name!r}, so it must be a class with a method `reconfigure(self, user_config)`"
            )
        result = method(user_config)
        if asyncio.iscoroutine(result):
            await result

    def health_check(self) -> Callable[[], Any] | None:
        """The user's ``check_health``, when the class has one."""
        return getattr(self._instance, "check_health", None) if inspect.isclass(self._target) else None

    async def destroy(self) -> None:
        """Call the user's ``__del__`` (once: the process ends without Python's own); errors pass through."""
        delete = getattr(self._instance, "__del__", None) if inspect.isclass(self._target) else None
        if delete is not None:
            result = delete()
            if asyncio.iscoroutine(result):
                await result

    def method(self, name: str) -> Method:
        """A method by its name.

        Raises:
          QserveException: There is no such method; the text lists those there are.
        """
        found = self._methods.get(name)
        if found is None:
            found = self._methods[name] = self._look_up(name)
        return found

    def _look_up(self, name: str) -> Method:
        if name == "__call__" and not inspect.isclass(self._target):
            call: Any = self._target
        else:
            call = getattr(self._instance, name, None)
        if call is None or not callable(call):
            raise QserveException(
                f"Tried to call a method {name!r} that does not exist. Available methods: {self._public_methods()}."
            )
        body = call if inspect.isroutine(call) else type(call).__call__
        is_async = inspect.iscoroutinefunction(body) or inspect.iscoroutinefunction(call)
        makes_generator = inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body)
        return Method(name, call, is_async, makes_generator, _takes_anything(call))

    def _public_methods(self) -> list[str]:
        if not inspect.isclass(self._target):
            return []
        members = inspect.getmembers(self._target, callable)
        return [name for name, _ in members if not name.startswith("_")]


def _is_new_handle(hint: Any) -> bool:
    # as text under `from __future__ import annotations`: code that travelled by value left behind the names
    # that only its annotations use, so the text cannot be evaluated here
    if isinstance(hint, str):
        return hint.partition("[")[0].rpartition(".")[2] == DeploymentHandle.__name__
    return (get_origin(hint) or hint) is DeploymentHandle


def _takes_anything(call: Callable[..., Any]) -> bool:
    try:
        return bool(inspect.signature(call).parameters)
    except (TypeError, ValueError):  # a builtin without a signature: let the call decide
        return True
