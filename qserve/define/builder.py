"""Application builders: functions that make an application from arguments of a command or a file."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import is_typeddict

from qserve.base import unused
from qserve.define.target import TargetError
from qserve.exceptions import UsageProblem
from qserve.graph.nodes import Target


class ArgumentError(UsageProblem):
    """Raised for arguments that a builder does not take.

    Attributes:
      argument: Its name; "" if the error concerns all of them.
    """

    argument = ""


def parse_arguments(words: Sequence[str]) -> dict[str, str]:
    """Return the arguments that a command line gives as ``key=value``.

    Raises:
      ArgumentError: A word is not of that form, or a key is there twice.
    """
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise ArgumentError(f"{word!r} is not an argument of a builder. Write key=value")
        if key in found:
            raise ArgumentError(f"the argument {key!r} is given twice")
        found[key] = value
    return found


def built_target(found: Any, args: Mapping[str, Any], target: str) -> Any:
    """Return the application that ``module:builder`` makes from arguments; what is not a builder is returned as it is.

    A builder is a function with one parameter. The arguments are passed as a dict, unless the annotation of the
    parameter is a type that pydantic makes of them, such as a ``BaseModel``.

    Parameters:
      target: Its import path, for messages.

    Raises:
      ArgumentError: The arguments do not fit the annotation, or there are some and nothing takes them.
      TargetError: The builder returns something else.
      Exception: Any error of user code.
    """
    if not inspect.isfunction(found) or inspect.iscoroutinefunction(found) or isinstance(found, Target):
        if args:
            what = "an application" if isinstance(found, Target) else "not a builder"
            raise ArgumentError(f"{target} is {what} and takes no arguments; got: {', '.join(args)}")
        return found
    parameters = list(inspect.signature(found).parameters.values())
    if len(parameters) != 1 or parameters[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        if args:
            raise ArgumentError(
                f"{target} takes {inspect.signature(found)}, and a builder takes one parameter: its arguments as a dict"
                " or as a pydantic model"
            )
        return found
    made = found(_typed(found, parameters[0], args, target))
    if not isinstance(made, Target):
        name = found.__name__
        raise TargetError(
            f"{target} cannot be served: {name!r} is a function. As a builder it must return an application, and it"
            f" returned {type(made).__name__}; as a deployment, decorate it with @qserve.deployment and write"
            f" {name}.bind(...)"
        )
    return made


def _typed(builder: Any, parameter: inspect.Parameter, args: Mapping[str, Any], target: str) -> Any:
    try:
        annotation = typing.get_type_hints(builder).get(parameter.name, dict)
    except Exception:  # a name in an annotation that exists for type checkers only
        annotation = dict
    kind = typing.get_origin(annotation) or annotation
    if kind is Any or (inspect.isclass(kind) and not is_typeddict(kind) and issubclass(kind, Mapping)):
        return dict(args)
    try:
        adapter = TypeAdapter(annotation)
    except Exception:  # a type that pydantic does not know
        return dict(args)
    known = getattr(kind, "model_fields", None) or getattr(kind, "__dataclass_fields__", None)
    if known and "extra" not in getattr(kind, "model_config", {}):
        names = {*known, *(getattr(field, "alias", None) for field in known.values())}
        unused.warn(f"the arguments of {target}", sorted({*args} - names), f"{kind.__name__} has no such field")
    try:
        return adapter.validate_python(dict(args))
    except ValidationError as error:
        details = error.errors(include_url=False)
        told = [f"{'.'.join(map(str, one['loc'])) or target}: {_words(one)}" for one in details]
        problem = ArgumentError(f"the arguments of {target} do not fit: {'; '.join(told)}")
        problem.argument = str(details[0]["loc"][0]) if details[0]["loc"] else ""
        raise problem from None


def _words(detail: Any) -> str:
    message = str(detail["msg"])
    given = "" if isinstance(detail["input"], dict) else f", got {detail['input']!r}"
    return message[:1].lower() + message[1:] + given
