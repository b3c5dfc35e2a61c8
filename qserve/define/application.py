"""``Application``: the deployments of a built graph, to inspect, to adjust and to run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NoReturn

from qserve.calls.handles import DeploymentHandle, RayServeDAGHandle, RayServeDeploymentHandle
from qserve.define.compile import CompiledApplication, compile_application
from qserve.define.deployments import Deployment
from qserve.define.options import LoggingConfig
from qserve.exceptions import AppNotFound
from qserve.graph.nodes import DAGNode, Target


class Application(Mapping[str, Deployment], Target[Any]):
    """Deployments by name, in the order in which they start; read-only. ``build`` makes it.

    Parameters:
      deployments: Children before parents, the ingress last.

    Raises:
      TypeError: One of them is not a deployment.
      ValueError: Two have the same name.

    Example:
      from greetings import app  # a module with the class Greeter, and app = Greeter.bind()

      application = serve.build(app)
      application["Greeter"].set_options(num_replicas=2)
      print([*application], application["Greeter"].num_replicas)  # ['Greeter'] 2
    """

    def __init__(self, deployments: list[Deployment] | tuple[Deployment, ...]) -> None:
        self._deployments: dict[str, Deployment] = {}
        self._root: Any = None
        for deployment in deployments:
            if not isinstance(deployment, Deployment):
                raise TypeError(f"an Application holds deployments, got {type(deployment).__name__} {deployment!r}")
            if deployment.name in self._deployments:
                raise ValueError(f"Deployment with name '{deployment.name}' already exists in this Application.")
            self._deployments[deployment.name] = deployment

    @property
    def deployments(self) -> dict[str, Deployment]:
        """A copy of the deployments by name."""
        return dict(self._deployments)

    @property
    def ingress(self) -> Deployment | None:
        """The deployment with a route prefix, which answers HTTP; raises ValueError when several have one."""
        return single_ingress(self.values())

    def rebuild(self, app_name: str) -> CompiledApplication:
        """Compile the graph under a name, with the deployments as they are adjusted now.

        Raises:
          ValueError: More than one deployment has a route prefix.
        """
        single_ingress(self.values())
        if self._root is None:
            return CompiledApplication(app_name, tuple(deployment.options() for deployment in self.values()), {})
        built = compile_application(self._root, app_name=app_name)
        adjusted = []
        for deployment in built.deployments:  # with the current options, but with the handles of this graph
            options = self[deployment.name].config
            options = options.merged(init_args=deployment.init_args, init_kwargs=deployment.init_kwargs)
            adjusted.append(Deployment(deployment.func_or_class, options))
        return replace(built, deployments=tuple(adjusted))

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
            self[name] = value
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"Application({', '.join(self._deployments)})"


def compiled(target: Any, app_name: str, only: str = "") -> CompiledApplication:
    """Compile what ``run`` serves: a bound node, or the result of ``build``.

    Parameters:
      only: As ``compile_application`` takes it; the result of ``build`` is always compiled whole.

    Raises:
      TypeError, ValueError: It is something else, or the graph is not valid.
    """
    if isinstance(target, Application):
        return target.rebuild(app_name)
    return compile_application(target, app_name=app_name, only=only)


def set_defaults(
    built: CompiledApplication, logging_config: LoggingConfig | None, env_vars: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Give an application's logs to deployments that have none of their own, and its variables to all of them."""
    for deployment in built.deployments:
        if logging_config is not None and deployment.config.logging_config is None:
            deployment.set_options(logging_config=logging_config)
        if env_vars:
            actor = deployment.ray_actor_options or {}
            env = actor.get("runtime_env") or {}
            variables = {**env_vars, **(env.get("env_vars") or {})}
            deployment.set_options(ray_actor_options={**actor, "runtime_env": {**env, "env_vars": variables}})


def build(root: DAGNode) -> Application:
    """Build a graph whose deployments can be imported by name; ``run`` accepts the result like a node.

    Parameters:
      root: The node to serve.

    Returns:
      An ``Application``, whose deployments can be adjusted before it is run.

    Raises:
      RuntimeError: A deployment cannot be imported by name.
      TypeError: A bound argument is not JSON, or the root is not a node.
      ValueError: The graph is not valid.

    Example:
      from greetings import app  # a module with the class Greeter, and app = Greeter.bind()

      print([*serve.build(app)])  # ['Greeter']
    """
    deployments = compile_application(root).deployments
    for deployment in deployments:
        path = deployment.func_or_class.__qualname__
        if "<locals>" in path or "<lambda>" in path:
            raise RuntimeError(
                f"Deployment {deployment.name!r} must be importable for build(): {path!r} is defined inside a function."
                " Move it to the top of its module, or use run(), which sends code by value."
            )
        json.dumps([list(deployment.init_args), deployment.init_kwargs], default=_reference)
    application = Application(deployments)
    application._root = root
    return application


def _reference(value: Any) -> str:
    if isinstance(value, RayServeDeploymentHandle | DeploymentHandle | RayServeDAGHandle):
        return repr(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def single_ingress(deployments: Iterable[Deployment]) -> Deployment:
    """Return the only deployment with a route prefix; raises ValueError when none or several have one."""
    found = [deployment for deployment in deployments if deployment.route_prefix is not None]
    if len(found) == 1:
        return found[0]
    names = ", ".join(repr(deployment.name) for deployment in found) or "none"
    raise ValueError(
        "Only one deployment in an Serve Application or DAG can have non-None route prefix. "
        f"{len(found)} have: {names}."
    )
