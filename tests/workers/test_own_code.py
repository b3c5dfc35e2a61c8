"""Code that a deploy has sent: who takes it, and that it is what was deployed."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from qserve_workers.supervisor import scope
from qserve_workers.supervisor.own_code import OwnCode
from qserve_workers.supervisor.scope import Applications, Scope

from qserve.base.settings import Settings
from qserve.base.turns import Turns
from qserve.deploy.claim import Claim
from qserve.deploy.installation import Installation
from qserve.deploy.sources import Module, Sources, read_sources
from qserve.exceptions import PayloadError
from qserve.wire.application import DIFFERING, MISSING, ApplicationRecord, DeploymentRecord
from qserve.wire.modules import LIMIT_BYTES, pack_modules, unpack_modules

RECORD = ApplicationRecord("app", "v", "One", target="sent_shop.app:app", deployments={"One": DeploymentRecord("One")})
SENT = Sources(
    {
        "sent_shop.app": Module("/elsewhere/sent_shop/app.py", False, b"from sent_shop.parts import VERSION"),
        "sent_shop.parts": Module("/elsewhere/sent_shop/parts/__init__.py", True, b"VERSION = 'sent'"),
    },
    are_sent=True,
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which this process finds modules; it forgets those that it has imported."""
    monkeypatch.syspath_prepend(tmp_path)
    finders = sys.meta_path[:]
    yield tmp_path
    sys.meta_path[:] = finders
    for name in [name for name in sys.modules if name.partition(".")[0] == "sent_shop"]:
        del sys.modules[name]


@pytest.fixture
def installation(settings: Settings, client: redis.Redis, folder: Path) -> Installation:
    installation = Installation(settings, client)
    client.set(installation.keys.code("app", "v"), pack_modules(SENT.modules, settings.keyring))
    return installation


def has_module(folder: Path, source: bytes) -> None:
    (folder / "sent_shop" / "parts").mkdir(parents=True)
    (folder / "sent_shop" / "app.py").write_bytes(source)
    (folder / "sent_shop" / "parts" / "__init__.py").write_bytes(SENT.modules["sent_shop.parts"].source)


@pytest.mark.parametrize(
    ("here", "target", "sent_for", "runs"),
    [
        ("nothing", "", MISSING, "what was sent"),
        ("nothing", "", DIFFERING, "what was sent"),
        ("nothing", "", "", ""),
        ("nothing", "sent_shop.app:app", MISSING, ""),
        ("another", "", MISSING, ""),
        ("another", "", DIFFERING, "what was sent"),
        ("another", "sent_shop.app:app", DIFFERING, ""),
        ("the same", "", MISSING, "its own"),
        ("the same", "", DIFFERING, "its own"),
    ],
)
def test_a_worker_takes_code_that_was_sent_only_where_it_has_none_of_its_own(
    installation: Installation, folder: Path, here: str, target: str, sent_for: str, runs: str
) -> None:
    if here != "nothing":
        has_module(folder, b"VERSION = 1" if here == "another" else SENT.modules["sent_shop.app"].source)
    record = replace(RECORD, modules=SENT.digests, sent_for=sent_for)

    found = OwnCode(installation, target).find(record, ["One"])

    assert found == {"what was sent": SENT, "its own": read_sources(RECORD.target), "": None}[runs]
    waits = [one.message for one in installation.reports("app").replicas()]
    assert [why.startswith("it has code") for why in waits] == ([] if runs else [True])


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        (b"", "is not in the broker any more"),
        (b"x" * 99, "is not signed with this process's key"),
        (pack_modules({}, replace(Settings().keyring, current=b"another key, of somebody")), "is not signed"),
        ({"sent_shop.app": ("/a.py", False, b"VERSION = 'of another version'")}, "is of another version"),
    ],
)
def test_only_the_code_that_was_deployed_is_taken(
    installation: Installation, settings: Settings, stored: bytes | dict[str, tuple[str, bool, bytes]], says: str
) -> None:
    data = stored if isinstance(stored, bytes) else pack_modules(stored, settings.keyring)
    key = installation.keys.code("app", "v")
    installation.client.set(key, data) if data else installation.client.delete(key)
    record = replace(RECORD, modules=SENT.digests, sent_for=MISSING)

    assert OwnCode(installation, "").find(record, ["One"]) is None
    (report,) = installation.reports("app").replicas()
    assert says in report.message and "it does not have sent_shop.app:app" in report.message


@pytest.mark.row("F55")
def test_a_version_whose_deployer_has_died_ends_and_is_taken_up_again_if_that_lives(
    installation: Installation, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scope, "_READ_AGAIN_S", 0.0)
    monkeypatch.setattr(scope, "_ABANDONED_S", 0.0)
    record = replace(RECORD, target="")
    installation.registry.stage(record)
    applications = Applications(installation, Scope(), Turns("a round", logging.getLogger()))

    def is_run() -> bool:
        applications.refresh()
        return applications.find("app", "v") is not None

    assert is_run() and is_run()  # an older qserve deploys without a claim
    with Claim(installation, "app", "v", 0.0) as claim:
        assert is_run()
        claim.update()
        assert is_run()
        assert not is_run()  # the counter has stood still
        claim.update()
        assert is_run()


def test_modules_that_were_sent_are_imported_although_their_folders_are_elsewhere(folder: Path) -> None:
    SENT.install()

    module = importlib.import_module("sent_shop.app")

    assert (module.VERSION, module.__file__) == ("sent", "/elsewhere/sent_shop/app.py")


@pytest.mark.parametrize(
    ("path", "source", "says"),
    [
        ("/a/fast.so", b"ELF", "shop cannot be sent: only Python source can"),
        ("/a/shop.py", bytes(range(256)) * 40_000, "at most 8 MiB can be sent"),
    ],
)
def test_what_cannot_travel_is_named(
    settings: Settings, path: str, source: bytes, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zlib.compress", bytes)
    with pytest.raises(PayloadError, match=says):
        pack_modules({"shop": (path, False, source)}, settings.keyring)
    assert LIMIT_BYTES == 8 << 20


def test_something_else_that_is_signed_is_refused(settings: Settings) -> None:
    for body in (b"", b"not compressed"):
        with pytest.raises(PayloadError, match="cannot be read"):
            unpack_modules(settings.keyring.sign(body), settings.keyring)
