import pytest
from unittest.mock import patch

ray = pytest.importorskip("ray")
serve = pytest.importorskip("ray.serve")


@patch("shop.main.ray.get")  # left: in-text
@patch("ray.serve._private.api.get_controller")  # left: private
def test_shop(controller, get):
    get.return_value = 1


def test_words(monkeypatch):
    monkeypatch.setattr("ray.kill", lambda actor: None)  # left: actors
    monkeypatch.setenv("RAY_SERVE_HTTP", "1")
    print("ray.serve.run")  # left: in-text
    print("see ray.serve.run for more")
