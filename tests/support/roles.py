"""The roles of one installation, each a process of its own, around a broker."""

from __future__ import annotations

from collections.abc import Mapping

from commands import deploy_here
from http_client import Client
from processes import Process, Site, free_port, wait_until


class Roles:
    """Starts the roles of the application ``app`` in the module ``shop``.

    Parameters:
      site: Where they run.
      source: The module's text.
      env: Names the broker, and what else all roles are told.
    """

    def __init__(self, site: Site, source: str, env: Mapping[str, str]) -> None:
        self.site = site
        self.env = {"QSERVE_SECRET_KEY": "the-key-of-this-test", **env}
        self.port = free_port()
        site.write("shop.py", source)

    def command(self, *arguments: str, **env: str) -> Process:
        return self.site.qserve(*arguments, env={**self.env, **env})

    def worker(self, *options: str, **env: str) -> Process:
        return self.command("worker", "shop:app", *options, **env)

    def gateway(self, port: int | None = None) -> Process:
        return self.command("gateway", "--port", str(port or self.port))

    def deploy(self) -> Process:
        return self.command("deploy", "shop:app")

    def deploy_here(self) -> None:
        """Deploy without a process for it, and wait for the end of that."""
        deploy_here("shop:app", self.site.folder, self.env)

    def start(self) -> tuple[Process, Process]:
        """Start all roles, and answer the worker and the gateway once that is healthy."""
        worker, gateway = self.worker(), self.gateway()
        self.deploy_here()
        wait_until(Client(self.port, timeout_s=5).is_healthy, description="the gateway is healthy")
        return worker, gateway
