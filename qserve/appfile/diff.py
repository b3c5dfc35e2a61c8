"""What a deploy would change: the difference between what runs and what a file says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

from qserve.wire.application import ApplicationRecord, DeploymentRecord

START, REPLACE, DELETE = "starts", "all its replicas are replaced", "is deleted"
"""What a change does to an application."""
_OPTIONS = {
    "max_ongoing": "max_ongoing_requests",
    "max_queued": "max_queued_requests",
    "full_status": "backpressure_config.status_code",
    "full_retry_after_s": "backpressure_config.retry_after_s",
    "grace_s": "graceful_shutdown_timeout_s",
    "health_period_s": "health_check_period_s",
    "health_timeout_s": "health_check_timeout_s",
    "scaling": "autoscaling_config",
    "resources.cpus": "num_cpus",
    "resources.gpus": "num_gpus",
    "resources.memory": "memory",
    "resources.other": "resources",
    "resources.labels": "label_selector",
    "resources.per_host": "max_replicas_per_node",
    "env": "runtime_env.env_vars",
    "logging": "logging_config",
}
"""Fields of a record that are named in another way than their options."""
_NOT_SHOWN = {"name", "replicated"}


@dataclass(frozen=True)
class Change:
    """One difference.

    Parameters:
      deployment: "" if it concerns the whole application.
      what: The option, or what else changes; "" for the application or the deployment itself.
      before, after: The values as text; "" where there is none.
    """

    app: str
    deployment: str
    what: str
    before: str
    after: str
    effect: str

    def __str__(self) -> str:
        name = f"{self.app}/{self.deployment}" if self.deployment else self.app
        values = f"{self.before or 'none'} -> {self.after or 'none'}" if self.before or self.after else ""
        return " ".join(filter(None, (name, self.what, values))) + f" ({self.effect})"


def diff(
    running: Mapping[str, ApplicationRecord], wanted: Mapping[str, ApplicationRecord], deleted: list[str]
) -> list[Change]:
    """Return what changes when these applications are deployed and those are deleted.

    Parameters:
      running: The active versions of all applications by name.
    """
    found: list[Change] = []
    for name, record in wanted.items():
        active = running.get(name)
        if active is None:
            count = sum(one.num_replicas for one in record.deployments.values() if one.replicated)
            found.append(Change(name, "", "", "", f"{count} replicas at {record.route_prefix or 'no path'}", START))
        else:
            found += _changes(active, record)
    return [*found, *(Change(name, "", "", "", "", DELETE) for name in deleted)]


def _changes(active: ApplicationRecord, record: ApplicationRecord) -> Iterator[Change]:
    def change(deployment: str, what: str, before: Any = None, after: Any = None) -> Change:
        return Change(record.name, deployment, what, _shown(before), _shown(after), REPLACE)

    for field, what in (("route_prefix", "route_prefix"), ("target", "import_path"), ("timeout_s", "timeout")):
        before, after = getattr(active, field), getattr(record, field)
        if before != after:
            yield change("", what, before, after)
    if active.arguments != record.arguments:
        yield change("", "args", active.arguments, record.arguments)
    if (active.code_version or active.modules) != (record.code_version or record.modules):
        yield change("", "code", active.code, record.code)
    for name in dict.fromkeys((*active.deployments, *record.deployments)):
        old, new = active.deployments.get(name), record.deployments.get(name)
        if old is None or new is None:
            yield change(name, "is new" if old is None else "is removed")
        else:
            for field, before, after in _options(old, new):
                yield change(name, field, before, after)
    if (active.graphs, active.driver, active.ingress) != (record.graphs, record.driver, record.ingress):
        yield change("", "graph")


def _options(old: DeploymentRecord, new: DeploymentRecord) -> Iterator[tuple[str, Any, Any]]:
    before, after = _plain(old), _plain(new)
    for name in dict.fromkeys((*before, *after)):
        if before.get(name) != after.get(name) and name not in _NOT_SHOWN:
            start, _, rest = name.partition(".")
            what = _OPTIONS.get(name) or (f"{_OPTIONS[start]}.{rest}" if rest else name)
            yield what, before.get(name), after.get(name)


def _plain(record: DeploymentRecord) -> dict[str, Any]:
    """Return the fields of a record by name, and those of its parts by ``part.name``."""
    found: dict[str, Any] = {}
    for name, value in vars(record).items():
        if is_dataclass(value):
            found |= {f"{name}.{inside}": one for inside, one in vars(value).items()}
        else:
            found[name] = value
    return found


def _shown(value: Any) -> str:
    if value is None or value == "":
        return ""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
