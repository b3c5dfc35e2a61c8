"""Settings: read from the environment, checked, and handed on to child processes."""

from __future__ import annotations

import base64
import os
import secrets
import subprocess
import sys

import pytest
from hypothesis import example, given, reject
from hypothesis import strategies as st

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
        "QSERVE_SECRET_KEY": "hidden-key-of-this-test",
        "QSERVE_ACCEPTED_KEYS": "hidden-old-key-of-this-test",
    }
    settings = Settings.from_env(given_env)

    assert Settings.from_env(settings.to_env()) == settings
    assert (settings.log_level, settings.log_format) == ("debug", "json")
    assert "hidden" not in f"{settings!r} {settings.keyring!r}"


def test_every_setting_has_a_variable() -> None:
    settings = Settings(
        broker_url="unix:///broker.sock",
        broker_embedded=True,
        broker_maxmemory=1 << 30,
        namespace="other",
        secret_key=b"the-key-of-this-test",
        accepted_keys=(b"the-old-key-of-this-test", b"the-older-key-of-it"),
        request_timeout_s=1.5,
        result_ttl_s=2.5,
        durability="replica",
        show_errors=True,
        api_page=False,
        log_tail=False,
        log_level="error",
        log_format="json",
        code_version="v2",
        lease_s=3.5,
        stall_limit_s=4.5,
        start_timeout_s=5.5,
        payloads=("memory", "s3://bucket/prefix"),
        payload_threshold=1 << 17,
        max_value_bytes=1 << 28,
        shm_limit=1 << 27,
        body_memory=1 << 26,
        max_body_bytes=1 << 25,
        max_json_bytes=1 << 24,
        forward_headers=("x-region", "accept-language"),
        tenant_header="x-tenant",
        websocket_s=60.0,
        websocket_idle_s=30.0,
        websocket_ping_s=5.0,
        websocket_message_bytes=1 << 20,
        metrics=False,
        metrics_prefix="ray_",
        server_timing="asked",
        tracing="on",
        tracing_exporter="shop.spans:exporter",
        tracing_sampling_ratio=0.5,
        trace_sample=0.25,
    )

    assert Settings.from_env(settings.to_env()) == settings
    assert not [name for name, value in vars(settings).items() if value == getattr(Settings(), name)]


def test_an_option_overrides_the_environment_which_overrides_the_default() -> None:
    env = {"QSERVE_NAMESPACE": "of-env", "QSERVE_LEASE_S": "3", "QSERVE_LOG_LEVEL": "", "REDIS_URL": "redis://one"}

    settings = Settings.from_env(env, namespace="of-option", lease_s=None)

    assert (settings.namespace, settings.lease_s, settings.log_level) == ("of-option", 3.0, "info")
    assert settings.broker_url == "redis://one"
    assert Settings.from_env({**env, "QSERVE_BROKER_URL": "redis://two"}).broker_url == "redis://two"


@pytest.mark.parametrize(
    ("text", "size"),
    [("512mb", 512 << 20), ("1G", 10**9), ("2gb", 2 << 30), ("20000k", 20_000_000), ("16777216", 1 << 24)],
)
def test_the_memory_of_the_embedded_broker_is_written_as_brokers_do(text: str, size: int) -> None:
    assert Settings.from_env({"QSERVE_BROKER_MAXMEMORY": text}).broker_maxmemory == size


@pytest.mark.parametrize(
    "text", ["0", "-1gb", "15mb", "half", "1_000mb", " 512mb", "512 mb", "25%", "1.5gb", "999999999gb"]
)
def test_a_memory_that_is_not_a_size_or_too_small_is_refused(text: str) -> None:
    with pytest.raises(
        QserveException, match="QSERVE_BROKER_MAXMEMORY=.*16mb or more, and less than a petabyte, such as"
    ):
        Settings.from_env({"QSERVE_BROKER_MAXMEMORY": text})


@pytest.mark.parametrize("name", ["WEBSOCKET_MESSAGE_BYTES", "MAX_BODY_BYTES", "MAX_JSON_BYTES"])
@pytest.mark.parametrize("text", ["0", "-1", "half", "1.5mb", "999999999gb"])
def test_a_longest_message_or_body_that_is_not_a_size_is_refused(name: str, text: str) -> None:
    with pytest.raises(QserveException, match=f"QSERVE_{name}=.* must be a size, such as"):
        Settings.from_env({f"QSERVE_{name}": text})


def test_the_longest_body_is_a_size_in_binary_units_too() -> None:
    assert Settings.from_env({"QSERVE_MAX_BODY_BYTES": "100MiB"}).max_body_bytes == 100 << 20


def test_the_stores_of_large_values_are_read_in_their_order() -> None:
    text = " memory, s3://bucket/prefix ,broker,memory"

    assert Settings.from_env({"QSERVE_PAYLOADS": text}).payloads == ("memory", "s3://bucket/prefix", "broker")


@pytest.mark.parametrize("text", ["disk", "/mnt/shared", "memory,s3:bucket", "memory broker"])
def test_a_store_of_large_values_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(QserveException, match="QSERVE_PAYLOADS=.* is neither memory, nor broker, nor the URL"):
        Settings.from_env({"QSERVE_PAYLOADS": text})


