"""The commands that only ask or tell the broker something, carried out in the tests' own process.

That takes a twentieth of what it takes to start Python for each. What they have in common with their own process,
one test of each module does with a real one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from click.testing import CliRunner, Result
from processes import clean_environment

from qserve.__main__ import main


def typed(*arguments: str, env: Mapping[str, str]) -> Result:
    """Carry out ``qserve`` with these arguments, as a shell does that has these of our variables and no others."""
    others = dict.fromkeys({*os.environ} - {*clean_environment()})
    return CliRunner().invoke(main, arguments, env={**others, **env})


def told(*arguments: str, env: Mapping[str, str]) -> str:
    """What a command prints, which succeeds."""
    result = typed(*arguments, env=env)
    assert result.exit_code == 0, result.output
    return result.stdout
