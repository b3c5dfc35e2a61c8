"""Commands and programs find what their user runs on this host, and nothing that somebody else has put there."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from processes import clean_environment
from second_user import as_second_user, needs_root

import qserve
from qserve.__main__ import main
from qserve.base.settings import Settings
from qserve.calls.ref import current
from qserve.exceptions import BrokerUnavailable, UsageProblem
from qserve.machine.private_folder import PrivateFolder, remove_abandoned
from qserve.machine.running import announce, find_running, settings_of_run

KEY = b"the-key-of-this-test"
SETTINGS = Settings(broker_url="unix:///nowhere/broker.sock", secret_key=KEY, namespace="theirs")


@pytest.fixture(autouse=True)
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder like /tmp, in which everybody may write, and an environment that names no broker."""
    folder = Path(tempfile.mkdtemp(prefix="shared-"))
    folder.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    for name in {*os.environ} - {*clean_environment()}:
        monkeypatch.delenv(name)
    monkeypatch.setattr(current, "installed", None)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def run() -> Iterator[Callable[..., PrivateFolder]]:
    """Announces a run, as ``qserve run`` does when it is ready; each is removed at the end."""
    folders = []

    def announced(what: str = "shop:app", settings: Settings = SETTINGS) -> PrivateFolder:
        folders.append(PrivateFolder())
        announce(folders[-1], what, "http://127.0.0.1:8000", settings)
        return folders[-1]

    yield announced
    for folder in folders:
        folder.remove()


def status(*options: str) -> Result:
    return CliRunner().invoke(main, ["status", *options])


def rewritten(folder: PrivateFolder, **changed: Any) -> None:
    data = json.loads((folder.path / "run.json").read_bytes())
    folder.write("run.json", json.dumps({**data, **changed}).encode())


# -- what is found ---------------------------------------------------------------------------------


