"""Find what an operator names: an application and its deployments; what is not there is refused with what is."""

from __future__ import annotations

from collections.abc import Collection

from qserve.base.nearest import did_you_mean
from qserve.broker.registry import ACTIVE, NEXT
from qserve.deploy.installation import Installation
from qserve.exceptions import NameNotFound, UsageProblem
from qserve.wire.application import ApplicationRecord


def application_named(installation: Installation, app: str | None) -> str:
    """Return the name of an application that is deployed, whether it can be read or not.

    Parameters:
      app: Its name; None for the only one.

    Raises:
      UsageProblem: There is none of that name, or not exactly one.
    """
    names = sorted(installation.registry.names())
    if app is None and len(names) != 1:
        known = f"several applications are deployed, so name one of them: {', '.join(names)}"
        raise UsageProblem(known if names else "no application is deployed")
    if app is not None and app not in names:
        raise not_found("application", app, "is not deployed; deployed are:", names)
    return names[0] if app is None else app


def versions_named(installation: Installation, app: str | None) -> list[ApplicationRecord]:
    """Return the active version of an application and the one that is being deployed, those that there are.

    Parameters:
      app: Its name; None for the only one.

    Raises:
      UsageProblem: There is none of that name, or not exactly one, or it cannot be read.
    """
    name = application_named(installation, app)
    versions = installation.registry.readable(name, ACTIVE, NEXT)
    if not versions:
        raise UsageProblem(f"what is stored of application {name!r} cannot be read: deploy it again, or delete it")
    return versions


def deployments_named(record: ApplicationRecord, deployment: str | None) -> list[str]:
    """Return the deployments with replicas that are meant: the one of that name, or all.

    Raises:
      UsageProblem: There is none of that name.
    """
    names = [*record.replicated]
    if deployment is not None and deployment not in names:
        raise not_found("deployment", deployment, f"is not in application {record.name!r}; it has:", names)
    return names if deployment is None else [deployment]


def not_found(kind: str, name: str, why: str, known: Collection[str]) -> NameNotFound:
    """Return the error for a name that is not there, with those that are, and the nearest of them."""
    text, hint = f"{kind} {name!r} {why} {', '.join(known) or 'none'}", did_you_mean(name, known)
    return NameNotFound(f"{text}. {hint}" if hint else text)
