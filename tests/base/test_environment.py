"""Settings whose values are in files, as secrets of containers are."""

from __future__ import annotations

from pathlib import Path

import pytest

from qserve.base.environment import read_environment, with_password
from qserve.base.settings import Settings
from qserve.exceptions import QserveException


def test_the_value_of_a_setting_may_be_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("the-key-of-this-test\n")
    (tmp_path / "password").write_text("pass/word\r\n")
    env = {
        "QSERVE_SECRET_KEY_FILE": f"{tmp_path}/key",
        "QSERVE_BROKER_PASSWORD_FILE": f"{tmp_path}/password",
        "QSERVE_BROKER_URL": "redis://broker:6379/0",
    }

    settings = Settings.from_env(env)

    assert settings.secret_key == b"the-key-of-this-test"
    assert settings.broker_url == "redis://:pass%2Fword@broker:6379/0"
    assert Settings.from_env(env | settings.to_env()) == settings  # a child has both


def test_a_variable_wins_over_a_file_and_an_empty_one_does_not() -> None:
    env = {"QSERVE_API_TOKEN": "mine", "QSERVE_API_TOKEN_FILE": "/nowhere", "QSERVE_NAMESPACE_FILE": "", "A_FILE": "/b"}

    assert read_environment(env) == env


@pytest.mark.parametrize("content", [None, b"x" * 70_000, b"a\0b"], ids=["missing", "large", "binary"])
def test_a_file_that_is_no_text_is_an_error_that_names_the_variable(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(QserveException, match=r"QSERVE_SECRET_KEY_FILE='.*/key': the file "):
        Settings.from_env({"QSERVE_SECRET_KEY_FILE": str(path)})


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://broker/0", "redis://:p%40@broker/0"),
        ("rediss://worker@broker:6380", "rediss://worker:p%40@broker:6380"),
        ("sentinel://a:1,b:2/main/0?db=1", "sentinel://:p%40@a:1,b:2/main/0?db=1"),
        ("redis://:own@broker", "redis://:own@broker"),
        ("redis://broker?password=own", "redis://broker?password=own"),
        ("unix:///broker.sock", "unix:///broker.sock"),
        ("broker:6379", "broker:6379"),
    ],
)
def test_a_password_is_added_where_an_address_has_none(url: str, expected: str) -> None:
    assert with_password(url, "p@") == expected
