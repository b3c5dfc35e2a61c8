"""What an HTTP request carries to user code: chosen headers, the tenant and W3C Trace Context, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import FakePlane, plain_app
from qserve_gateway.application import create_app

from qserve.base.carried import Carried
from qserve.base.settings import Settings
from qserve.exceptions import QserveException

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def send(headers: dict[str, str] | list[tuple[str, str]], **env: str) -> tuple[Any, Carried | None]:
    """Send a request to a gateway with these variables, and return the answer and what the call carries."""
    plane = FakePlane(plain_app())
    settings = Settings.from_env({f"QSERVE_{name}": value for name, value in env.items()})
    answer = create_app(settings, plane, watch=False).test_client().get("/", headers=headers)  # type: ignore[arg-type]
    return answer, plane.calls[0].carried if plane.calls else None


def carried(headers: dict[str, str] | list[tuple[str, str]], **env: str) -> Carried | None:
    answer, found = send(headers, **env)
    assert answer.status_code == 200
    return found


def test_without_a_setting_and_a_trace_a_request_carries_nothing() -> None:
    assert carried({"X-Tenant": "acme", "Authorization": "Bearer secret", "tracestate": "a=1"}) is None


def test_only_the_headers_that_are_named_are_carried() -> None:
    sent = {"X-REGION": "eu", "X-Tenant": "acme", "Authorization": "Bearer secret", "Cookie": "secret", "X-Empty": ""}
    found = carried(sent, FORWARD_HEADERS=" x-Region, x-empty,x-absent,content-type ", TENANT_HEADER="X-Tenant")
    assert found == Carried(tenant="acme", headers={"x-region": "eu"})
    assert carried({"X-Other": "1"}, FORWARD_HEADERS="x-region", TENANT_HEADER="x-tenant") is None


def test_the_token_of_the_gateway_is_not_carried_even_if_its_header_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSERVE_API_TOKEN", "secret")
    assert carried({"Authorization": "Bearer secret"}, FORWARD_HEADERS="authorization") is None


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ({"traceparent": PARENT, "tracestate": "a=1, b=2"}, Carried(PARENT, "a=1,b=2")),
        ({"traceparent": PARENT, "tracestate": "A=1"}, Carried(PARENT)),
        ({"traceparent": PARENT, "tracestate": "a=" + "x" * 10_240}, Carried(PARENT)),
        ({"traceparent": PARENT[:-1], "tracestate": "a=1"}, None),
        ({"traceparent": "0" * 10_240}, None),
        ([("traceparent", PARENT), ("traceparent", PARENT)], None),
    ],
)
def test_a_trace_context_is_carried_if_it_is_well_formed(sent: Any, read: Carried | None) -> None:
    assert carried(sent) == read


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"X-Region": "e" * 1025}, 431),
        ({"X-Tenant": "e" * 1025}, 431),
        ({f"X-{number}": "e" * 1000 for number in range(5)}, 431),
        ({"X-Region": "e\x01u"}, 400),
        ({"X-Tenant": "e\x7fu"}, 400),
    ],
)
def test_a_header_that_cannot_be_carried_is_refused_and_nothing_runs(sent: dict[str, str], status: int) -> None:
    answer, found = send(sent, FORWARD_HEADERS="x-region,x-0,x-1,x-2,x-3,x-4", TENANT_HEADER="x-tenant")
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (status, "invalid_header")
    assert found is None


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FORWARD_HEADERS", "x region"),
        ("FORWARD_HEADERS", "x-region;x-tenant"),
        ("FORWARD_HEADERS", "x_region"),
        ("FORWARD_HEADERS", ",".join(f"x-{number}" for number in range(17))),
        ("TENANT_HEADER", "x-tenant,x-other"),
        ("TENANT_HEADER", "tenant:"),
    ],
)
def test_a_setting_that_names_no_headers_is_refused(variable: str, value: str) -> None:
    with pytest.raises(QserveException, match=f"QSERVE_{variable}"):
        Settings.from_env({f"QSERVE_{variable}": value})


@pytest.mark.parametrize(
    ("setting", "header", "is_timed"),
    [("off", "1", False), ("asked", "1", True), ("asked", "0", False), ("asked", None, False), ("on", None, True)],
)
def test_a_request_is_timed_if_the_setting_says_so_or_lets_it_ask(
    setting: str, header: str | None, is_timed: bool
) -> None:
    found = carried({} if header is None else {"X-Server-Timing": header}, SERVER_TIMING=setting)
    assert found == (Carried(is_timed=True) if is_timed else None)


def test_an_idempotency_key_of_one_tenant_is_not_that_of_another() -> None:
    def fingerprint(tenant: str, **env: str) -> str:
        plane = FakePlane(plain_app())
        settings = Settings.from_env(env)
        sent = {"Idempotency-Key": "key", "X-Tenant": tenant}
        create_app(settings, plane, watch=False).test_client().get("/", headers=sent)  # type: ignore[arg-type]
        return plane.calls[0].fingerprint

    named = {"QSERVE_TENANT_HEADER": "x-tenant"}
    assert fingerprint("a", **named) == fingerprint("a", **named) != fingerprint("b", **named)
    assert fingerprint("a") == fingerprint("b")
