"""The oldest libraries that setup.cfg allows, installed together, are enough for qserve and for real applications."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
from matrix import oldest  # noqa: E402

EXTRAS = ("docs", "otel", "storage")
"""Those that users install."""
FOR_TESTS = ["pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "fakeredis"]
FOR_TESTS += ["httpx", "numpy", "pandas", "pillow", "pyarrow"]
TESTS = [
    *(f"tests/gateway/test_{part}.py" for part in ("gateway", "gunicorn_parts", "server")),
    *(f"tests/broker/test_{part}.py" for part in ("link", "acl", "address")),
    "tests/e2e/test_celery_tasks.py",
    "tests/e2e/test_celery_tools.py",
    "tests/e2e/test_http_applications.py",  # FastAPI, Flask, forms and files, on replicas behind a gateway
    "tests/appfile",
    "tests/gateway/test_docs_page.py",
    "tests/payloads/test_tiers.py",
    "tests/payloads/test_folder_under_gevent.py",
    "tests/tracing",
    "tests/e2e/test_tracing.py",
    "tests/cli",
    "tests/http",
    "tests/wire",
]


def test_tests_pass_with_the_oldest_libraries(tmp_path: Path) -> None:
    source, python = tmp_path / "source", str(tmp_path / "venv" / "bin" / "python")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    packages = [python, "-m", "pip", "install", "--quiet", "--editable", str(source), *oldest(*EXTRAS), *FOR_TESTS]
    subprocess.run(packages, check=True, capture_output=True)

    # without switches for plugins that are not there; old Celery leaves clients to the collector of garbage, and calls
    # what newer libraries of others advise against
    options = ["-o", "addopts=", "-q", "-m", "not long", "-W", "ignore::pytest.PytestUnraisableExceptionWarning"]
    options += ["-W", "ignore::DeprecationWarning"]
    done = subprocess.run(
        [python, "-m", "pytest", *options, *TESTS], cwd=source, check=False, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stdout[-8000:]
