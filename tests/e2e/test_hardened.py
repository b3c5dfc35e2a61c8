"""The hello example as its containers run it: nothing to write on but /tmp, no root, no capabilities."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from http_client import Client
from processes import READY, Site, free_port

ROOT = Path(__file__).parents[2]
NOBODY = 65534
TMPFS = "size=64m,noexec,nosuid,nodev,mode=1777"

# as root in a mount namespace of its own: mount, see that it holds, give everything up, and become the command
PREPARE = f"""
set -e
mount --make-rprivate /
mount -t tmpfs -o {TMPFS} tmpfs /tmp
if [ -n "$CLOSED" ]; then
    # the interpreter lies in a home folder that others may not enter: show nobody that interpreter only
    mkdir /tmp/python
    mount --bind "$PYTHON" /tmp/python
    mount -t tmpfs -o mode=755 tmpfs "$CLOSED"
    mkdir -p "$PYTHON"
    mount --move /tmp/python "$PYTHON"
    rmdir /tmp/python
    mount -n -o remount,ro "$CLOSED"
fi
mount --bind "$ROOT" "$ROOT"
mount -n -o remount,ro,bind "$ROOT"
mount -n -o remount,ro,bind /
for place in / "$ROOT"; do
    if touch "$place/of-this-test" 2>/dev/null; then rm "$place/of-this-test"; echo "$place is writable"; exit 9; fi
done
exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups --no-new-privs --bounding-set=-all "$@"
"""


def _hardened(*command: str) -> list[str]:
    return ["unshare", "--mount", "sh", "-c", PREPARE, "sh", *command]


def _environment() -> dict[str, str]:
    folders = [*reversed(Path(sys.base_prefix).parents), Path(sys.base_prefix)]
    closed = next((str(one) for one in folders if not one.stat().st_mode & stat.S_IXOTH), "")
    return {"ROOT": str(ROOT), "PYTHON": sys.base_prefix, "CLOSED": closed}


def _missing() -> str:
    """Why it cannot be tried here; "" where it can."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv"))):
        return "needs root, unshare and setpriv"
    tried = subprocess.run(
        _hardened(sys.executable, "-c", "import qserve"),
        env=os.environ | _environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if tried.returncode == 0 else f"no such namespace can be made here: {tried.stdout}{tried.stderr}"


def _status(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: values.split() for name, _, values in (line.partition(":") for line in lines)}


@pytest.mark.slow
@pytest.mark.long  # make test-stack has it in containers
def test_the_example_serves_on_a_read_only_root_as_nobody(site: Site) -> None:
    if missing := _missing():
        pytest.skip(missing)
    port = free_port()
    command = [sys.executable, "-m", "qserve", "run", "hello:language_classifier", "--port", str(port)]
    env = _environment() | {"TMPDIR": "/tmp", "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"}
    process = site.start(_hardened(*command), cwd=ROOT / "examples", env=env)
    process.wait_for(READY)

    assert Client(port).post("/", {"language": "spanish", "name": "Dora"}).text == "Hola Dora"
    roles = {pid: _status(pid) for pid in site.processes()}
    # the command, the gateway's two, the supervisor and the example's replicas
    assert len(roles) >= 6
    for status in roles.values():
        assert set(status["Uid"]) == {str(NOBODY)}
        assert {status["CapEff"][0], status["CapBnd"][0]} == {"0" * 16}
        assert status["NoNewPrivs"] == ["1"]

    process.stop()
    assert process.exit_code() == 0, process.output
    assert "Traceback" not in process.output
    assert "Read-only" not in process.output
    assert "Permission denied" not in process.output
