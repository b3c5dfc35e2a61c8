"""The code of an application, as its replicas need it: imported by name, or travelling by value."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from qserve.base.keyring import Keyring
from qserve.define.compile import CompiledApplication, compile_application
from qserve.define.target import load_target
from qserve.engine.driver import AdaptingDriver
from qserve.exceptions import PayloadError
from qserve.http.hints import settle_hints
from qserve.wire.codec import dumps


@dataclass(frozen=True)
class DeploymentCode:
    """What one replica constructs."""

    func_or_class: Callable[..., Any]
    init_args: tuple[Any, ...] = ()
    init_kwargs: Mapping[str, Any] | None = None


Code = Mapping[str, DeploymentCode]


def code_of(built: CompiledApplication) -> Code:
    """The code of each deployment by name; a driver becomes the class that runs its adapter."""
    code = {one.name: DeploymentCode(one.func_or_class, one.init_args, one.init_kwargs) for one in built.deployments}
    if built.driver is not None:
        adapter = _with_resolved_annotations(built.driver.adapter)
        code[built.ingress] = DeploymentCode(AdaptingDriver, (adapter, built.name))
    return code


def _with_resolved_annotations(adapter: Any) -> Any:
    """The adapter with its annotations as types: names that only annotations use do not travel by value."""
    if not inspect.isfunction(adapter):
        return adapter
    copy = FunctionType(
        adapter.__code__, adapter.__globals__, adapter.__name__, adapter.__defaults__, adapter.__closure__
    )
    copy.__dict__.update(adapter.__dict__)
    copy.__kwdefaults__, copy.__annotations__ = adapter.__kwdefaults__, dict(adapter.__annotations__)
    copy.__module__, copy.__qualname__, copy.__doc__ = adapter.__module__, adapter.__qualname__, adapter.__doc__
    settle_hints(copy)
    return copy


def import_code(target: str, app_name: str) -> Code:
    """Import ``module:node`` here and take its code; errors of user code pass through."""
    return code_of(compile_application(load_target(target), app_name=app_name))


def pack_code(code: Code, keys: Keyring) -> bytes:
    """The code by value, signed: definitions of a script or a function's body need no import.

    Raises:
      PayloadError: Something that the code uses cannot be pickled; the message names the deployment.
    """
    packed = {}
    for name, one in code.items():
        try:
            packed[name] = dumps(one)
        except Exception as error:
            raise PayloadError(
                f"deployment {name!r} cannot be sent to its replicas: {error}. Move what cannot be pickled"
                " into the constructor, or serve the module with `qserve run module:node`"
            ) from error
    return keys.sign(pickle.dumps(packed))


def unpack_code(data: bytes, keys: Keyring, deployment: str) -> DeploymentCode:
    """One deployment's code from what ``pack_code`` wrote.

    Raises:
      PayloadError: The signature is missing or wrong.
    """
    body = keys.verify(data)
    if body is None:
        raise PayloadError(
            "the application's code travels by value and is not signed with this process's key: set"
            " QSERVE_SECRET_KEY to the same secret everywhere"
        )
    return pickle.loads(pickle.loads(body)[deployment])  # type: ignore[no-any-return]
