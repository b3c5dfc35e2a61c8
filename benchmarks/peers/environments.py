"""The virtual environments of the peers, each of which is created when it is first needed."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

CACHE = Path.home() / ".cache" / "qserve-bench"
_MODELS = ("scikit-learn", "pillow")
PACKAGES = {
    "ray": ("ray[serve]", *_MODELS),
    "bentoml": ("bentoml", *_MODELS),
    "celery": ("celery", "redis", "packaging", "flask", "gunicorn"),
    "litserve": ("litserve",),
}
"""What each environment needs."""


class Unavailable(Exception):
    """A peer cannot be installed here; the message says why."""


def environment(name: str) -> Path:
    """Return the ``bin`` folder of a peer's own virtual environment.

    Raises:
      Unavailable: Its packages cannot be installed.
    """
    home, wanted = CACHE / name, "\n".join(PACKAGES[name])
    ready = home / "ready"
    if not ready.exists() or ready.read_text().strip() != wanted:
        print(f"# creating the environment of {name} in {home}", file=sys.stderr)
        venv.create(home, with_pip=True, clear=True)
        command = [home / "bin" / "pip", "install", "--quiet", *PACKAGES[name]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unavailable(f"{name} cannot be installed: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
        ready.write_text(wanted)
    return home / "bin"


def version(bin_folder: Path, package: str) -> str:
    """Return the installed version of a package."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run(
        [bin_folder / "python", "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
