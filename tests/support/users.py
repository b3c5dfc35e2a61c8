"""The users of the sample ACL: each role is to do with the rights that the documents advise."""

from __future__ import annotations

from pathlib import Path

from qserve.broker.doctor import sample_acl

ROLES = ("deployer", "gateway", "worker", "operator")
TASKS = "tasks"
"""The role that Celery's producers need, and nobody else."""
ADMIN = "admin"
"""Who does what no role may: the tests themselves."""


def write_users(folder: Path) -> Path:
    """Write the server's ACL file, with one more user that may do everything."""
    users = sample_acl("qserve")
    for role in (*ROLES, TASKS):
        users = users.replace(f"{role.upper()}_PASSWORD", f"{role}-secret")
    path = folder / "users.acl"
    path.write_text(f"{users}user {ADMIN} on >{ADMIN}-secret ~* &* +@all\n")
    return path


def as_user(url: str, user: str) -> str:
    """A broker's address for one of the users."""
    scheme, _, place = url.partition("://")
    return f"{scheme}://{user}:{user}-secret@{place.rpartition('@')[2]}"
