"""``Application``: the deployments of a built graph, to look at, to adjust, and to run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NoReturn

from qserve.calls.handles import RayServeDAGHandle, RayServeDeploymentHandle
from qserve.define.check import single_ingress
from qserve.define.compile import CompiledApplication, compile_application
from qserve.define.deployments import Deployment
from qserve.exceptions import AppNotFound
from qserve.graph.nodes import DAGNode, Target


class Application(Mapping[str, Deployment], Target[Any]):
    """Deployments by name, in the order in which they are started; read-only.

    Parameters:
      deployments: Children before parents, the ingress last.

    Raises:
      TypeError: One of them is no deployment.
      ValueError: Two have the same name.
    """

    def __init__(self, deployments: list[Deployment] | tuple[Deployment, ...]) -> None:
        self._deployments: dict[str, Deployment] = {}
        self._root: Any = None
        self._built: CompiledApplication | None = None
        for one in deployments:
            if not isinstance(one, Deployment):
                raise TypeError(f"an Application holds deployments, got {type(one).__name__} {one!r}")
            if one.name in self._deployments:
                raise ValueError(f"Deployment with name '{one.name}' already exists in this Application.")
            self._deployments[one.name] = one

    @property
    def deployments(self) -> dict[str, Deployment]:
        """The deployments by name; a copy."""
        return dict(self._deployments)

    @property
    def ingress(self) -> Deployment | None:
        """The deployment that answers HTTP.

        Raises:
          ValueError: More than one has a route prefix.
        """
        return single_ingress(list(self._deployments.values()))

    def rebuild(self, app_name: str) -> CompiledApplication:
        """The graph under an application's name, with the deployments as they are adjusted now.

        Raises:
          ValueError: More than one deployment has a route prefix.
        """
        single_ingress(list(self._deployments.values()))
        if self._built is None:
            *_, ingress = self._deployments.values()
            return CompiledApplication(app_name, tuple(self._deployments.values()), {}, ingress.name)
        fresh = self._built if app_name == self._built.name else compile_application(self._root, app_name=app_name)
        adjusted = tuple(_adjusted(one, self._deployments[one.name]) for one in fresh.deployments)
        return replace(fresh, deployments=adjusted)

    def __getitem__(self, name: str) -> Deployment:
        found = self._deployments.get(name)
        if found is None:
            raise AppNotFound(f"no deployment {name!r} in this Application; it has: {', '.join(self._deployments)}")
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._deployments)

    def __len__(self) -> int:
        return len(self._deployments)

    def __setitem__(self, name: str, deployment: Deployment) -> NoReturn:
        raise RuntimeError("An Application is read-only: change a deployment with its set_options(...) instead")

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            raise RuntimeError("An Application is read-only: change a deployment with its set_options(...) instead")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"Application({', '.join(self._deployments)})"


def build(root: DAGNode) -> Application:
    """Build a graph for a deploy by configuration; ``run`` takes the result as well.

    Parameters:
      root: A bound node.

    Raises:
      RuntimeError: A deployment cannot be imported by name.
      TypeError: A bound argument is not JSON, or the root is no node.
      ValueError: The graph is not valid.
    """
    built = compile_application(root)
    for one in built.deployments:
        _check_importable(one)
        json.dumps([list(one.init_args), one.init_kwargs], default=_reference)
    application = Application(built.deployments)
    application._root, application._built = root, built
    return application


def _adjusted(fresh: Deployment, wanted: Deployment) -> Deployment:
    return Deployment(
        fresh.func_or_class, wanted.config.merged(init_args=fresh.init_args, init_kwargs=fresh.init_kwargs)
    )


def _check_importable(deployment: Deployment) -> None:
    body = deployment.func_or_class
    if "<locals>" in body.__qualname__ or "<lambda>" in body.__qualname__:
        raise RuntimeError(
            f"Deployment {deployment.name!r} must be importable for build(): {body.__qualname__!r} is defined inside a"
            " function. Move it to the top of its module, or use run(), which sends code by value."
        )


def _reference(value: Any) -> str:
    if isinstance(value, RayServeDeploymentHandle | RayServeDAGHandle):
        return repr(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
