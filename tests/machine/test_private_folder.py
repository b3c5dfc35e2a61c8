"""The embedded broker's folder lies where every user of the host may write: what others put there does nothing."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Site, free_port, wait_until
from second_user import as_second_user, needs_root

from qserve.machine.private_folder import PrivateFolder, remove_abandoned


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A temporary folder like /tmp, in which everybody may write; ``tmp_path`` is not in it."""
    folder = Path(tempfile.mkdtemp(prefix="shared-"))
    folder.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    shutil.rmtree(folder)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below a folder, with its owner and the time of its last change."""
    found = {str(path.relative_to(folder)): path.lstat() for path in folder.rglob("*")}
    return {name: (stat.st_uid, stat.st_mtime_ns) for name, stat in found.items()}


def set_traps(shared: Path, private: Path) -> None:
    """Plant what an attacker would, as another user; ``private`` is a folder of ours."""
    victim = private / "victim"

    def lock_in(name: str, mode: int = 0o755) -> Path:
        Path(name).mkdir()
        Path(name).chmod(mode)
        return Path(name) / "owner.lock"

    def plant() -> None:
        lock_in("qserve-link").symlink_to(victim)
        os.mkfifo(lock_in("qserve-pipe"))
        os.mkfifo(lock_in(".qserve-pipe"))
        lock_in("qserve-folder").mkdir()
        lock_in("qserve-closed", 0o700).touch()
        lock_in(".qserve-empty", 0o700)
        Path("qserve-file").touch()
        os.mkfifo("qserve-other-pipe")
        Path("qserve-way").symlink_to(private)
        Path(".qserve-way").symlink_to(private)

    as_second_user(plant, shared)
    # a folder of our own that others may write to
    ours = shared / "qserve-ours"
    ours.mkdir()
    ours.chmod(0o777)
    as_second_user(lambda: Path("owner.lock").symlink_to(victim), ours)


@needs_root
def test_nothing_of_another_user_is_opened_followed_or_removed(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "owner.lock").touch(0o600)
    tmp_path.chmod(0o700)
    set_traps(shared, tmp_path)
    before, ours = tree(shared), tree(tmp_path)

    remove_abandoned()
    folder = PrivateFolder()
    folder.remove()

    assert tree(shared) == before
    assert tree(tmp_path) == ours
    assert (tmp_path / "victim").read_text() == "precious"


@needs_root
@pytest.mark.slow
def test_a_run_starts_among_the_traps_of_another_user_and_imports_nothing_of_theirs(site: Site, shared: Path) -> None:
    (site.folder / "victim").write_text("precious")
    set_traps(shared, site.folder)
    as_second_user(lambda: [Path(f"{name}.py").write_text("1 / 0") for name in ("msgpack", "redis")], shared)
    before = tree(shared)
    app = "import qserve\n\n@qserve.deployment\ndef hello(request):\n    return 'here'\n\napp = hello.bind()\n"
    site.write("hello.py", app)
    command = [str(Path(sys.executable).with_name("qserve")), "run", "hello:app", "--app-dir", str(site.folder)]

    run = site.start([*command, "--port", str(free_port())], cwd=shared, env={"TMPDIR": str(shared)})
    run.wait_for("qserve: ready")
    run.press_ctrl_c()

    assert run.wait() == 0
    assert "ZeroDivisionError" not in run.output
    assert tree(shared) == before
    assert (site.folder / "victim").read_text() == "precious"


def test_pipes_and_links_of_our_own_are_not_followed_either(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (shared / "qserve-pipe").mkdir(0o700)
    (shared / "qserve-link").mkdir(0o700)
    os.mkfifo(shared / "qserve-pipe" / "owner.lock")
    (shared / "qserve-link" / "owner.lock").symlink_to(tmp_path / "victim")
    before = tree(shared)

    remove_abandoned()

    assert tree(shared) == before
    assert (tmp_path / "victim").read_text() == "precious"


def test_what_a_killed_owner_left_is_removed_and_what_is_in_use_is_kept(shared: Path) -> None:
    kept = PrivateFolder()
    program = """
import os
from qserve.machine.private_folder import PrivateFolder
path = PrivateFolder().path
(path / "data" / "more").mkdir(parents=True)
(path / "file").touch()
os._exit(7)
"""
    killed = subprocess.run([sys.executable, "-c", program], env={**os.environ, "TMPDIR": str(shared)}, check=False)
    assert killed.returncode == 7
    (shared / ".qserve-begun").mkdir(0o700)
    (shared / "qserve-mine").mkdir(0o700)  # of this user, and none of an embedded broker
    assert len(list(shared.iterdir())) == 4

    remove_abandoned()

    assert {path.name for path in shared.iterdir()} == {kept.path.name, "qserve-mine"}
    kept.remove()
    assert not kept.path.exists()


@pytest.mark.slow
def test_starts_at_once_never_remove_each_others_folder(shared: Path) -> None:
    lost: list[Path] = []

    def start_and_stop() -> None:
        for _ in range(100):
            remove_abandoned()
            folder = PrivateFolder()
            (folder.path / "data").touch()
            remove_abandoned()
            if not (folder.path / "data").exists():
                lost.append(folder.path)
            folder.remove()

    threads = [threading.Thread(target=start_and_stop) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not lost
    assert not list(shared.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_start_is_interrupted_while_it_waits_for_a_broker_that_is_silent(site: Site, number: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(20)
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        run = site.qserve("run", "hello:app", "--port", str(free_port()), env={"QSERVE_BROKER_URL": url})
        held, _ = silent.accept()
        with held:
            assert held.recv(100)  # it has asked, and waits

            run.signal(number)

            wait_until(lambda: run.exit_code() is not None, description="it ends")
    assert "Traceback" not in run.output
