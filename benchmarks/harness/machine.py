"""The machine that figures come from, in one line."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from pathlib import Path

from qserve.machine.embedded_broker import find_server

LOAD = "BENCHMARK_LOAD"
"""The variable with the load before the first of several benchmarks, each of which is load to those after it."""


def described() -> str:
    """Return cores, processor, memory, kernel, Python, broker, day, and how busy the machine is already."""
    memory_gib = int(_found(r"MemTotal:\s+(\d+)", "/proc/meminfo") or 0) / 2**20
    version = subprocess.run([find_server(), "--version"], capture_output=True, text=True, check=True).stdout
    broker = re.search(r"(\w+) server v=([\d.]+)", version)
    load = float(os.environ.get(LOAD, os.getloadavg()[0]))
    coarse = ", so that even ratios are coarse" if load > 1.0 else ""
    parts = (
        f"{os.cpu_count()} cores",
        _found(r"model name\s*: (.+)", "/proc/cpuinfo") or platform.machine(),
        f"{memory_gib:.0f} GiB",
        f"{platform.system()} {platform.release()}",
        f"Python {platform.python_version()}",
        f"{broker[1]} {broker[2]}" if broker else version.strip(),
        f"{time.strftime('%Y-%m-%d')}, load {load:.1f} before{coarse}",
    )
    return ", ".join(parts)


def _found(pattern: str, path: str) -> str:
    found = re.search(pattern, Path(path).read_text()) if Path(path).exists() else None
    return found[1] if found else ""
