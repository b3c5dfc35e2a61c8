"""Which folders a process of the command searches for modules, and which it passes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
ASK = """
import json, os, sys
from qserve.base import import_path
import_path.set_aside()
path = list(sys.path)
import_path.search_for_user_code("app")
with import_path.importing_user_code():
    during = list(sys.path)
child = import_path.variables_of_child(import_path.user_folders())
print(json.dumps([path, during, list(sys.path), child]))
"""

MEASURE = """
import sys
from qserve.base import import_path
import_path._is_command = True
import qserve.broker.connection
print([name for name in sys.modules if name.startswith("opentelemetry")])
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from redis import ConnectionError, Redis
from redis.observability import OTelConfig, get_observability_instance
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider(metric_readers=[reader]))
get_observability_instance().init(OTelConfig())
try:
    Redis(port=1).ping()
except ConnectionError:
    print("redis.client.errors" in reader.get_metrics_data().to_json())
"""


@pytest.fixture
def ask(tmp_path: Path) -> Any:
    """Ask a new process in the folder ``here``; folders are named from the folder that holds them."""
    for folder in ("here/app", "libraries/lib.dist-info", "agent", "own", "installed/site-packages"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "agent" / "sitecustomize.py").write_text("")

    def ask(*python_path: str) -> tuple[list[str], list[str], list[str], dict[str, str]]:
        folders = os.pathsep.join(str(tmp_path / name) if name else "" for name in python_path)
        done = subprocess.run(
            [sys.executable, "-c", ASK],
            cwd=tmp_path / "here",
            env={**os.environ, "PYTHONPATH": folders},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        *paths, child = json.loads(done.stdout)
        ours = [
            [Path(one).relative_to(tmp_path).as_posix() for one in path if one.startswith(str(tmp_path))]
            for path in paths
        ]
        return *ours, {name: value.replace(f"{tmp_path}/", "") for name, value in child.items()}  # type: ignore[return-value]

    return ask


def test_user_folders_are_first_while_user_code_is_imported_and_last_before_and_after(ask: Any) -> None:
    before, during, after, _ = ask("libraries", "own", "agent", "")

    assert before == ["libraries", "agent", "own"], "folders with packages keep their place, others are last"
    assert during[:3] == ["here/app", "here", "own"]
    assert after[:2] == ["libraries", "agent"]
    assert set(after[2:]) == {"own", "here/app", "here"}


def test_the_working_folder_is_not_searched_even_if_packages_are_installed_there(ask: Any, tmp_path: Path) -> None:
    (tmp_path / "here" / "shop.egg-info").mkdir()

    before, during, _, _ = ask("", "here")

    assert before == []
    assert during == ["here/app", "here"]


def test_a_child_gets_folders_with_packages_as_they_are_and_the_others_for_user_code_only(ask: Any) -> None:
    *_, child = ask("libraries", "own", "agent", "")

    assert child["PYTHONPATH"].split(os.pathsep)[:2] == ["libraries", "agent"]
    assert not {"own", "here", "here/app"} & set(child["PYTHONPATH"].split(os.pathsep))
    assert set(child["QSERVE_IMPORT_PATH"].split(os.pathsep)) == {"here/app", "own", "here"}


def test_a_program_has_its_garbage_collector_as_before_and_a_process_of_the_command_leaves_imports_out() -> None:
    ask = """
import gc, sys
{before}
import qserve
qserve.run, qserve.import_all()
print(gc.isenabled(), gc.get_freeze_count() > 0)
"""

    def said(before: str) -> str:
        program = [sys.executable, "-c", ask.format(before=before)]
        return subprocess.run(program, capture_output=True, text=True, timeout=60, check=True).stdout.strip()

    assert said("") == "True False"
    assert said("gc.disable()") == "False False"
    assert said("sys.orig_argv = ['python', '-m', 'qserve', 'run']") == "True True"


def test_user_code_can_measure_redis_though_the_command_has_not_imported_opentelemetry() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "True"]
