"""The distributions as `make dist` builds them, and environments that one of them is installed in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from environments import FULL, SLIM, Environment, build


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """The wheel and the sdist of each distribution, of the last commit."""
    folder = tmp_path_factory.mktemp("dist")
    return {name: build(name, folder) for name in (FULL, SLIM)}


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