def test_the_only_run_is_used_with_its_broker_key_and_namespace_and_named(
    run: Callable[..., PrivateFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    run()

    found = settings_of_run()

    assert found is not None
    assert (found.broker_url, found.secret_key, found.namespace) == ("unix:///nowhere/broker.sock", KEY, "theirs")
    said = capsys.readouterr()
    assert said.err == f"qserve: using the run of shop:app (pid {os.getpid()}, http://127.0.0.1:8000)\n"
    assert said.out == ""


def test_keys_and_namespace_are_those_of_the_run_and_not_of_the_shell(
    run: Callable[..., PrivateFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("QSERVE_SECRET_KEY", "QSERVE_ACCEPTED_KEYS", "QSERVE_NAMESPACE"):
        monkeypatch.setenv(name, "for-another-broker")
    run(settings=Settings(broker_url="unix:///nowhere"))

    found = settings_of_run()

    assert found is not None
    assert (found.secret_key, found.accepted_keys, found.namespace) == (None, (), "qserve")


def test_the_key_is_neither_shown_nor_readable_by_others(run: Callable[..., PrivateFolder]) -> None:
    folder = run()

    assert KEY.decode() not in repr(find_running())
    assert (folder.path / "run.json").stat().st_mode & 0o777 == 0o600
    assert folder.path.stat().st_mode & 0o777 == 0o700


def test_a_run_that_has_ended_or_was_killed_is_not_found(run: Callable[..., PrivateFolder]) -> None:
    program = """
import os, sys
from qserve.base.settings import Settings
from qserve.machine.private_folder import PrivateFolder
from qserve.machine.running import announce
folder = PrivateFolder()
announce(folder, "shop:app", "http://127.0.0.1:8000", Settings(broker_url="unix:///nowhere"))
if "forks" in sys.argv and not os.fork():
    sys.stdin.read()  # the lock of its parent lives on in this process
os._exit(0)
"""
    for how in ("alone", "forks"):
        env = {**clean_environment(), "TMPDIR": tempfile.gettempdir()}
        with subprocess.Popen([sys.executable, "-c", program, how], env=env, stdin=subprocess.PIPE) as killed:
            assert killed.wait() == 0
            assert find_running() == []
    run()
    assert len(find_running()) == 1
    remove_abandoned()
    assert len(find_running()) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"pid": "7"},
        {"pid": True},
        {"pid": 0},
        {"pid": -1},
        {"pid": 2**70},
        {"variables": []},
        {"variables": {"QSERVE_BROKER_URL": 7}},
        {"what": None},
    ],
)
def test_a_file_that_no_run_has_written_is_skipped(run: Callable[..., PrivateFolder], changed: dict[str, Any]) -> None:
    rewritten(run(), **changed)
    for text in (b"", b"[" * 50_000, b"null", b"{}", b"\xff", b"x" * 100_000):
        run().write("run.json", text)
    run("good:app")

    assert [found.what for found in find_running()] == ["good:app"]


def test_what_a_later_version_says_besides_is_left_out(run: Callable[..., PrivateFolder]) -> None:
    rewritten(run("later:app"), more=1)

    assert [found.what for found in find_running()] == ["later:app"]


# -- which one is used -----------------------------------------------------------------------------


def test_a_broker_that_is_named_is_used_rather_than_a_run(
    run: Callable[..., PrivateFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    by_option = status("--broker", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    by_variable = status()

    for result in (by_option, by_variable):
        assert "127.0.0.1:1" in result.stderr
        assert "using the run" not in result.stderr
    assert "using the run" in status("--run", str(os.getpid())).stderr  # an option is meant more than a variable
    both = status("--run", "1", "--broker", "redis://127.0.0.1:1/0")
    assert (both.exit_code, "not both" in both.stderr) == (2, True)


@pytest.mark.parametrize("command", ["status", "doctor", "dlq list"])
def test_without_a_run_the_message_says_that_none_was_found_and_where(shared: Path, command: str) -> None:
    result = CliRunner().invoke(main, command.split())

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "Error: no broker is set. Pass --broker URL or set QSERVE_BROKER_URL; no `qserve run` of yours was found in"
        f" {shared}\n"
    )
    with pytest.raises(BrokerUnavailable, match="no broker is set.*no `qserve run` of yours was found in"):
        qserve.get_app_handle()


def test_of_several_one_has_to_be_chosen(run: Callable[..., PrivateFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    rewritten(run("other:app"), pid=os.getppid())
    run("shop:app")

    result = status()

    assert result.exit_code == 2
    assert result.stderr.startswith(
        "Error: more than one `qserve run` of yours is running."
        " Choose one with --run PID (in Python: QSERVE_RUN=PID):\n"
    )
    for pid, what in ((os.getppid(), "other:app"), (os.getpid(), "shop:app")):
        (line,) = [line for line in result.stderr.splitlines() if what in line]
        assert line.split()[:2] == ["--run", str(pid)]
        assert f"using the run of {what}" in status("--run", str(pid)).stderr
    with pytest.raises(UsageProblem, match="more than one `qserve run` of yours is running"):
        qserve.get_app_handle()
    monkeypatch.setenv("QSERVE_RUN", str(os.getppid()))
    assert "using the run of other:app" in status().stderr
    unknown = status("--run", "1x")
    assert (unknown.exit_code, unknown.stderr.count("--run")) == (2, 2)
    assert "no run of yours has the process ID 1x" in unknown.stderr


@pytest.fixture
def handlers_of_signals() -> Iterator[None]:
    """Put back what a command changes that runs in this process: children of other tests would take no SIGTERM."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers_of_signals")
def test_a_worker_never_uses_the_run_that_happens_to_be_there(run: Callable[..., PrivateFolder]) -> None:
    run()

    result = CliRunner().invoke(main, ["worker"])

    assert result.exit_code == 1
    assert result.stderr.strip().endswith("no broker is set. Pass --broker URL or set QSERVE_BROKER_URL")


# -- the other users of the host -------------------------------------------------------------------


@needs_root
def test_another_user_can_neither_plant_a_run_nor_read_the_key_of_ours(
    run: Callable[..., PrivateFolder], shared: Path, tmp_path: Path
) -> None:
    ours = run()
    file = (ours.path / "run.json").read_bytes()
    outside = shared / "elsewhere"
    outside.mkdir(0o700)
    (outside / "owner.lock").touch(0o600)
    (outside / "run.json").write_bytes(file.replace(b"shop:app", b"link:app"))
    open_to_all = shared / "qserve-ours"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)

    def plant() -> None:
        for look in ((ours.path / "run.json").read_bytes, lambda: [*ours.path.iterdir()]):
            with pytest.raises(PermissionError):
                look()
        for name in ("qserve-theirs", "qserve-ours/qserve-theirs"):
            Path(name).mkdir(0o700)
            Path(name, "run.json").write_bytes(file.replace(b"shop:app", b"planted:app"))
            Path(name, "run.json").chmod(0o600)
            Path(name, "owner.lock").touch(0o600)
        Path("qserve-link").symlink_to(outside)
        Path("qserve-ours", "run.json").write_bytes(file.replace(b"shop:app", b"planted:app"))
        Path("qserve-ours", "run.json").chmod(0o600)
        Path("qserve-ours", "owner.lock").touch(0o600)
        with pytest.raises(PermissionError):
            ours.path.rename("qserve-moved")

    as_second_user(plant, shared)
    held = [os.open(path, os.O_RDWR) for path in shared.glob("**/owner.lock") if not path.is_relative_to(ours.path)]
    assert len(held) == 4
    for lock in held:  # as a process of theirs would hold it
        fcntl.flock(lock, fcntl.LOCK_EX)
    assert [found.what for found in find_running()] == ["shop:app"]

    open_to_all.chmod(0o700)  # too late: what is in it is not this user's
    assert [found.what for found in find_running()] == ["shop:app"]
    os.chown(open_to_all / "run.json", os.geteuid(), -1)
    (open_to_all / "run.json").unlink()
    (open_to_all / "run.json").symlink_to(outside / "run.json")
    assert [found.what for found in find_running()] == ["shop:app"]
    for lock in held:
        os.close(lock)


def test_a_pipe_or_a_folder_in_the_place_of_the_file_holds_nobody_up(run: Callable[..., PrivateFolder]) -> None:
    folders = [run(), run(), run()]
    for folder, plant in zip(
        folders, (os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/etc/passwd")), strict=True
    ):
        (folder.path / "run.json").unlink()
        plant(folder.path / "run.json")

    assert find_running() == []
