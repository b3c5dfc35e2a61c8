"""What is refused before replicas are forked from the process that ran ``preload``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="nothing is forked elsewhere")

PROGRAM = """
import _thread, sys, threading
from pathlib import Path
from qserve.engine.preload import check_forkable
from qserve.exceptions import QserveException

begun = threading.Event()

def run():  # Python's `threading` does not know this thread, as it does not know those of libraries in C
    Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(sys.argv[1])
    begun.set()
    threading.Event().wait()

_thread.start_new_thread(run, ())
begun.wait()
try:
    check_forkable("preload 'shop:load'")
    print("may be forked")
except QserveException as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("their-pool", "preload 'shop:load' started threads (of a library in C: their-pool), which replicas do not"),
        ("jemalloc_bg_thd", "may be forked"),  # Arrow's, which pandas and scikit-learn import where it is installed
    ],
)
def test_threads_of_libraries_are_refused_by_name_but_for_those_that_forks_can_do_without(name: str, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, name], capture_output=True, text=True, check=True)

    assert done.stdout.startswith(said)
