"""Virtual environments without the checkout; importing this makes the tools of the repository importable."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from processes import clean_environment

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from distributions import FULL as FULL  # noqa: E402
from distributions import SLIM as SLIM  # noqa: E402
from distributions import build as build  # noqa: E402


class Environment:
    """A virtual environment, with commands that know nothing of the checkout."""

    def __init__(self, folder: Path, *requirements: str) -> None:
        self.bin = folder / "bin"
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        self.run("python", "-m", "pip", "install", "--quiet", *requirements)

    def run(self, name: str, *arguments: str, cwd: Path | None = None, fails: bool = False) -> str:
        """Run a command to its end, and return what it prints."""
        variables = {key: value for key, value in clean_environment().items() if not key.startswith("PYTHON")}
        done = subprocess.run(
            [self.bin / name, *arguments],
            cwd=cwd or self.bin,
            env=variables,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert bool(done.returncode) is fails, done.stdout
        return done.stdout
