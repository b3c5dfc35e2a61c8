"""Settings: read from the environment, checked, and handed on to child processes."""

from __future__ import annotations

import pytest

from qserve.base.settings import Settings
from qserve.exceptions import QserveException


@pytest.mark.parametrize(
    ("name", "value", "known"), [("QSERVE_LOG_FORMAT", "xml", "text, json"), ("QSERVE_LOG_LEVEL", "loud", "debug")]
)
def test_a_setting_that_is_none_is_an_error_that_names_the_choices(name: str, value: str, known: str) -> None:
    with pytest.raises(QserveException, match=f"{name}='{value}' must be one of .*{known}"):
        Settings.from_env({name: value})


def test_the_settings_reach_child_processes_and_hide_what_is_secret() -> None:
    given_env = {
        "QSERVE_LOG_LEVEL": "DEBUG",
        "QSERVE_LOG_FORMAT": "json",
        "QSERVE_BROKER_URL": "redis://:hidden-password@broker:6379/0",
        "QSERVE_SECRET_KEY": "hidden-key",
        "QSERVE_ACCEPTED_KEYS": "hidden-old-key",
    }
    settings = Settings.from_env(given_env)

    assert Settings.from_env(settings.to_env()) == settings
    assert (settings.log_level, settings.log_format) == ("debug", "json")
    assert "hidden" not in f"{settings!r} {settings.keyring!r}"


def test_every_setting_has_a_variable() -> None:
    settings = Settings(
        broker_url="unix:///broker.sock",
        namespace="other",
        secret_key=b"key",
        accepted_keys=(b"old", b"older"),
        request_timeout_s=1.5,
        result_ttl_s=2.5,
        durability="replica",
        show_errors=True,
        log_level="error",
        log_format="json",
        lease_s=3.5,
        stall_limit_s=4.5,
        start_timeout_s=5.5,
    )

    assert Settings.from_env(settings.to_env()) == settings
    assert not [name for name, value in vars(settings).items() if value == getattr(Settings(), name)]


def test_an_option_overrides_the_environment_which_overrides_the_default() -> None:
    env = {"QSERVE_NAMESPACE": "of-env", "QSERVE_LEASE_S": "3", "QSERVE_LOG_LEVEL": "", "REDIS_URL": "redis://one"}

    settings = Settings.from_env(env, namespace="of-option", lease_s=None)

    assert (settings.namespace, settings.lease_s, settings.log_level) == ("of-option", 3.0, "info")
    assert settings.broker_url == "redis://one"
    assert Settings.from_env({**env, "QSERVE_BROKER_URL": "redis://two"}).broker_url == "redis://two"


@pytest.mark.parametrize("value", ["0", "-1", "soon", "inf", "nan"])
def test_a_duration_that_is_not_a_number_of_seconds_is_refused(value: str) -> None:
    with pytest.raises(QserveException, match="QSERVE_LEASE_S=.* must be a number of seconds above 0"):
        Settings.from_env({"QSERVE_LEASE_S": value})


def test_a_command_without_a_broker_says_how_to_set_one() -> None:
    with pytest.raises(QserveException, match="--broker URL or set QSERVE_BROKER_URL"):
        _ = Settings().named_broker
