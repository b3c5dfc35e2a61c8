"""The commands that only ask or tell the broker something, carried out in the tests' own process.

That takes a twentieth of what it takes to start Python for each. What they have in common with their own process,
one test of each module does with a real one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from click.testing import CliRunner, Result
from processes import clean_environment

from qserve.__main__ import main
from qserve.base import import_path


def typed(*arguments: str, env: Mapping[str, str]) -> Result:
    """Carry out ``qserve`` with these arguments, as a shell does that has these of our variables and no others."""
    others = dict.fromkeys({*os.environ} - {*clean_environment()})
    return CliRunner().invoke(main, arguments, env={**others, **env})


def told(*arguments: str, env: Mapping[str, str]) -> str:
    """What a command prints, which succeeds."""
    result = typed(*arguments, env=env)
    assert result.exit_code == 0, result.output
    return result.stdout


def deploy_here(target: str, folder: Path, env: Mapping[str, str]) -> None:
    """Deploy what is in a folder; its code is imported in a fork of this process, as ``qserve deploy`` always does."""
    before = import_path.user_folders()
    try:
        told("deploy", target, "--app-dir", str(folder), env=env)
    finally:
        import_path._folders[:] = before
