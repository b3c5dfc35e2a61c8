"""The code of an application, as its replicas need it: imported by name, or travelling by value."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cloudpickle

from qserve.engine.driver import AdaptingDriver
from qserve.exceptions import PayloadError
from qserve.graph.compile import BuiltApplication, compile_application
from qserve.target import load_target
from qserve.wire.signing import sign, verify


@dataclass(frozen=True)
class DeploymentCode:
    """What one replica constructs."""

    func_or_class: Callable[..., Any]
    init_args: tuple[Any, ...] = ()
    init_kwargs: Mapping[str, Any] | None = None


Code = Mapping[str, DeploymentCode]


def code_of(built: BuiltApplication) -> Code:
    """The code of each deployment by name; a driver becomes the class that runs its adapter."""
    code = {one.name: DeploymentCode(one.func_or_class, one.init_args, one.init_kwargs) for one in built.deployments}
    if built.driver is not None:
        code[built.ingress] = DeploymentCode(AdaptingDriver, (built.driver.adapter, built.name))
    return code


def import_code(target: str, app_name: str) -> Code:
    """Import ``module:node`` here and take its code; errors of user code pass through."""
    return code_of(compile_application(load_target(target), app_name=app_name))


def pack_code(code: Code, key: bytes) -> bytes:
    """The code by value, signed: definitions of a script or a function's body need no import.

    Raises:
      PayloadError: Something that the code uses cannot be pickled; the message names the deployment.
    """
    packed = {}
    for name, one in code.items():
        try:
            packed[name] = cloudpickle.dumps(one)
        except Exception as error:
            raise PayloadError(
                f"deployment {name!r} cannot be sent to its replicas: {error}. Move what cannot be pickled"
                " into the constructor, or serve the module with `qserve run module:node`"
            ) from error
    return sign(key, pickle.dumps(packed))


def unpack_code(data: bytes, key: bytes | None, deployment: str) -> DeploymentCode:
    """One deployment's code from what ``pack_code`` wrote.

    Raises:
      PayloadError: The signature is missing or wrong.
    """
    body = verify(key, data) if key else None
    if body is None:
        raise PayloadError(
            "the application's code travels by value and is not signed with this process's key: set"
            " QSERVE_SECRET_KEY to the same secret everywhere"
        )
    return pickle.loads(pickle.loads(body)[deployment])  # type: ignore[no-any-return]
