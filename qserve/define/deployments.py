"""``@deployment`` and what it makes: a class or function with options, ready to be bound."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, overload

from qserve.define.options import DeploymentOptions, check_known
from qserve.graph.nodes import Body, ClassNode, FunctionNode, own_name


class Deployment:
    """A class or function and its options; ``bind`` makes nodes of it.

    Parameters:
      func_or_class: The user's class or function.
      config: Its options.

    Raises:
      TypeError: It is neither a class nor a function.
    """

    def __init__(self, func_or_class: Body, config: DeploymentOptions | None = None) -> None:
        _check_body(func_or_class)
        self.func_or_class = func_or_class
        self.config = config or DeploymentOptions()

    @property
    def name(self) -> str:
        """The name option, or the class's or function's own name."""
        return self.config.name or own_name(self.func_or_class)

    @property
    def num_replicas(self) -> int:
        """Replicas to run."""
        return self.config.num_replicas

    @property
    def user_config(self) -> Any:
        """What ``reconfigure`` is called with."""
        return self.config.user_config

    @property
    def max_concurrent_queries(self) -> int:
        """Requests in one replica at a time."""
        return self.config.max_concurrent_queries

    @property
    def max_ongoing_requests(self) -> int:
        """The newer name of ``max_concurrent_queries``."""
        return self.config.max_concurrent_queries

    @property
    def max_queued_requests(self) -> int:
        """Requests that may wait in the queue; -1 sets no limit."""
        return self.config.max_queued_requests

    @property
    def route_prefix(self) -> str | None:
        """Where the deployment answers HTTP requests, if it is the ingress."""
        return self.config.route_prefix

    @property
    def ray_actor_options(self) -> dict[str, Any] | None:
        """Resources asked for."""
        return self.config.ray_actor_options

    @property
    def init_args(self) -> tuple[Any, ...]:
        """The constructor's positional arguments."""
        return self.config.init_args

    @property
    def init_kwargs(self) -> dict[str, Any]:
        """The constructor's keyword arguments."""
        return self.config.init_kwargs

    @property
    def version(self) -> str | None:
        """The version that the user gave the code."""
        return self.config.version

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        """Return a node: this deployment with arguments, for use in a graph or by ``serve.run``.

        Parameters:
          args: Constructor arguments of a class, call arguments of a function; values and nodes.
            Without any, the options ``init_args`` and ``init_kwargs`` are used.
          kwargs: The same by keyword.

        Returns:
          A ``ClassNode`` or a ``FunctionNode``.

        Raises:
          ValueError: A part of the graph's input is among a constructor's arguments.
          TypeError: A method without its own ``bind`` is among the arguments.
        """
        if not args and not kwargs:
            args, kwargs = self.init_args, self.init_kwargs
        kind = ClassNode if inspect.isclass(self.func_or_class) else FunctionNode
        return kind(self.func_or_class, self.config, args, kwargs)

    def options(self, *, func_or_class: Body | None = None, **changes: Any) -> Deployment:
        """Return a new deployment with some options changed; this one stays as it is.

        Parameters:
          func_or_class: Another class or function.
          changes: Options by name, see ``DeploymentOptions``.

        Raises:
          TypeError: An unknown option, or a value of the wrong kind.
          ValueError: A value out of range.
        """
        return type(self)(func_or_class or self.func_or_class, self._changed(changes))

    def set_options(self, *, func_or_class: Body | None = None, **changes: Any) -> None:
        """Change options of this very deployment.

        Parameters:
          func_or_class: Another class or function.
          changes: Options by name, see ``DeploymentOptions``.

        Raises:
          TypeError: An unknown option, or a value of the wrong kind.
          ValueError: A value out of range.
        """
        config = self._changed(changes)
        if func_or_class is not None:
            _check_body(func_or_class)
            self.func_or_class = func_or_class
        self.config = config

    def _changed(self, changes: dict[str, Any]) -> DeploymentOptions:
        check_known(changes, self.name)
        with _noting(self.name):
            return self.config.merged(**changes)

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(
            "Deployments cannot be constructed directly. Use `deployment.deploy() instead.` "
            f"Or write {self.name}.bind(...) and give the node to serve.run."
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r})"


@overload
def deployment(_label: str | None = None, /, **options: Any) -> Callable[[Callable[..., Any]], Deployment]: ...


@overload
def deployment(_func_or_class: Callable[..., Any], /, **options: Any) -> Deployment: ...


def deployment(_func_or_class: Any = None, /, **options: Any) -> Any:
    """Make a deployment of a class or function: ``@deployment`` or ``@deployment(num_replicas=2)``.

    Parameters:
      options: See ``DeploymentOptions``. A leading string is accepted and ignored.

    Returns:
      A ``Deployment``, or a decorator that makes one.

    Raises:
      TypeError: Not a class or function, an unknown option, or a value of the wrong kind.
      ValueError: A value out of range.
    """

    def decorate(func_or_class: Body) -> Deployment:
        _check_body(func_or_class)
        name = own_name(func_or_class)
        check_known(options, name)
        with _noting(name):
            return Deployment(func_or_class, DeploymentOptions(**options))

    if _func_or_class is None or isinstance(_func_or_class, str):
        return decorate
    return decorate(_func_or_class)


def _check_body(func_or_class: Any) -> None:
    if isinstance(func_or_class, Deployment):
        raise TypeError(
            "@serve.deployment must be called on a class or function. "
            f"{func_or_class.name!r} is a deployment already; "
            f"write {func_or_class.name}.options(...) to change its options."
        )
    if not callable(func_or_class) or not hasattr(func_or_class, "__name__"):
        raise TypeError(
            "@serve.deployment must be called on a class or function. "
            f"Got {func_or_class!r} of type {type(func_or_class).__name__}."
        )


@contextmanager
def _noting(name: str) -> Iterator[None]:
    """Say in the traceback whose options were refused."""
    try:
        yield
    except (TypeError, ValueError) as error:
        error.add_note(f"in the options of deployment {name!r}")
        raise