@pytest.mark.parametrize("value", ["0", "-1", "soon", "inf", "nan", "1e-9", "31536001", "1e300", "60s"])
@pytest.mark.parametrize("name", ["LEASE_S", "REQUEST_TIMEOUT_S", "RESULT_TTL_S", "START_TIMEOUT_S", "STALL_LIMIT_S"])
def test_a_duration_that_is_not_a_number_of_seconds_or_out_of_range_is_refused(name: str, value: str) -> None:
    with pytest.raises(
        QserveException, match=rf"QSERVE_{name}=.* a number of seconds from 0.001 to 31536000 \(a year\)"
    ):
        Settings.from_env({f"QSERVE_{name}": value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SHOW_ERRORS", "banana"),
        ("SHOW_ERRORS", "2"),
        ("NAMESPACE", "{a}"),
        ("NAMESPACE", "a b"),
        ("NAMESPACE", "a*"),
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
        ("DURABILITY", "two"),
    ],
)
def test_a_choice_that_is_none_of_those_there_are_is_refused(name: str, value: str) -> None:
    with pytest.raises(QserveException, match=f"QSERVE_{name}=.* must "):
        Settings.from_env({f"QSERVE_{name}": value})


@pytest.mark.parametrize(("text", "shown"), [("1", True), ("on", True), ("TRUE", True), ("0", False), ("no", False)])
def test_errors_are_shown_when_that_is_said_in_a_usual_way(text: str, shown: bool) -> None:
    assert Settings.from_env({"QSERVE_SHOW_ERRORS": text}).show_errors is shown


def test_a_command_without_a_broker_says_how_to_set_one() -> None:
    with pytest.raises(QserveException, match="--broker URL or set QSERVE_BROKER_URL"):
        _ = Settings().named_broker


# -- keys ------------------------------------------------------------------------------------------

GOOD = "the-good-key-of-these-tests"


@pytest.mark.parametrize("variable", ["QSERVE_SECRET_KEY", "QSERVE_ACCEPTED_KEYS"])
@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("k", "too short: it has 1 bytes, and needs 16"),
        ("fifteen-bytes!!", "too short: it has 15 bytes"),
        ("a" * 64, "too weak"),
        ("ab" * 20, "too weak"),
        ("passwordpassword", "too weak"),
        ("0123456789abcdef", "too weak"),
        ("12345678901234567890", "too weak"),
        ("a key with blanks in it", "a blank"),
        ("a-key\u00a0with-another-blank", "a blank"),
        ("a-key-with-an-escape\x1b", "a control character"),
        ("not-utf-8-\udcff\udcfe-as-it-is", "not UTF-8"),
    ],
)
def test_a_key_that_is_not_good_is_refused_with_the_command_that_makes_one(variable: str, key: str, why: str) -> None:
    with pytest.raises(QserveException) as told:
        Settings.from_env({"QSERVE_SECRET_KEY": GOOD, variable: key})

    text = str(told.value)
    assert text.startswith(variable)
    assert why in text
    assert "openssl rand -hex 32" in text
    assert key not in text or len(key) == 1


def test_a_key_with_a_comma_is_refused_because_a_list_cannot_hold_it() -> None:
    with pytest.raises(QserveException, match="QSERVE_SECRET_KEY contains a comma"):
        Settings.from_env({"QSERVE_SECRET_KEY": "a-key,with-a-comma-in-it"})


@given(st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=16, max_size=40))
@example("\u043a\u043b\u044e\u0447-\u043e\u0442-\u0434\u0432\u0435\u0440\u0438")
@example("key-with-comma,-key-with-comma")
@example(" key-in-blanks-key-in-blanks ")
@example(secrets.token_hex(32))
@example(base64.b64encode(os.urandom(32)).decode())
def test_every_key_that_is_accepted_can_be_rotated(text: str) -> None:
    try:
        settings = Settings.from_env({"QSERVE_SECRET_KEY": text})
    except QserveException:
        reject()
    before = Settings.from_env({"QSERVE_SECRET_KEY": GOOD, "QSERVE_ACCEPTED_KEYS": text})
    after = Settings.from_env({"QSERVE_SECRET_KEY": text, "QSERVE_ACCEPTED_KEYS": f" {GOOD} , {text},"})

    assert settings.secret_key == text.encode()
    assert before.accepted_keys == (settings.secret_key,)
    assert after.accepted_keys == (GOOD.encode(), settings.secret_key)
    assert Settings.from_env(after.to_env()) == after


def test_a_key_that_a_program_passes_is_checked_as_well() -> None:
    for keys in ({"secret_key": b"key"}, {"accepted_keys": (b"key",)}, {"secret_key": b""}):
        with pytest.raises(QserveException, match="openssl"):
            Settings(**keys)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["QSERVE_NAMESPACE", "QSERVE_BROKER_URL", "REDIS_URL", "QSERVE_DURABILITY"])
def test_a_setting_that_is_not_utf_8_is_refused_by_name(name: str) -> None:
    with pytest.raises(QserveException, match="QSERVE_") as told:
        Settings.from_env({name: "redis://:hidden\udcff@broker"})
    str(told.value).encode()
    assert "hidden" not in str(told.value) or name == "QSERVE_DURABILITY"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("qserve", "run", "a:b"), b"k"),
        (("qserve", "doctor"), b"\xff" * 20),
        (("qserve_workers",), b"k"),
        (("qserve_gateway",), b"k"),
        (("celery", "-A", "qserve_workers.app", "inspect", "ping"), b"\xff" * 20),
    ],
)
def test_every_command_names_a_bad_key_on_one_line(command: tuple[str, ...], key: bytes) -> None:
    env = {os.fsencode(name): os.fsencode(value) for name, value in os.environ.items()}
    env |= {b"QSERVE_SECRET_KEY": key, b"QSERVE_BROKER_URL": b"redis://127.0.0.1:1/0"}

    ended = subprocess.run([sys.executable, "-m", *command], env=env, capture_output=True, timeout=60, check=False)

    assert ended.returncode == 1
    assert ended.stderr.startswith(b"Error: QSERVE_SECRET_KEY is ")
    assert ended.stderr.count(b"\n") == 1
