"""Processes that the views of web applications start, and children of user code when their replica ends."""

from __future__ import annotations

from typing import Any

import forking
import pytest
from fastapi import FastAPI
from flask import Flask
from http_client import Client

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
