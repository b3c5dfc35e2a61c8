"""Describe a compiled application for the registry: its record, and the code that its replicas run."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import pickle
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from types import MappingProxyType, SimpleNamespace
from typing import Any, Final, NamedTuple

import msgpack

from qserve.base import unused
from qserve.base.import_path import importing_user_code
from qserve.base.keyring import Keyring
from qserve.base.log import get_logger
from qserve.define.application import compiled
from qserve.define.builder import built_target
from qserve.define.compile import CompiledApplication
from qserve.define.deployments import Deployment
from qserve.define.options import AutoscalingConfig, DeploymentOptions
from qserve.define.target import load_target
from qserve.define.task_consumers import TaskPlace, task_places, task_queue_of, unused_options
from qserve.deploy.sources import difference, own_modules, read_sources
from qserve.engine.driver import AdaptingDriver
from qserve.exceptions import PayloadError, QserveException
from qserve.http.annotations import resolve_annotations
from qserve.openapi.application import describe
from qserve.wire.application import MISSING, ApplicationRecord, DeploymentRecord, Resources, Scaling, dump_plan
from qserve.wire.codec import Codec, unpack
from qserve.wire.modules import pack_modules
from qserve.wire.pickling import culprit, dumps, dumps_code, unpickle_part

log: Final = get_logger(__name__)


@dataclass(frozen=True)
class Release:
    """A version of an application as it is registered.

    Parameters:
      record: Its record.
      code: Its code if that travels by value; if replicas import it, the modules that workers get which lack them.
      tasks: Where Celery has the queues that it consumes, with passwords: this is not registered.
    """

    record: ApplicationRecord
    code: bytes = b""
    tasks: tuple[TaskPlace, ...] = ()

    def encode(self) -> bytes:
        """Return it as bytes, for a process of ours."""
        return msgpack.packb([self.record.encode(), self.code, self.tasks])  # type: ignore[no-any-return]

    @classmethod
    def decode(cls, data: bytes) -> Release:
        """Read what ``encode`` returned."""
        record, code, tasks = unpack(data, "a release")
        return cls(ApplicationRecord.decode(record), code, tuple(TaskPlace(*place) for place in tasks))

    def only_reconfigures(self, active: ApplicationRecord) -> bool:
        """Return whether the replicas of the active version can go on: they have the code, and either the user says so
        by the versions of the deployments, or there are options that have changed."""
        record = self.record
        has_versions = all(deployment.version for deployment in record.deployments.values())
        is_same = replace(active, version=record.version) == record
        return record.keeps_replicas_of(active) and (has_versions or not is_same)


def release_of(
    built: CompiledApplication,
    keyring: Keyring,
    target: str = "",
    modules: Mapping[str, str] | None = None,
    code_version: str = "",
    args: Mapping[str, Any] | None = None,
    sends_code: bool = False,
    external_scaler: bool = False,
) -> Release:
    """Make a new version of an application, whose code travels by value unless there is a ``target``.

    Parameters:
      target: ``module:node`` that replicas import.
      modules: Digests of the modules that belong to the target, see ``import_application``.
      code_version: The user's own name for that code.
      args: The arguments of the builder that ``target`` names.
      sends_code: Whether the modules go to workers that do not have them; not those of a named ``code_version``.
      external_scaler: Whether something outside decides how many replicas there are.

    Raises:
      PayloadError: Its code, or a constant in its graph, cannot travel.
    """
    code = b"" if target else pack_code(code_of(built), keyring, functions_of(built))
    tasks = tuple(task_places(built.deployments))
    record = replace(
        record_of(built, Codec(keyring), target),
        modules=dict(modules or {}),
        code_version=code_version if target else "",
        args=json.dumps(args) if args else "",
        external_scaler=external_scaler,
        description=describe(built),
    )
    if code:
        return Release(replace(record, code_digest=hashlib.sha256(code).hexdigest()), code, tasks)
    if sends_code and not code_version:
        code = _pack_modules(target, record.modules, keyring)
    return Release(replace(record, sent_for=MISSING if code else ""), code, tasks)


def _pack_modules(target: str, digests: Mapping[str, str], keyring: Keyring) -> bytes:
    """Return the modules of a target, signed; b"" if they cannot be sent, as is logged, or there is no secret key."""
    sources = read_sources(target, digests)
    if keyring.current is None or sources.digests != digests:
        return b""
    try:
        return pack_modules(sources.modules, keyring)
    except PayloadError as error:
        log.warning("workers that do not have the code of %s do not get it: %s", target, error)
        return b""


def check_external_scaler(built: CompiledApplication) -> None:
    """Raise ValueError if the load decides on a deployment: then nothing else can."""
    for deployment in built.deployments:
        if deployment.config.autoscaling_config is not None:
            raise ValueError(
                f"deployment {deployment.name!r} has an autoscaling_config, and external_scaler_enabled leaves its"
                " number of replicas to something outside: take out one of them"
            )


# -- the record ------------------------------------------------------------------------------------


def record_of(built: CompiledApplication, codec: Codec, target: str = "") -> ApplicationRecord:
    """Describe an application for the registry, as a new version.

    Parameters:
      codec: Encodes the constants among the graph's arguments.
      target: ``module:node`` that replicas import; "" if the code travels by value.

    Raises:
      PayloadError: A constant in the graph cannot travel; the message names the step.
    """
    without_replicas = built.ingress.name if built.driver is not None and built.driver.adapter else None
    deployments = {
        deployment.name: _deployment_record(deployment, replicated=deployment.name != without_replicas)
        for deployment in built.deployments
    }
    graphs = {}
    for name, plan in built.graphs.items():
        try:
            graphs[name] = dump_plan(plan, codec)
        except PayloadError as error:
            steps = ", ".join(step.deployment for step in plan.steps)
            raise PayloadError(f"a value bound in the graph of {steps} cannot travel: {error}") from error
    return ApplicationRecord(
        name=built.name,
        version=os.urandom(6).hex(),
        ingress=built.ingress.name,
        route_prefix=built.ingress.route_prefix,
        target=target,
        timeout_s=built.ingress.config.request_timeout_s,
        cancel_on_disconnect=built.ingress.config.cancel_on_disconnect,
        deployments=deployments,
        graphs=graphs,
        driver=built.driver,
        deployed_at=time.time(),
        handles={user: [*children] for user, children in built.handles.items()},
    )


def _deployment_record(deployment: Deployment, replicated: bool) -> DeploymentRecord:
    name, options = deployment.name, deployment.config
    # here, and not when it is compiled: every replica compiles what it imports
    given = [option for option in options.model_fields_set if getattr(options, option) is not None]
    actor = [key for key, value in (options.ray_actor_options or {}).items() if value]
    scaling = options.autoscaling_config
    given += [f"autoscaling_config.{key}" for key in (scaling.model_fields_set if scaling else ())]
    unused.warn(f"deployment {name!r}", sorted((*given, *actor)), {**unused.DEPLOYMENT, **unused.ACTOR})
    unused.warn_of_runtime_env(f"deployment {name!r}", options.actor_options.runtime_env)
    unused.warn(f"the task consumer {name!r}", unused_options(deployment.func_or_class), unused.TASKS)
    return DeploymentRecord(
        name=name,
        num_replicas=options.num_replicas,
        max_ongoing=options.max_concurrent_queries,
        max_queued=options.max_queued_requests,
        full_status=options.backpressure_config.status_code,
        full_retry_after_s=options.backpressure_config.retry_after_s,
        grace_s=options.graceful_shutdown_timeout_s,
        max_retries=options.max_retries,
        retry_on=None if options.retry_on is None else [_name_of(kind, name) for kind in options.retry_on],
        retry_backoff_s=options.retry_backoff_s,
        max_execution_s=options.max_execution_s,
        health_period_s=options.health_check_period_s,
        health_timeout_s=options.health_check_timeout_s,
        user_config="" if options.user_config is None else json.dumps(options.user_config, sort_keys=True),
        replicated=replicated,
        scaling=None if scaling is None else _scaling(scaling),
        resources=_resources(options),
        version=deployment.version or "",
        surge=options.max_surge_percent,
        preload=options.preload or "",
        max_requests=options.max_requests,
        max_memory=None if options.max_memory_mb is None else int(options.max_memory_mb * (1 << 20)),
        env=dict(options.actor_options.runtime_env.get("env_vars") or {}),
        logging={} if options.logging_config is None else options.logging_config.given,
        constructor_retries=options.max_constructor_retry_count,
        tasks=task_queue_of(deployment.func_or_class),
    )


def _scaling(config: AutoscalingConfig) -> Scaling:
    up, down = config.upscale_smoothing_factor, config.downscale_smoothing_factor
    return Scaling(
        min_replicas=config.min_replicas,
        max_replicas=config.max_replicas,
        initial_replicas=config.initial_replicas,
        target_ongoing_requests=config.target_ongoing_requests,
        look_back_period_s=config.look_back_period_s,
        upscale_delay_s=config.upscale_delay_s,
        downscale_delay_s=config.downscale_delay_s,
        downscale_to_zero_delay_s=config.downscale_to_zero_delay_s,
        upscaling_factor=config.upscaling_factor or up or config.smoothing_factor,
        downscaling_factor=config.downscaling_factor or down or config.smoothing_factor,
        aggregation_function=config.aggregation_function,
        policy="" if config.policy is None else config.policy.policy_function,
        policy_kwargs="{}" if config.policy is None else json.dumps(config.policy.policy_kwargs),
    )


def _resources(options: DeploymentOptions) -> Resources:
    given = options.actor_options
    accelerator = {} if given.accelerator_type is None else {"accelerator": given.accelerator_type}
    return Resources(
        cpus=given.num_cpus,
        gpus=given.num_gpus,
        memory=given.memory,
        other=given.resources,
        labels=given.label_selector | accelerator,
        per_host=options.max_replicas_per_node,
    )


def _name_of(kind: object, deployment: str) -> str:
    if isinstance(kind, str):
        return kind
    if inspect.isclass(kind) and issubclass(kind, BaseException):
        return kind.__qualname__
    raise TypeError(
        f"retry_on of deployment {deployment!r} takes exception classes or their names, such as"
        f" (ConnectionError,); got {kind!r}"
    )


# -- the code --------------------------------------------------------------------------------------


class DeploymentCode(NamedTuple):
    """The code of a deployment, as a replica constructs it."""

    func_or_class: Callable[..., Any]
    init_args: tuple[Any, ...]
    init_kwargs: Mapping[str, Any]


Code = Mapping[str, DeploymentCode]


def code_of(built: CompiledApplication) -> Code:
    """Return the code of each deployment by its name; a driver becomes the class that runs its adapter."""
    code = {
        deployment.name: DeploymentCode(deployment.func_or_class, deployment.init_args, deployment.init_kwargs)
        for deployment in built.deployments
    }
    if built.driver is not None:
        resolve_annotations(built.adapter)  # because names that only annotations use do not travel by value
        arguments = built.adapter, built.name, tuple(built.graphs), built.driver.streams
        code[built.ingress.name] = DeploymentCode(AdaptingDriver, arguments, {})
    return code


def import_application(
    target: str, app_name: str, args: Mapping[str, Any] = MappingProxyType({})
) -> tuple[CompiledApplication, dict[str, str]]:
    """Import and compile ``module:node``, or what ``module:builder`` makes of arguments, to be deployed.

    Returns:
      The application, and digests of the user's modules that it consists of by their names. Modules that were imported
      by computed names are among them.

    Raises:
      QserveException: A file was changed meanwhile.
      Exception: Any error of user code.
    """
    sources, before = read_sources(target), {*sys.modules}
    sources.install()
    built = compiled(built_target(load_target(target), args, target), app_name)
    read = {*sources.modules, *own_modules(target, {*sys.modules} - before)}
    digests = read_sources(target, read).digests
    if not digests.items() >= sources.digests.items():
        changed = difference(sources.digests, digests)
        raise QserveException(f"the code of {target} was changed while it was deployed ({changed}); deploy it again")
    return built, digests


def import_code(target: str, app_name: str, args: Mapping[str, Any], deployment: str) -> DeploymentCode:
    """Import ``module:node`` or ``module:builder`` and return the code of one deployment.

    Raises:
      QserveException: There is no such deployment.
      Exception: Any error of user code.
    """
    code = code_of(compiled(built_target(load_target(target), args, target), app_name, deployment))
    if deployment not in code:
        raise QserveException(f"{target} has no deployment {deployment!r}; it has: {', '.join(code)}")
    return code[deployment]


POLICY, PRELOAD = "policy", "preload"
Functions = Mapping[tuple[str, str], Any]
"""What options of deployments name, by the deployment and one of these words."""


def functions_of(built: CompiledApplication) -> Functions:
    """Return what options name by its path that this program defines or has imported."""
    found = {}
    for deployment in built.deployments:
        scaling = deployment.config.autoscaling_config
        policy = "" if scaling is None or scaling.policy is None else scaling.policy.policy_function
        for kind, path in ((POLICY, policy), (PRELOAD, deployment.config.preload or "")):
            module, _, name = path.partition(":")
            with contextlib.suppress(KeyError, AttributeError):  # workers import it
                found[deployment.name, kind] = attrgetter(name)(sys.modules[module])
    return found


def find_function(path: str, kind: str, data: bytes, keyring: Keyring, deployment: str) -> Any:
    """Return what an option of a deployment names: as it was sent with the code of the application, or imported.

    Parameters:
      kind: ``POLICY`` or ``PRELOAD``.
      data: What ``pack_code`` returned; b"" if code is imported.

    Raises:
      PayloadError: The signature is missing or wrong.
      BaseException: As ``load_target`` does.
    """
    with importing_user_code():
        try:
            return unpickle_part(data, keyring, _part(deployment, kind)) if data else load_target(path)
        except KeyError:  # the program has not imported it
            return load_target(path)


def pack_code(code: Code, keyring: Keyring, functions: Functions = MappingProxyType({})) -> bytes:
    """Pickle code and sign it, so that what a script or a function defines needs no import.

    Raises:
      PayloadError: There is no secret key, or the code cannot be pickled; the message names the deployment.
    """
    if keyring.current is None:
        raise PayloadError("code is sent to replicas signed: set QSERVE_SECRET_KEY to a secret of your own")
    packed = {}
    for name, deployment in code.items():
        try:
            packed[name] = dumps_code(deployment)
        except Exception as error:
            target, args, kwargs = deployment
            why = culprit(SimpleNamespace(target=target, args=args, **kwargs), error, "an argument of bind")
            raise PayloadError(
                f"deployment {name!r} cannot be sent to its replicas: {why}. Make it in the constructor or"
                " in a module that the replicas import, or serve this module with `qserve run module:node`"
            ) from error
    for (name, kind), function in functions.items():
        try:
            packed[_part(name, kind)] = dumps(function)
        except Exception as error:
            why = culprit(SimpleNamespace(**{kind: function}), error, "its code")
            what = "scaling policy" if kind == POLICY else kind
            raise PayloadError(f"the {what} of deployment {name!r} cannot be sent to workers: {why}") from error
    return keyring.sign(pickle.dumps(packed))


def _part(deployment: str, kind: str) -> str:
    return f"{deployment}\0{kind}"


def unpack_code(data: bytes, keyring: Keyring, deployment: str) -> DeploymentCode:
    """Return the code of one deployment from what ``pack_code`` returned.

    Raises:
      PayloadError: The signature is missing or wrong.
    """
    return unpickle_part(data, keyring, deployment)  # type: ignore[no-any-return]
