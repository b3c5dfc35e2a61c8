"""Write the versions that images are built with: the newest that fit setup.cfg today (`make constraints`)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE = ROOT / "qserve" / "stacks" / "constraints.txt"
EXTRAS = ("docs", "otel", "storage")
"""Those that gateways and workers in containers may have."""


def main() -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    done = subprocess.run([*command, f"{ROOT}[{','.join(EXTRAS)}]"], check=True, stdout=subprocess.PIPE)
    found = [item["metadata"] for item in json.loads(done.stdout)["install"]]
    pins = sorted(
        (f"{one['name']}=={one['version']}" for one in found if one["name"] != "qserve-celery"), key=str.lower
    )
    FILE.write_text("# Written by `make constraints`: what images have of the libraries that qserve requires.\n")
    with FILE.open("a") as opened:
        opened.writelines(f"{pin}\n" for pin in pins)


if __name__ == "__main__":
    main()
