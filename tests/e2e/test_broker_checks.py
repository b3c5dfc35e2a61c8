"""A broker whose settings are changed while it is in use."""

from __future__ import annotations

import contextlib
import sys

from http_client import Client
from processes import Process, Site, free_port, wait_until

from qserve.broker.connection import connect

QUICK = (
    "from qserve_gateway import __main__\nfrom qserve_gateway import routes\n"
    "routes.CHECK_INTERVAL_S = 0.2\n__main__.main()\n"
)


def ask(port: int, method: str, path: str) -> tuple[int, str]:
    """Status, and the code of an error."""
    answer = Client(port).send(method, path, {} if method == "POST" else None)
    return answer.status, "" if answer.status == 200 else answer.code


def start_gateway(site: Site, url: str, port: int) -> Process:
    gateway = site.start(
        [sys.executable, "-c", QUICK, "--port", str(port)], env={"QSERVE_BROKER_URL": url, "QSERVE_SECRET_KEY": "key"}
    )
    wait_until(Client(port).is_healthy, description="the gateway serves", timeout_s=20)
    return gateway


def test_a_broker_that_begins_to_evict_is_given_no_more_requests_until_it_is_set_right(site: Site) -> None:
    url, port = site.broker(), free_port()
    gateway = start_gateway(site, url, port)
    with contextlib.closing(connect(url)) as client:
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        wait_until(
            lambda: ask(port, "GET", "/-/healthz") == (503, "broker_unsafe"),
            description="the change is noticed",
            timeout_s=10,
        )
        assert ask(port, "POST", "/anything") == (503, "broker_unsafe")
        client.config_set("maxmemory-policy", "noeviction")
    wait_until(Client(port).is_healthy, description="it serves again", timeout_s=10)
    assert ask(port, "POST", "/anything") == (404, "not_found")

    telling = ("evict", "policy", "settings are fixed")
    lines = [line for line in gateway.stderr.splitlines() if any(word in line for word in telling)]
    assert len(lines) == 2, gateway.stderr
    assert "remedy: set maxmemory-policy noeviction" in lines[0]
    assert "accepting requests again" in lines[1]


def test_an_append_only_file_that_is_switched_off_is_warned_of_once(site: Site) -> None:
    url, port = site.broker(), free_port()
    with contextlib.closing(connect(url)) as client:
        client.config_set("appendonly", "yes")
        gateway = start_gateway(site, url, port)
        assert "append-only" not in gateway.stderr
        client.config_set("appendonly", "no")
        gateway.wait_for("its append-only file is off")
        before = client.info("commandstats")["cmdstat_info"]["calls"]
        wait_until(
            lambda: client.info("commandstats")["cmdstat_info"]["calls"] > before + 3, description="it has looked again"
        )
    assert gateway.stderr.count("append-only file is off") == 1
    assert Client(port).is_healthy()
