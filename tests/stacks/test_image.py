"""The Dockerfile: what it installs for which folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from applications import plan_for

from qserve.exceptions import UsageProblem
from qserve.stacks.files import keep_out, make_secrets
from qserve.stacks.image import CONSTRAINTS, Image, constraints, dockerfile, requirements_of


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"requirements.txt": "emoji\n", "pyproject.toml": "[project]"},
            (("requirements.txt",), "-r requirements.txt"),
        ),
        (
            {"requirements.txt": "-r req/base.txt\n-c https://host/limits.txt\n", "req/base.txt": "-r base.txt\nemoji"},
            (("requirements.txt", "req/base.txt"), "-r requirements.txt"),
        ),
        ({"requirements.txt": "emoji\n-e ./own\n"}, ((), "-r requirements.txt")),
        ({"pyproject.toml": "[project]\ndependencies = ['emoji>=2']"}, (("pyproject.toml",), "-r needed.txt")),
        ({"pyproject.toml": "[project]\nname = 'shop'"}, ((), "")),
        ({"pyproject.toml": "[project]\ndynamic = ['dependencies']"}, ((), ".")),
        ({"pyproject.toml": "[tool.poetry]"}, ((), ".")),
        ({}, ((), "")),
    ],
)
def test_what_an_application_needs_is_read_from_its_folder(
    files: dict[str, str], expected: tuple[tuple[str, ...], str], tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    assert requirements_of(tmp_path) == expected


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [("pyproject.toml", "[project", "pyproject.toml"), ("requirements.txt", "-r missing.txt", "missing.txt")],
)
def test_a_file_that_cannot_be_read_is_named(name: str, text: str, named: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)

    with pytest.raises(UsageProblem, match=f"^{named} cannot be read: "):
        requirements_of(tmp_path)


def test_the_gateway_s_image_has_none_of_the_user_s_code() -> None:
    text = dockerfile(
        plan_for("graph"), Image("3.12", "qserve-celery==1.0", ("requirements.txt",), "-r requirements.txt")
    )

    gateway = text[text.index("AS gateway") : text.index("AS worker")]
    assert "COPY . " not in gateway
    assert "--from=packages" not in gateway
    assert "FROM python:3.12-slim" in text
    assert "qserve-celery==1.0" in text


def test_both_images_have_the_same_versions_of_libraries_whenever_they_are_built() -> None:
    plan = plan_for("graph")
    text = dockerfile(plan, Image("3.12", "qserve-celery==1.0"))

    (install,) = [line for line in text.splitlines() if "qserve-celery==1.0" in line]
    assert f"-c /src/{CONSTRAINTS} " in install
    assert f"COPY {CONSTRAINTS} /src/\n" in text
    first, *pins = constraints(plan).splitlines()
    assert first.startswith("# Written by `qserve ")
    assert any(pin.startswith("celery==") for pin in pins)


def test_secrets_are_made_once_and_only_the_user_enters_their_folder(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"

    assert make_secrets(folder, ["key", "password"]) == ["key", "password"]
    before = (folder / "key").read_text()

    assert make_secrets(folder, ["key", "password"]) == []
    assert (folder / "key").read_text() == before
    assert before != (folder / "password").read_text()
    assert [path.stat().st_mode & 0o777 for path in (folder, folder / "key")] == [0o700, 0o644]


def test_what_is_ignored_is_added_to_what_the_user_ignores(tmp_path: Path) -> None:
    path = tmp_path / ".gitignore"
    path.write_text("data\nsecrets")

    keep_out(path, ["secrets/", ".qserve/"])
    keep_out(path, ["secrets/", ".qserve/"])

    assert path.read_text() == "data\nsecrets\n.qserve/\n"
