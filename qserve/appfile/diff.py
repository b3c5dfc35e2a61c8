"""The difference between the applications that run and those in a config file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qserve.appfile.options import options_of
from qserve.wire.application import ApplicationRecord

START, KEEP, REPLACE, DELETE = "starts", "no replica is restarted", "all its replicas are replaced", "is deleted"
"""The effects that a change can have on an application."""


_FIELDS = {
    "route_prefix": "route_prefix",
    "target": "import_path",
    "timeout_s": "request_timeout_s",
    "cancel_on_disconnect": "cancel_on_disconnect",
    "external_scaler": "external_scaler_enabled",
    "capacity": "target_capacity",
}
"""Fields of an application's record, under the names that a file or the options of its ingress use."""


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
            count = sum(one.num_replicas for one in record.replicated.values())
            found.append(Change(name, "", "", "", f"{count} replicas at {record.route_prefix or 'no path'}", START))
        else:
            found += _changes(active, record)
    return [*found, *(Change(name, "", "", "", "", DELETE) for name in deleted)]


def _changes(active: ApplicationRecord, record: ApplicationRecord) -> Iterator[Change]:
    effect = KEEP if record.keeps_replicas_of(active) else REPLACE

    def change(deployment: str, what: str, before: Any = None, after: Any = None) -> Change:
        return Change(record.name, deployment, what, _shown(before), _shown(after), effect)

    for field, what in _FIELDS.items():
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
            for option, before, after in _differing(options_of(old), options_of(new)):
                yield change(name, option, before, after)
    if (active.graphs, active.driver, active.ingress) != (record.graphs, record.driver, record.ingress):
        yield change("", "graph")


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in dict.fromkeys((*old, *new)):
        if old.get(name) != new.get(name):
            yield name, old.get(name), new.get(name)


def _shown(value: Any) -> str:
    if value is None or value == "":
        return ""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
