"""The configuration of nginx in docs/operations.md is one of nginx, and what has to pass it does."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from http_client import Client
from processes import Site, free_port, is_open, wait_until
from websockets.sync.client import connect

ROOT = Path(__file__).parents[2]
MEGABYTE = 1 << 20


def blocks(page: str = "operations") -> str:
    (found,) = re.findall(r"^```nginx\n(.*?)^```", (ROOT / "docs" / f"{page}.md").read_text(), re.S | re.M)
    return str(found)


def test_it_passes_on_what_a_websocket_needs() -> None:
    said = {" ".join(line.partition("#")[0].split()) for line in blocks().splitlines()}
    assert {"proxy_http_version 1.1;", "proxy_set_header Upgrade $http_upgrade;", "proxy_buffering off;"} <= said
    assert blocks().count("{") == blocks().count("}")


@pytest.mark.slow
# the group has what one gateway needs, and more
@pytest.mark.parametrize(
    "group", [pytest.param(False, marks=pytest.mark.long), True], ids=["one-gateway", "several-gateways"]
)
def test_websockets_and_large_bodies_pass(site: Site, group: bool) -> None:
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        pytest.skip("there is no nginx: apt-get install nginx")
    serving = site.run("chat:chat", cwd=ROOT / "examples")
    port = free_port()
    own = blocks().replace("listen 80;", f"listen 127.0.0.1:{port};")
    if group:
        own = blocks("how-to/three-hosts") + own.replace("127.0.0.1:8000", "qserve")
    own = re.sub(r"[\w.]+:800[01]", f"127.0.0.1:{serving.port}", own)
    folder = site.folder
    paths = " ".join(f"{kind}_temp_path {folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    text = f"daemon off; pid {folder}/pid; events {{}} http {{ access_log off; {paths}\n{own}}}"
    site.write("nginx.conf", text)
    command = [nginx, "-e", "stderr", "-c", str(folder / "nginx.conf")]
    check = site.start([*command, "-t"])
    assert check.wait() == 0, check.output

    site.start(command)
    wait_until(lambda: is_open(port), description="nginx listens")
    with connect(f"ws://127.0.0.1:{port}/chat") as websocket:
        websocket.send("Dora")
        assert websocket.recv(timeout=60) == "Hello Dora"
    assert Client(port).send("POST", "/none", b"x" * (5 * MEGABYTE)).status == 404
