"""The distributions as `make dist` builds them, and environments that one of them is installed in."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import clean_environment

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from dist import FULL, SLIM, build  # noqa: E402


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """The wheel and the sdist of each distribution, of the last commit."""
    folder = tmp_path_factory.mktemp("dist")
    return {name: build(name, folder) for name in (FULL, SLIM)}


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


@pytest.fixture(scope="session")
def environment(built: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Environment]:
    """Return the environment in which a distribution is installed, and nothing but what it requires."""
    made: dict[str, Environment] = {}

    def of(name: str) -> Environment:
        if name not in made:
            made[name] = Environment(
                tmp_path_factory.mktemp(name), str(next(f for f in built[name] if f.suffix == ".whl"))
            )
        return made[name]

    return of
