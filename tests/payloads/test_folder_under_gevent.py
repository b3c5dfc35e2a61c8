"""A folder in a process in which gevent has replaced threads: other processes read and write it, and nothing waits."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import is_alive, wait_until

from qserve.exceptions import PayloadError, StoreUnavailable, ValueLost
from qserve.payloads.folder import Folder
from qserve.payloads.folder_process import ProcessFiles
from qserve.payloads.tier import TierFull
from qserve.wire.claim import Claim

MB = 1 << 20
PROGRAM = """
from gevent import monkey
monkey.patch_all()
import gevent, json, os, signal, sys
from qserve.payloads.folder import Folder
folder = Folder(sys.argv[1], "namespace")

def pass_one(letter):
    data = letter * (20 << 20)
    claim = folder.put([(0, memoryview(data))], len(data))
    return bytes(folder.get(claim)) == data == b"".join(folder.pieces(claim))

right = [pass_one(b"a")]
jobs = [gevent.spawn(pass_one, letter) for letter in (b"b", b"c", b"d")]
gevent.joinall(jobs, raise_error=True)
right += [job.value for job in jobs]

helpers = [process.pid for process in folder._files._idle]
for pid in helpers:
    os.kill(pid, signal.SIGSTOP)
job = gevent.spawn(pass_one, b"e")
gevent.sleep(0.1)
is_waiting = not job.ready()  # and this greenlet is not
for pid in helpers:
    os.kill(pid, signal.SIGCONT)
right.append(job.get())
print(json.dumps([right, is_waiting, helpers]), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def pass_under_gevent(url: str) -> None:
    """Pass values through a folder in a process of that kind, and see that others run meanwhile."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, url], stdout=subprocess.PIPE, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL
    right, is_waiting, helpers = json.loads(done.stdout)

    assert right == [True] * 5
    assert is_waiting
    assert helpers
    wait_until(lambda: not any(map(is_alive, helpers)), description="its processes end with it")


@pytest.mark.slow
def test_greenlets_pass_values_through_a_folder_and_others_run_meanwhile(tmp_path: Path) -> None:
    pass_under_gevent(f"file://{tmp_path}")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(f"file://{tmp_path}", "namespace")
    made._opened = ProcessFiles(f"file://{tmp_path}/namespace")
    return made


def put(folder: Folder, data: bytes = b"x" * MB) -> Claim:
    return folder.put([(0, memoryview(data))], len(data))


@pytest.mark.slow
def test_what_cannot_be_done_in_the_other_process_is_told_here(folder: Folder, tmp_path: Path) -> None:
    claim, changed = put(folder), put(folder)
    (tmp_path / "namespace" / changed.name).write_bytes(b"y" * MB)

    assert folder.stats()[1:3] == (2, 2 * MB)
    with pytest.raises(PayloadError):
        folder.get(changed)
    folder.sweep(lambda names: [True] * len(names))
    (tmp_path / "namespace" / claim.name).unlink()
    with pytest.raises(ValueLost):
        folder.get(claim)

    another = Folder(f"file://{tmp_path}/namespace/{changed.name}", "namespace")
    another._opened = ProcessFiles(f"file://{tmp_path}/namespace/{changed.name}/namespace")
    with pytest.raises(TierFull, match="cannot be written to: .*"):
        put(another)
    with pytest.raises(StoreUnavailable, match="cannot be read: .*"):
        another.stats()
    folder.close()
    another.close()


@pytest.mark.slow
def test_a_process_that_was_killed_is_replaced(folder: Folder) -> None:
    files = folder._files
    assert isinstance(files, ProcessFiles)
    claim = put(folder)
    files._idle[0].kill()
    files._idle[0].wait()

    with pytest.raises(StoreUnavailable):
        folder.get(claim)

    assert len(folder.get(claim)) == MB
    folder.close()
