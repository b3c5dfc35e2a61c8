"""What handles are told beside the method: where the end of a call is sent, and whether it is traced."""

from __future__ import annotations

import logging

import pytest

import qserve
from qserve.calls.handles import DeploymentHandle
from qserve.wire.codec import Codec

HANDLE = DeploymentHandle("Model")
URL = "https://example.com/done"


@pytest.mark.parametrize("url", ["nonsense", "ftp://example.com", "https://me@example.com/", "https://a b", "x" * 3000])
def test_a_webhook_to_what_is_not_a_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="^webhook='"):
        HANDLE.options(webhook=url)


def test_a_webhook_for_a_stream_is_refused() -> None:
    with pytest.raises(ValueError, match="stream=True asks for items"):
        HANDLE.options(webhook=URL).options(stream=True)
    assert HANDLE.options(webhook=URL).options(webhook="", stream=True) == HANDLE.options(stream=True)


def test_a_handle_keeps_its_options_where_it_is_sent() -> None:
    handle = HANDLE.options(webhook=URL, trace=True)

    assert handle != HANDLE
    assert Codec().decode(Codec().encode(handle.predict)) == handle.predict


def test_local_mode_says_once_that_it_sends_and_keeps_nothing(caplog: pytest.LogCaptureFixture) -> None:
    @qserve.deployment
    def double(number: int) -> int:
        return 2 * number

    handle = qserve.run(double.bind(), local=True).options(webhook=URL, trace=True, use_new_handle_api=True)
    with caplog.at_level(logging.WARNING):
        assert [handle.remote(number).result() for number in (1, 2)] == [2, 4]

    said = [record.getMessage() for record in caplog.records]
    assert [sum(f"{option} (there is no" in line for line in said) for option in ("webhook", "trace")] == [1, 1]
    qserve.shutdown()
