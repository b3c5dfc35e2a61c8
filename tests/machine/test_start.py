"""Where ``qserve.start`` starts the processes of this machine, from all that it may be told."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

import qserve as serve
from qserve import api
from qserve.config import HTTPOptions
from qserve.machine.local_cluster import LocalCluster


def test_http_is_on_port_8000_of_this_machine_unless_said_otherwise() -> None:
    address = inspect.signature(LocalCluster).parameters

    assert (address["host"].default, address["port"].default) == ("127.0.0.1", 8000)


@pytest.mark.parametrize(
    ("args", "options", "address"),
    [
        ((), {}, (None, None)),
        ((), {"detached": True}, (None, None)),
        ((), {"detached": True, "http_options": {"host": "0.0.0.0", "port": 8001}}, ("0.0.0.0", 8001)),
        ((True, {"port": 8001, "location": "HeadOnly"}), {}, (None, 8001)),
        ((), {"http_options": SimpleNamespace(host="0.0.0.0", port=8001), "proxy_location": None}, ("0.0.0.0", 8001)),
        ((), {"http_options": {"port": 8001}, "port": 8002, "dedicated_cpu": False}, (None, 8002)),
        ((), {"http_options": {"port": "8001"}}, (None, 8001)),
        ((), {"http_options": HTTPOptions(host="0.0.0.0")}, ("0.0.0.0", None)),
        ((), {"http_host": "0.0.0.0", "http_port": 8001}, ("0.0.0.0", 8001)),
    ],
)
def test_start_takes_the_options_of_ray_serve(
    monkeypatch: pytest.MonkeyPatch, args: tuple[Any, ...], options: dict[str, Any], address: tuple[Any, Any]
) -> None:
    asked: list[tuple[Any, Any]] = []
    monkeypatch.setattr(api, "_cluster", None)

    def ensure_cluster(host: Any, port: Any, *others: Any) -> SimpleNamespace:
        asked.append((host, port))
        return SimpleNamespace()

    monkeypatch.setattr(api, "_ensure_cluster", ensure_cluster)
    monkeypatch.setattr(api, "_wait_for_gateways", lambda cluster, change: None)

    serve.start(*args, **options)

    assert asked == [address]


def test_middlewares_become_the_gateway_s_own_rules(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(api, "_cluster", None)
    monkeypatch.setattr(api, "_ensure_cluster", lambda *args: asked.append(args[-1]))
    monkeypatch.setattr(api, "_wait_for_gateways", lambda cluster, change: None)
    cors = Middleware(CORSMiddleware, allow_origins=["https://a.example", "https://b.example"], max_age=0)
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["shop.example", "localhost"])

    serve.start(http_options={"middlewares": [cors, hosts]})
    serve.start(http_middlewares=[cors, hosts])
    serve.start(http_options={"middlewares": [Middleware(TrustedHostMiddleware, allowed_hosts=["*"])]})

    assert not caplog.text
    assert asked.pop() == {}
    for variables in asked:
        assert variables == {
            "QSERVE_CORS_ORIGINS": "https://a.example,https://b.example",
            "QSERVE_CORS_METHODS": "GET",
            "QSERVE_CORS_HEADERS": "content-type",
            "QSERVE_CORS_MAX_AGE_S": "0",
            "QSERVE_ALLOWED_HOSTS": "shop.example,localhost",
        }


class RateLimit:
    """A middleware of one's own."""

    def __init__(self, app: Any) -> None:
        self.app = app


@pytest.mark.parametrize(
    ("middleware", "why"),
    [
        (Middleware(GZipMiddleware), "cannot run the middleware GZipMiddleware: .*app.add_middleware.GZipMiddleware"),
        (Middleware(RateLimit), "cannot run the middleware RateLimit: .*@serve.ingress"),
        (RateLimit, "cannot run the middleware"),
        (Middleware(CORSMiddleware, made_up=1), "the gateway does not know made_up"),  # type: ignore[call-arg]
        (Middleware(TrustedHostMiddleware, allowed_hosts=["*.example.com"]), "whole names"),
    ],
)
def test_a_middleware_that_the_gateway_cannot_obey_is_refused_in_one_line(middleware: Any, why: str) -> None:
    for given in ({"http_middlewares": [middleware]}, {"http_options": {"middlewares": [middleware]}}):
        with pytest.raises(TypeError, match=why) as refused:
            serve.start(**given)
        assert "\n" not in str(refused.value)
