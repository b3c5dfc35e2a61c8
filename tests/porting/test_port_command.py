"""`qserve port`: which files it reads, what it prints and writes, and how it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from qserve.__main__ import main
from qserve.porting import files

PROGRAM = "from ray import serve\n\nserve.run(1)\n"
MOVED = "import qserve as serve\n\nserve.run(1)\n"


def port(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["port", *map(str, arguments)])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app.py").write_text(PROGRAM)
    return tmp_path


def test_it_shows_a_diff_and_writes_nothing(folder: Path) -> None:
    result = port("app.py")

    assert result.exit_code == 0
    assert "--- a/app.py\n+++ b/app.py\n" in result.output
    assert "-from ray import serve\n+import qserve as serve\n" in result.output
    assert result.output.endswith(
        "1 of 1 Python files would change (pass --write to change them); nothing is left to do by hand\n"
    )
    assert (folder / "app.py").read_text() == PROGRAM


def test_the_diff_can_be_applied(folder: Path) -> None:
    (folder / "no_end.py").write_text("import ray\nray.get(1)")
    (folder / "diff").write_text(port(".").output)

    subprocess.run(["git", "apply", "diff"], check=True, cwd=folder)

    assert (folder / "app.py").read_text() == MOVED
    assert (folder / "no_end.py").read_text() == "import qserve\nqserve.get(1)"


def test_it_writes_if_told_to_and_a_second_time_there_is_nothing_to_do(folder: Path) -> None:
    result = port("--write", folder)

    assert result.exit_code == 0
    assert f"wrote {folder / 'app.py'}\n1 of 1 Python files were changed" in result.output
    assert (folder / "app.py").read_text() == MOVED
    assert port("--write", folder).output.startswith("0 of 1 Python files were changed")
    assert port("--write", "--to-ray", folder).exit_code == 0
    assert (folder / "app.py").read_text() == PROGRAM


def test_what_is_left_is_printed_and_ends_with_exit_code_1(folder: Path) -> None:
    (folder / "tasks.py").write_text("import ray\nray.get(1)\n\n@ray.remote\ndef f(): ...\n")

    shown, written = port("tasks.py"), port("tasks.py", "--write")

    assert (shown.exit_code, written.exit_code) == (1, 1)
    assert "tasks.py:4:2: ray.remote [actors] there are no tasks and actors" in shown.output
    assert "tasks.py:5:2: ray.remote [actors]" in written.output  # where it is now
    assert "1 left to do by hand" in shown.output


def test_a_file_that_is_not_python_is_named_and_the_others_go_on(folder: Path) -> None:
    (folder / "broken.py").write_text("import ray\nx = (\n]\n")
    (folder / "latin.py").write_bytes(b"import ray\n# caf\xe9\n")

    result = port("--write", ".")

    assert result.exit_code == 1
    assert "broken.py:3:1: syntax error [unreadable]" in result.output
    assert "latin.py:1:1: syntax error [unreadable] " in result.output
    assert (folder / "app.py").read_text() == MOVED
    assert (folder / "latin.py").read_bytes() == b"import ray\n# caf\xe9\n"


def test_environments_caches_and_hidden_folders_are_left_out(folder: Path) -> None:
    for name in ("env/lib", ".git", "__pycache__", "site-packages/x", "inside"):
        (folder / name).mkdir(parents=True)
        (folder / name / "a.py").write_text(PROGRAM)
    (folder / "env" / "pyvenv.cfg").touch()

    port("--write", folder)

    assert [path.parent.name for path in sorted(folder.rglob("a.py")) if path.read_text() == MOVED] == ["inside"]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbffrom ray import serve  # \xc3\xa9\n",
        b"# -*- coding: latin-1 -*-\nfrom ray import serve  # \xe9\n",
        b"from ray import serve  # \xc3\xa9\r\n\r\nx = 1\r\n",
        b"from ray import serve\r\nx = 1\ny = 2\r\n",
        b"\tfrom".replace(b"\tfrom", b"if x:\n\tfrom ray import serve"),
    ],
)
def test_encoding_line_ends_and_byte_order_mark_stay(folder: Path, content: bytes) -> None:
    (folder / "app.py").write_bytes(content)

    assert port("--write", "app.py").exit_code == 0
    assert (folder / "app.py").read_bytes() == content.replace(b"from ray import serve", b"import qserve as serve")


def test_mode_and_links_stay(folder: Path) -> None:
    (folder / "app.py").chmod(0o751)
    (folder / "link.py").symlink_to("app.py")

    assert port("--write", folder / "link.py").exit_code == 0

    assert (folder / "link.py").is_symlink()
    assert (folder / "app.py").read_text() == MOVED
    assert (folder / "app.py").stat().st_mode & 0o777 == 0o751


def test_if_one_file_cannot_be_prepared_nothing_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "other.py").write_text(PROGRAM)
    copied = files.shutil.copystat

    def fail(source: Path, target: str) -> None:
        if Path(source).name == "other.py":
            raise PermissionError(13, "Permission denied")
        copied(source, target)

    monkeypatch.setattr("qserve.porting.files.shutil.copystat", fail)
    result = port("--write", ".")

    assert result.exit_code == 2
    assert "other.py cannot be written: Permission denied; nothing was written" in result.output
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"app.py": PROGRAM, "other.py": PROGRAM}


def test_if_a_rename_fails_the_report_says_what_was_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "other.py").write_text(PROGRAM)
    replace = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if Path(target).name == "other.py":
            raise PermissionError(13, "Permission denied")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    result = port("--write", ".")

    assert result.exit_code == 2
    assert "other.py cannot be written: Permission denied; written before it: app.py" in result.output
    assert sorted(path.name for path in folder.iterdir()) == ["app.py", "other.py"]


def test_config_files_need_no_change_and_what_has_no_effect_is_listed(folder: Path) -> None:
    (folder / "good.yaml").write_text("http_options: {port: 8001}\napplications:\n- {name: a, import_path: 'a:b'}\n")
    (folder / "compose.yaml").write_text("services: {}\n")

    assert "; 1 config file needs no change; nothing is left" in port(folder).output

    (folder / "ray.yaml").write_text(
        "grpc_options: {port: 9000}\n"
        "applications:\n"
        "- name: a\n"
        "  import_path: a:b\n"
        "  runtime_env: {pip: [emoji], env_vars: {A: b}}\n"
        "  deployments:\n"
        "  - name: M\n"
        "    placement_group_strategy: PACK\n"
    )
    (folder / "wrong.yaml").write_text("applications:\n- {name: a, import_path: 'a:b', imports: 1}\n")
    result = port(".")

    assert result.exit_code == 1
    assert "ray.yaml:1:1: grpc_options [config] there is no gRPC" in result.output
    assert "ray.yaml:5:17: applications[0].runtime_env.pip [config] replicas use the packages" in result.output
    assert "ray.yaml:8:5: applications[0].deployments[0].placement_group_strategy [config]" in result.output
    assert "wrong.yaml:2:33: applications[0].imports [config] unknown key 'imports'" in result.output
    assert "; 1 config file needs no change; 4 left to do by hand" in result.output


def test_a_path_that_is_not_there_is_refused(folder: Path) -> None:
    result = port("nowhere")

    assert result.exit_code == 2
    assert "nowhere does not exist" in result.output


def test_without_libcst_the_error_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libcst", None)
    result = port("app.py")

    assert result.exit_code == 2
    assert "pip install 'qserve-celery[port]'" in result.output
