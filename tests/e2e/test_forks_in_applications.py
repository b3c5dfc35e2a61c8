"""Processes that the views of web applications start, and children of user code when their replica ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import forking
import pytest
from fastapi import FastAPI
from flask import Flask
from http_client import Client
from processes import is_alive, wait_until
from serving import ask

import qserve as serve

api, wsgi = FastAPI(), Flask("forks")


@serve.deployment(name="api")
@serve.ingress(api)
class Api:
    @api.get("/sync/{name}")
    def sync_view(self, name: str) -> Any:
        return forking.act(name)

    @api.get("/async/{name}")
    async def async_view(self, name: str) -> Any:
        return forking.act(name)


@serve.deployment(name="wsgi")
@serve.ingress(wsgi)
class Wsgi:
    @wsgi.get("/view/<name>")
    def view(self, name: str) -> Any:
        return [forking.act(name)]


@pytest.mark.parametrize(
    ("node", "paths"), [(Api, ["sync", "async"]), (Wsgi, ["view"])], ids=["FastAPI", "Flask"]
)  # fmt: skip
def test_what_a_view_forks_behaves_as_in_any_program(client: Client, node: Any, paths: list[str]) -> None:
    serve.run(node.bind(), name="forks", route_prefix="/forks")

    for path in paths:
        for name in forking.EVERYWHERE:
            answer = client.send("GET", f"/forks/{path}/{name}".replace(" ", "%20")).json
            assert answer in (forking.ACTIONS[name][1], [forking.ACTIONS[name][1]]), (path, name)


@serve.deployment(num_replicas=2)
class Parent:
    def __init__(self) -> None:
        self.family = forking.family()

    def look(self) -> tuple[int, int, dict[str, int]]:
        return os.getpid(), os.getppid(), self.family


Ways = dict[str, Callable[[int, int], object]]
WAYS: Ways = {
    "the replica is killed": lambda replica, supervisor: os.kill(replica, signal.SIGKILL),
    "the replica is told to stop": lambda replica, supervisor: os.kill(replica, signal.SIGTERM),
    "the supervisor is killed": lambda replica, supervisor: os.kill(supervisor, signal.SIGKILL),
    "both are killed": lambda replica, supervisor: [
        os.kill(pid, number) for number in (signal.SIGSTOP, signal.SIGKILL) for pid in (supervisor, replica)
    ],
    "the application is deleted": lambda replica, supervisor: serve.delete("parent"),
}


@pytest.mark.usefixtures("started")
def test_no_process_of_user_code_outlives_its_replica_and_none_ends_before() -> None:
    handle = serve.run(Parent.bind(), name="parent", route_prefix="/parent")
    families: dict[int, dict[str, int]] = {}

    def look() -> tuple[int, int] | None:
        replica, supervisor, families[replica] = ask(handle.look)
        for gone in [pid for pid in families if not is_alive(pid)]:
            del families[gone]
        return (replica, supervisor) if len(families) == 2 else None

    def left(*pids: int) -> dict[str, int]:
        return {name: pid for one in pids for name, pid in known[one].items() if is_alive(pid)}

    for way, end in WAYS.items():
        replica, supervisor = wait_until(look, description="both replicas have answered", timeout_s=60)
        known = dict(families)
        (other,) = known.keys() - {replica}
        end(replica, supervisor)
        is_alone = way.startswith("the replica")
        ended = (replica,) if is_alone else (replica, other)
        wait_until(lambda ended=ended: not left(*ended), description=f"nothing is left when {way}", timeout_s=60)  # type: ignore[misc]
        assert left(other) == (known[other] if is_alone else {}), f"what the other replica has when {way}"
