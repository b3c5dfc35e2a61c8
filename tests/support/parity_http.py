"""What the tests here share: requests of one gateway, sent as users' scripts send them."""

from __future__ import annotations

from typing import Any

import httpx

import qserve as serve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver


class Client:
    """A user's script: ``client.get("/path", params=...)``, ``client.post("/", json=...)``."""

    def __init__(self, url: str) -> None:
        self.url = url

    def send(self, method: str, path: str = "/", **more: Any) -> httpx.Response:
        """Send a request over a connection of its own."""
        return httpx.request(method, self.url + path, timeout=60, verify=False, **more)

    def get(self, path: str = "/", **more: Any) -> httpx.Response:
        return self.send("GET", path, **more)

    def post(self, path: str = "/", **more: Any) -> httpx.Response:
        return self.send("POST", path, **more)


@serve.deployment
def echo(value: Any) -> Any:
    """Give back what came."""
    return value


def run_graph(adapter: Any, body: Any = echo, **options: Any) -> Any:
    """Serve a graph of one step behind an adapter."""
    with InputNode() as value:
        return serve.run(DAGDriver.bind(body.bind(value), http_adapter=adapter), **options)
