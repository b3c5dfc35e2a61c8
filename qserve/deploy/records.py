"""From a built application to what is registered of it."""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import replace
from typing import Any

from qserve.define.compile import CompiledApplication, CompiledDriver
from qserve.define.drivers import is_driver
from qserve.define.options import DeploymentOptions
from qserve.exceptions import PayloadError
from qserve.http import adapters as http_adapters
from qserve.wire.application import ApplicationRecord, DeploymentRecord, DriverRecord, dump_plan
from qserve.wire.codec import Codec

_GATEWAY_ADAPTERS: dict[Any, str] = {
    http_adapters.json_request: "json_request",
    http_adapters.starlette_request: "starlette_request",
    None: "starlette_request",
}
"""Adapters that need no user code: the gateway runs them itself and saves the hop to a driver replica."""


def record_of(
    built: CompiledApplication,
    version: str,
    codec: Codec,
    *,
    target: str = "",
    route_prefix: str | None = "/",
    timeout_s: float | None = None,
) -> ApplicationRecord:
    """Describe an application for the registry.

    Parameters:
      built: The compiled application.
      version: Changes with every deploy.
      codec: Encodes the constants among the graph's arguments.
      target: ``module:node`` that replicas import; "" when code travels by value.
      route_prefix: Where it answers HTTP; None for not at all.
      timeout_s: Deadline of its requests; None takes the ingress deployment's, or the setting's.

    Raises:
      PayloadError: A constant in the graph cannot travel; the message names the step.
    """
    driver = None if built.driver is None else _driver_record(built.driver)
    ingress = built.deployments[-1]
    deployments = {
        one.name: _deployment_record(one.name, one.config, replicated=_is_replicated(one.func_or_class, driver))
        for one in built.deployments
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
        version=version,
        ingress=built.ingress,
        route_prefix=route_prefix,
        target=target,
        timeout_s=timeout_s if timeout_s is not None else ingress.config.request_timeout_s,
        deployments=deployments,
        graphs=graphs,
        driver=driver,
    )


def code_digest(record: ApplicationRecord, built: CompiledApplication, code: bytes) -> str:
    """What stays the same when only ``user_config`` or ``num_replicas`` of an application change.

    Parameters:
      record: The application.
      built: The same, with the versions that the user gave.
      code: Its code by value.
    """
    settled = {name: replace(one, num_replicas=0, user_config="") for name, one in record.deployments.items()}
    plain = replace(record, version="", route_prefix=None, timeout_s=None, deployments=settled)
    versions = [str(one.version) for one in built.deployments]
    return hashlib.sha256(repr(versions).encode() + plain.encode() + code).hexdigest()


def _is_replicated(func_or_class: object, driver: DriverRecord | None) -> bool:
    if driver is None or not (inspect.isclass(func_or_class) and is_driver(func_or_class)):
        return True
    return driver.adapter == ""


def _name_of(kind: object, deployment: str) -> str:
    if isinstance(kind, str):
        return kind
    if inspect.isclass(kind) and issubclass(kind, BaseException):
        return kind.__qualname__
    raise TypeError(
        f"retry_on of deployment {deployment!r} takes exception classes or their names, such as"
        f" (ConnectionError,); got {kind!r}"
    )


def _driver_record(driver: CompiledDriver) -> DriverRecord:
    adapter = driver.adapter
    known = adapter is None or inspect.isfunction(adapter)
    return DriverRecord(
        adapter=_GATEWAY_ADAPTERS.get(adapter, "") if known else "",
        routes=driver.routes,
        direct=dict(driver.direct),
    )


def _deployment_record(name: str, options: DeploymentOptions, replicated: bool) -> DeploymentRecord:
    return DeploymentRecord(
        name=name,
        num_replicas=options.num_replicas,
        max_ongoing=options.max_concurrent_queries,
        max_queued=options.max_queued_requests,
        grace_s=options.graceful_shutdown_timeout_s,
        max_retries=options.max_retries,
        retry_on=None if options.retry_on is None else [_name_of(kind, name) for kind in options.retry_on],
        retry_backoff_s=options.retry_backoff_s,
        max_execution_s=options.max_execution_s,
        health_period_s=options.health_check_period_s,
        health_timeout_s=options.health_check_timeout_s,
        user_config="" if options.user_config is None else json.dumps(options.user_config, sort_keys=True),
        replicated=replicated,
    )
