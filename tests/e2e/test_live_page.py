"""The live page of a running stack: `qserve run` prints a link that opens it, and user code does not see its token."""

from __future__ import annotations

import json
import re

import httpx
import pytest
from http_client import Client
from processes import Site, free_port

APP = """
import os, qserve

@qserve.deployment(num_replicas=2)
def shown(request):
    return [name for name in os.environ if "UI_" in name and os.environ[name]]

app = shown.bind()
"""


@pytest.mark.slow
def test_qserve_run_prints_a_link_to_the_page_with_the_rights_to_act(site: Site) -> None:
    port = free_port()
    process = site.qserve("run", "told:app", "--port", str(port), cwd=site.write("told.py", APP))
    process.wait_for("qserve: ready")
    found = re.search(rf"(http://127.0.0.1:{port}/-/ui)#token=(\w+)", process.stdout)
    assert found is not None
    url, token = found.groups()
    assert Client(port).get().json == []
    assert httpx.get(f"{url}/events").status_code == 401
    with httpx.Client(base_url=f"{url}/", headers={"x-qserve-ui": "1"}, timeout=30) as client:
        assert client.post("session", json={"token": token}).json() == {"may_act": True}
        with client.stream("GET", "events") as events:
            lines = (line.removeprefix("data: ") for line in events.iter_lines() if line.startswith("data: "))
            pictures = (found for line in lines if "deployments" in (found := json.loads(line)))
            running = (one for one in pictures if one["deployments"][0]["replicas"] == {"RUNNING": 2})
            app = next(running)
            assert (app["name"], app["status"], app["bottleneck"]) == ("default", "RUNNING", None)
            counted = (one["deployments"][0]["rate"] for one in pictures)
            assert next(rate for rate in counted if rate is not None) >= 0  # from what workers publish
            process.press_ctrl_c()  # it ends although somebody looks
            assert process.wait() == 0


@pytest.mark.slow
@pytest.mark.parametrize("env", [{"QSERVE_UI_TOKEN": "a-token-of-sixteen"}, {}])
@pytest.mark.long  # tests/ui/test_page.py has who may see the page
def test_without_a_token_of_this_run_no_link_is_printed(site: Site, env: dict[str, str]) -> None:
    port = free_port()
    host = () if env else ("--host", "0.0.0.0")
    process = site.qserve("run", "told:app", "--port", str(port), *host, cwd=site.write("told.py", APP), env=env)
    process.wait_for("qserve: ready")

    assert "/-/ui" not in process.stdout
    assert httpx.get(f"http://127.0.0.1:{port}/-/ui").status_code == (200 if env else 404)
