"""``@deployment`` and the ``Deployment`` it makes: a class or function with options, ready to be bound."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, Protocol, Self, Unpack, overload

from pydantic import ValidationError
from pydantic_core import InitErrorDetails
from typing_extensions import TypeVar

from qserve.define.options import DeploymentOptions, Options, check_known
from qserve.graph.nodes import Body, ClassNode, FunctionNode, own_name

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Class = TypeVar("Class", bound=type)
Body_co = TypeVar("Body_co", covariant=True, default=Any)


class Function(Generic[P, T_co]):
    """A decorated function with these parameters and this result, awaited; only type checkers see it."""


class _Option(Generic[T]):
    """A read-only attribute of a deployment that returns the option of the same name."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, deployment: Any, owner: type | None = None) -> T:
        return self if deployment is None else getattr(deployment.config, self._name)  # type: ignore

    def __set__(self, deployment: Deployment, value: NoReturn) -> NoReturn:
        raise AttributeError(f"{self._name} cannot be assigned: use set_options({self._name}=...)")


_DEFAULTS = DeploymentOptions()  # it is frozen, so that all can share it


class Deployment(Generic[Body_co]):
    """A class or function with options; ``bind`` makes nodes of it. ``deployment`` makes it.

    Type checkers see a ``Deployment[type[Model]]`` or a ``Deployment[Function[[int], str]]``. Its options are
    attributes: ``Greeter.num_replicas``.

    Parameters:
      func_or_class: The user's class or function.
      config: Its options, a ``DeploymentOptions``; None for the defaults.

    Raises:
      TypeError: ``func_or_class`` is neither a class nor a function.

    Example:
      Two = Greeter.options(num_replicas=2)
      Greeter.set_options(max_retries=1)
      node = Two.bind()
      print(Greeter.num_replicas, Two.num_replicas)  # 1 2
    """

    def __init__(self, func_or_class: Body_co, config: DeploymentOptions | None = None) -> None:
        self.func_or_class: Any = func_or_class
        self.config: DeploymentOptions = config or _DEFAULTS
        wrong = "@serve.deployment must be called on a class or function."
        if isinstance(func_or_class, Deployment):
            name = func_or_class.name
            raise TypeError(
                f"{wrong} {name!r} is a deployment already; write {name}.options(...) to change its options."
            )
        if not callable(func_or_class) or not hasattr(func_or_class, "__name__"):
            raise TypeError(f"{wrong} Got {func_or_class!r} of type {type(func_or_class).__name__}.")

    @property
    def name(self) -> str:
        """The option of that name, or else the class's or function's own name."""
        return self.config.name or own_name(self.func_or_class)

    num_replicas: _Option[int] = _Option[int]()
    user_config: _Option[Any] = _Option[Any]()
    max_concurrent_queries: _Option[int] = _Option[int]()
    max_ongoing_requests: _Option[int] = _Option[int]()
    max_queued_requests: _Option[int] = _Option[int]()
    route_prefix: _Option[str | None] = _Option["str | None"]()
    ray_actor_options: _Option[dict[str, Any] | None] = _Option["dict[str, Any] | None"]()
    init_args: _Option[tuple[Any, ...]] = _Option[tuple[Any, ...]]()
    init_kwargs: _Option[dict[str, Any]] = _Option[dict[str, Any]]()
    version: _Option[str | None] = _Option["str | None"]()

    @overload
    def bind(self: Deployment[Function[P, T]], /, *args: P.args, **kwargs: P.kwargs) -> FunctionNode[T]: ...

    @overload
    def bind(self: Deployment[Function[P, T]], /) -> FunctionNode[T]: ...

    @overload
    def bind(self: Deployment[Callable[P, T]], /, *args: P.args, **kwargs: P.kwargs) -> ClassNode[T]: ...

    def bind(self, /, *args: Any, **kwargs: Any) -> Any:
        """Return a node: this deployment with arguments, for use in a graph or by ``serve.run``.

        Parameters:
          args, kwargs: Constructor arguments of a class, call arguments of a function: values and nodes. Without any,
            the options ``init_args`` and ``init_kwargs`` are used.

        Returns:
          A ``ClassNode``, whose methods can be bound (``node.method.bind(...)``), or a ``FunctionNode``.

        Raises:
          ValueError: A part of the graph's input is among the arguments of a constructor.
          TypeError: A method without its own ``bind`` is among the arguments.
        """
        if not args and not kwargs:
            args, kwargs = self.init_args, self.init_kwargs
        self._check_arguments(args, kwargs)
        kind = ClassNode if inspect.isclass(self.func_or_class) else FunctionNode
        return kind(self.func_or_class, self.config, args, kwargs)

    def _check_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise an error for arguments that this deployment cannot be bound to."""

    def options(self, /, *, func_or_class: Body | None = None, **changes: Unpack[Options]) -> Self:
        """Return a new deployment with some options changed; this one stays as it is.

        Parameters:
          func_or_class: Another class or function, to be bound like this one; None for the same.
          changes: Options by name, see ``DeploymentOptions``.

        Returns:
          The new deployment.

        Raises:
          TypeError: An option does not exist, or a value has the wrong type.
          ValueError: A value is out of range.
        """
        return type(self)(func_or_class or self.func_or_class, self._changed(changes))  # type: ignore[arg-type]

    def set_options(self, /, *, func_or_class: Body | None = None, **changes: Unpack[Options]) -> None:
        """Change options of this deployment in place; parameters and errors are the same as ``options`` has."""
        changed = self.options(func_or_class=func_or_class, **changes)
        self.func_or_class, self.config = changed.func_or_class, changed.config

    def _changed(self, changes: Options | dict[str, Any]) -> DeploymentOptions:
        check_known(changes, self.name)
        try:
            return self.config.merged(**changes)
        except ValidationError as error:
            raise _described(error, self.name) from None
        except (TypeError, ValueError) as error:
            error.add_note(f"in the options of deployment {self.name!r}")
            raise

    if not TYPE_CHECKING:  # so that type checkers report the call

        def __getattr__(self, name: str) -> NoReturn:
            text = f"{type(self).__name__!r} object has no attribute {name!r}"
            # not for names that pickle and others look for, some of them before there is a class
            if not name.startswith("_") and hasattr(self.func_or_class, name):
                label = self.name
                text = (
                    f"{label!r} has no instance yet whose {name!r} could be used. Bind the class first, and then the"
                    f" method of that node: node = {label}.bind(...); node.{name}.bind(...)"
                )
            raise AttributeError(text, name=name, obj=self)

        def __call__(self, /, *args: Any, **kwargs: Any) -> NoReturn:
            raise RuntimeError(
                "Deployments cannot be constructed directly. Use `deployment.deploy() instead.` "
                f"Or write {self.name}.bind(...) and give the node to serve.run."
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r})"


def _described(error: ValidationError, deployment: str) -> ValidationError:
    """Return the same error with the options and the deployment in its first line."""
    details = error.errors(include_url=False)
    given = ", ".join(f"{detail['loc'][0]}={detail['input']!r}" for detail in details if detail["loc"])
    lines = [
        InitErrorDetails(type=detail["type"], loc=detail["loc"], input=detail["input"], ctx=detail.get("ctx", {}))
        for detail in details
    ]
    return ValidationError.from_exception_data(f"{given or 'the options'} of deployment {deployment!r}", lines)


if TYPE_CHECKING:
    Prepare = Callable[[Any], Deployment]

    class PreparedClass(type, Deployment):
        """The metaclass of classes that are decorated with ``init_args``: ``bind`` takes anything, or nothing."""

    class DeployedClass(type, Deployment):
        """The metaclass of decorated classes under ``qserve.mypy_plugin``: mypy ignores the result of a decorator."""

        def bind(cls: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> ClassNode[T]: ...

    class _DeploymentDecorator(Protocol):
        """``deployment`` for type checkers."""

        @overload
        def __call__(self, *, init_args: tuple[Any, ...], **options: Any) -> Prepare: ...  # type: ignore[overload-overlap]
        @overload
        def __call__(self, *, init_kwargs: dict[str, Any], **options: Any) -> Prepare: ...  # type: ignore[overload-overlap]
        @overload
        def __call__(self, _label: str | None = None, /, **options: Unpack[Options]) -> Self: ...
        @overload
        def __call__(self, _class: Class, /) -> Deployment[Class]: ...  # type: ignore[overload-overlap]
        @overload
        def __call__(self, _func: Callable[P, Awaitable[T]], /) -> Deployment[Function[P, T]]: ...
        @overload
        def __call__(self, _func: Callable[P, T], /) -> Deployment[Function[P, T]]: ...


def _typed(decorator: Any) -> _DeploymentDecorator:
    return decorator  # type: ignore[no-any-return]


@_typed
def deployment(_func_or_class: Any = None, /, **options: Any) -> Any:
    """Make a deployment of a class or function: ``@deployment`` or ``@deployment(num_replicas=2)``.

    Each deployment has a queue, and processes, its replicas, that take calls from it. The methods of a class are called
    by handle; ``__call__`` gets the HTTP requests of an ingress. Methods may be ``def``, ``async def`` or generators.

    Parameters:
      options: See ``DeploymentOptions``. A leading string is accepted and ignored.

    Returns:
      A ``Deployment``, or a decorator that makes one.

    Raises:
      TypeError: Not a class or function, an option that does not exist, or a value of the wrong type.
      ValueError: A value is out of range.

    Example:
      @serve.deployment(num_replicas=2, max_retries=1)
      class Doubler:
          def __init__(self, factor: int) -> None:
              self.factor = factor  # runs once in each replica

          def double(self, number: int) -> int:
              return self.factor * number

      print(serve.run(Doubler.bind(2), local=True).double.remote(21).result())  # 42
    """

    def decorate(func_or_class: Body) -> Deployment:
        made = Deployment(func_or_class)
        made.config = made._changed(options)
        return made

    if _func_or_class is None or isinstance(_func_or_class, str):
        return decorate
    return decorate(_func_or_class)
