"""Run all benchmarks, or some of them, one after the other.

    python benchmarks                           # all, with tables, data and plots in build/benchmarks
    python benchmarks depth width --quick       # two of them, a few seconds each
    python benchmarks --docs                    # into docs/performance.md

Options that are not known here go to each program; see its ``--help``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from itertools import takewhile
from pathlib import Path

from harness.machine import LOAD

HERE = Path(__file__).resolve().parent
PROGRAMS = (
    "depth",
    "width",
    "payload",
    "in_flight",
    "replicas",
    "deployments",
    "streams",
    "idle",
    "compare",
    "pipeline",
)


def main() -> None:
    """Run them, and say at the end which of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.usage = f"{parser.prog} [PROGRAM ...] [--out OUT] [OPTION ...]\n\nPROGRAM is one of {', '.join(PROGRAMS)}"
    parser.add_argument("--out", type=Path, default=HERE.parent / "build" / "benchmarks")
    # names come before options: behind `--seconds`, which is an option of the programs, 2 would look like a name
    names = list(takewhile(lambda word: not word.startswith("-"), sys.argv[1:]))
    given, rest = parser.parse_known_args(sys.argv[1 + len(names) :])
    if unknown := set(names) - set(PROGRAMS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; choose from {', '.join(PROGRAMS)}")
    failed = []
    env = {**os.environ, LOAD: str(os.getloadavg()[0])}
    began = time.monotonic()
    for name in names or PROGRAMS:
        print(f"\n# {name}", flush=True)
        command = [sys.executable, HERE / f"{name}.py", "--out", given.out, *rest]
        if subprocess.run(command, env=env, check=False).returncode:
            failed.append(name)
    print(f"\n# {time.monotonic() - began:.0f} s; tables, data and plots are in {given.out}")
    if failed:
        sys.exit(f"these failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
