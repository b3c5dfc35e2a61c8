"""Looks for bytes that a reader refuses with another error than it declares: ``make fuzz``.

atheris (libFuzzer) changes the corpus of each target for a while, guided by the branches that are taken. An input
that it finds is written to a folder of the system's temporary ones; once mended, it belongs in ``corpus/<target>/``.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["qserve", "qserve_gateway", "json"]):
    from targets import TARGETS

EXECUTION_LIMIT_S = 5
MEMORY_LIMIT_MB = 2048


def fuzz(name: str, seconds: int, found: Path) -> None:
    """Try one target in this process; it ends here."""
    logging.disable()  # a line for each request that failed would be a million lines
    target = next(one for one in TARGETS if one.name == name)
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(target.corpus()):
            (Path(folder) / f"seed-{number}").write_bytes(seed)
        options = [
            f"-max_total_time={seconds}",
            f"-timeout={EXECUTION_LIMIT_S}",
            f"-rss_limit_mb={MEMORY_LIMIT_MB}",
            f"-artifact_prefix={found}/{name}-",
            "-print_final_stats=1",
        ]
        atheris.Setup([sys.argv[0], *options, folder], target.run)
        atheris.Fuzz()


def main() -> int:
    """Try all targets one after another, or the one that is named; answers how many were found wanting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--target", choices=[one.name for one in TARGETS], help="this one only (default: all)")
    parser.add_argument("--found", type=Path, help="where to write what was found")
    arguments = parser.parse_args()
    if arguments.target and arguments.found:
        fuzz(arguments.target, arguments.seconds, arguments.found)
    found = Path(tempfile.mkdtemp(prefix="fuzz-"))
    wanting = []
    for name in [arguments.target] if arguments.target else [one.name for one in TARGETS]:
        print(f"== {name}", flush=True)
        command = [
            sys.executable,
            __file__,
            "--target",
            name,
            "--seconds",
            str(arguments.seconds),
            "--found",
            str(found),
        ]
        if subprocess.run(command, check=False).returncode:
            wanting.append(name)
    print(f"found wanting: {', '.join(wanting) or 'none'}; what was found lies in {found}")
    return len(wanting)


if __name__ == "__main__":
    sys.exit(main())
