"""The examples in docstrings of public names, and the program that the reference lets them begin with."""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import reference  # noqa: E402

PRELUDE = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "reference" / "index.md").read_text(), re.M | re.S)[0]
GREETINGS = PRELUDE.partition("\nhandle =")[0] + "\napp = Greeter.bind()\n"
"""A module with the class of that program, which examples import as ``greetings``."""
_SHOWN = re.compile(r"^ *print\(.*\)  # (.+)$", re.M)
_CALLS = "run|run_many|start|status|shutdown|delete|connect|is_initialized|get_app_handle|get_deployment_handle"
_OF_THE_INSTALLATION = re.compile(rf"\bhandle\b|serve\.(?:{_CALLS})\b")


@cache
def examples() -> dict[str, str]:
    """Return each by the name of what it is an example of; to read them takes a second or two, so no module does."""
    return {
        f"{path}.{thing.name}" if thing is not owner else path: code
        for path, owner in reference.documented().items()
        for thing in [owner, *reference.members(owner)]
        for code in reference.examples(thing)
    }


def needs_installation(code: str) -> bool:
    """Return whether an example calls what runs, which ``run(..., local=True)`` in it does not start."""
    return "local=True" not in code and _OF_THE_INSTALLATION.search(code) is not None


def run(code: str, namespace: dict[str, Any], printed: Any) -> None:
    """Run an example, and compare what it prints with the comments behind its calls of ``print``."""
    exec(compile(code, "<example>", "exec"), namespace)

    lines, shown = printed.readouterr().out.splitlines(), _SHOWN.findall(code)
    assert lines == shown, f"the example shows {shown}, and printed was {lines}"
