"""``qserve init``: what it writes, what it refuses, and that it leaves nothing when it fails."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from packaging.requirements import Requirement

from qserve.__main__ import main

WRITTEN = {"hello.py", "test_hello.py", "pyproject.toml", "README.md", ".gitignore"}
Qserve = Callable[..., Result]


@pytest.fixture
def qserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Qserve:
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(main, [*words])


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_it_names_what_it_has_written_and_what_to_type_next(qserve: Qserve, tmp_path: Path) -> None:
    result = qserve("init", "my/shop")

    assert result.output == (
        "wrote my/shop/hello.py, my/shop/test_hello.py, my/shop/pyproject.toml, my/shop/README.md, my/shop/.gitignore\n"
        "\nNow type:\n  cd my/shop && pip install -e '.[dev]'\n  pytest\n  qserve run hello:app --reload\n"
    )
    assert files(tmp_path / "my" / "shop") == WRITTEN


def test_the_project_has_the_name_of_its_folder_and_needs_this_qserve(qserve: Qserve, tmp_path: Path) -> None:
    qserve("init", "shop")

    project = tomllib.loads((tmp_path / "shop" / "pyproject.toml").read_text())["project"]
    assert project["name"] == "shop"
    (needed,) = map(Requirement, project["dependencies"])
    assert needed.name == "qserve-celery"
    assert {Requirement(one).name for one in project["optional-dependencies"]["dev"]} == {"mypy", "pytest"}


def test_a_folder_may_have_other_files(qserve: Qserve, tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("mine")

    assert qserve("init", "--name", "shop").exit_code == 0
    assert files(tmp_path) == {*WRITTEN, "LICENSE"}


@pytest.mark.slow
def test_the_test_that_it_writes_passes(qserve: Qserve, tmp_path: Path) -> None:
    qserve("init", "shop")

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cloudcoil", "-p", "no:valkey", "-p", "no:schemathesis"],
        cwd=tmp_path / "shop", capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


@pytest.mark.parametrize("is_link", [False, True])
def test_it_replaces_no_file_and_names_those_in_the_way(qserve: Qserve, tmp_path: Path, is_link: bool) -> None:
    (tmp_path / "hello.py").write_text("mine")
    readme = tmp_path / "README.md"
    if is_link:
        readme.symlink_to("nowhere")
    else:
        readme.mkdir()

    result = qserve("init", "--name", "shop")

    assert (result.exit_code, files(tmp_path)) == (2, {"hello.py", "README.md"})
    assert (tmp_path / "hello.py").read_text() == "mine"
    assert "these exist already, and qserve init replaces nothing: hello.py, README.md. Choose" in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("my shop",), "'my shop' cannot be the name of a project, which consists of letters, digits, '-', '_' and"),
        (("my shop",), "pass --name my-shop"),
        (("-", "--name", ""), "'' cannot be the name of a project"),
        (("/",), "pass --name hello"),
        (("kürbis",), "pass --name k-rbis"),
        (("shop", "--name", "a\nb"), "pass --name a-b"),
        (("PyTest",), "'PyTest' is the name of a package that the project needs: pass --name my-PyTest"),
        (("shop", "--name", "qserve_celery"), "'qserve_celery' is the name of a package that the project needs"),
        (("file",), "'file' is a file"),
    ],
)
def test_a_name_that_cannot_be_is_refused_with_one_that_can(
    qserve: Qserve, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    (tmp_path / "file").touch()

    result = qserve("init", *words)

    assert (result.exit_code, files(tmp_path)) == (2, {"file"})
    assert message in result.output


@pytest.mark.parametrize("is_new", [True, False])
def test_when_it_fails_everything_is_as_it_was(
    qserve: Qserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_new: bool
) -> None:
    folder = tmp_path / "a" / "shop"
    if not is_new:
        folder.mkdir(parents=True)
        (folder / "notes").write_text("mine")
    monkeypatch.setenv("QSERVE_START_TIMEOUT_S", "0.000001")  # so hello.py cannot be loaded

    result = qserve("init", "a/shop", "--compose")

    assert result.exit_code == 1
    assert files(tmp_path) == (set() if is_new else {"a"})
    assert is_new or files(folder) == {"notes"}


def test_a_folder_that_cannot_be_written_is_named(qserve: Qserve, tmp_path: Path) -> None:
    result = qserve("init", "/proc/shop")

    assert (result.exit_code, result.output) == (
        1,
        "Error: /proc/shop cannot be written: No such file or directory\n",
    )


@pytest.mark.slow
def test_with_compose_it_writes_the_stack_that_qserve_compose_writes(
    qserve: Qserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = qserve("init", "shop", "--compose")

    assert result.exit_code == 0, result.output
    assert (
        "docker-compose.yml, Dockerfile, qserve-constraints.txt: wrote 3\nstart it with: docker compose up -d --build\n"
        in result.output
    )
    monkeypatch.chdir(tmp_path / "shop")
    assert (
        qserve("compose", "hello:app", "--check").output
        == "docker-compose.yml, Dockerfile, qserve-constraints.txt: up to date\n"
    )
    assert Path("docker-compose.yml").read_text().startswith("# Written by `qserve compose hello:app`")
