"""What the roles do about a broker with wrong settings: at their start, and when it is changed while it is in use."""

from __future__ import annotations

import contextlib
import sys

import pytest
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
        [sys.executable, "-c", QUICK, "--port", str(port)],
        env={"QSERVE_BROKER_URL": url, "QSERVE_SECRET_KEY": "the-key-of-this-test"},
    )
    wait_until(Client(port).is_up, description="the gateway serves")
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
        )
        assert ask(port, "POST", "/anything") == (503, "broker_unsafe")
        client.config_set("maxmemory-policy", "noeviction")
    wait_until(Client(port).is_up, description="it serves again")
    assert ask(port, "POST", "/anything") == (404, "not_found")

    telling = ("refusing requests", "settings are fixed")
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
    assert Client(port).is_up()


def evicting_broker(site: Site) -> str:
    return site.broker("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")


@pytest.mark.parametrize("command", [["worker"], ["run", "nothing:app"]])
def test_roles_that_start_refuse_a_broker_that_evicts(site: Site, command: list[str]) -> None:
    port = ["--port", str(free_port())] if "run" in command else []
    process = site.qserve(*command, *port, env={"QSERVE_BROKER_URL": evicting_broker(site)})
    assert process.wait() == 1
    (line,) = [one for one in process.stderr.splitlines() if one.startswith("Error: ")]
    assert "maxmemory-policy allkeys-lru" in line
    assert "remedy: set maxmemory-policy noeviction" in line


def test_a_gateway_is_not_ready_until_its_broker_has_been_put_right(site: Site) -> None:
    url, port = evicting_broker(site), free_port()
    gateway = site.qserve("gateway", "--port", str(port), env={"QSERVE_BROKER_URL": url})
    gateway.wait_for("remedy: set maxmemory-policy noeviction")

    assert Client(port).get("/-/healthz").status == 503
    client = connect(url)
    client.config_set("maxmemory-policy", "noeviction")
    client.close()
    wait_until(Client(port).is_up, description="the gateway serves")


# tests/broker/test_doctor.py has what is refused
@pytest.mark.parametrize("role", ["worker", pytest.param("gateway", marks=pytest.mark.long)])
def test_roles_refuse_an_open_broker_on_the_network_without_asking_it(site: Site, role: str) -> None:
    process = site.qserve(role, env={"QSERVE_BROKER_URL": "redis://broker.invalid:6379/0", "PORT": str(free_port())})
    assert process.wait() == 1
    assert "without a password" in process.stderr
    assert "Traceback" not in process.stderr


def test_a_worker_waits_for_its_broker_says_so_once_and_can_be_stopped_meanwhile(site: Site) -> None:
    worker = site.qserve("worker", env={"QSERVE_BROKER_URL": f"redis://127.0.0.1:{free_port()}/0"})
    worker.wait_for("waiting for it")
    worker.stop()
    assert worker.exit_code() == 0
    assert len(worker.problems.splitlines()) == 1


# a run tells its processes what it has found, which tests/broker/test_doctor.py has
@pytest.mark.parametrize(
    "command",
    [pytest.param(["run", "shop:app", "--workers", "3"], marks=pytest.mark.long), ["gateway", "--workers", "3"]],
)
def test_what_was_found_about_the_broker_is_logged_once_by_all_processes(site: Site, command: list[str]) -> None:
    port, url = free_port(), site.broker()
    folder = site.write("shop.py", "import qserve\n@qserve.deployment\ndef shop(): ...\napp = shop.bind()\n")

    process = site.qserve(*command, "--port", str(port), env={"QSERVE_BROKER_URL": url}, cwd=folder)

    with contextlib.closing(connect(url)) as client:
        wait_until(
            lambda: len(list(client.scan_iter("{qserve}:g:*"))) == 3, description="all have started", timeout_s=30
        )
    if "run" in command:
        process.wait_for("qserve: ready")
    wait_until(Client(port).is_up, description="the gateway works")
    for finding in ("its append-only file is off", "QSERVE_SECRET_KEY is not set"):
        assert process.stderr.count(finding) == 1, process.stderr
