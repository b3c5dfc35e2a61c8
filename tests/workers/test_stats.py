"""A replica reports what its ``record_autoscaling_stats`` returns, for the policy that decides on its deployment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import redis
from processes import wait_until
from qserve_workers.process import lifecycle
from qserve_workers.process.lifecycle import Lifecycle
from qserve_workers.replica.spec import ReplicaSpec

from qserve.base.settings import Settings
from qserve.deploy.installation import Installation
from qserve.engine.servable import Servable
from qserve.wire.application import ApplicationRecord, DeploymentRecord, Scaling
from qserve.wire.status import decode_stats, encode_stats

SCALED = DeploymentRecord("One", scaling=Scaling(policy="rules:by_queue"))
RECORD = ApplicationRecord("app", "v", "One", deployments={"One": SCALED})


class Model:
    def __init__(self) -> None:
        self.found: Any = {"queued": 3}
        self.calls = 0

    def record_autoscaling_stats(self) -> Any:
        self.calls += 1
        return self.found() if callable(self.found) else self.found


class Waiting(Model):
    async def record_autoscaling_stats(self) -> Any:  # type: ignore[override]
        await asyncio.sleep(0)
        return super().record_autoscaling_stats()


def fails() -> None:
    raise SystemExit("not today")


@pytest.fixture
def watch(settings: Settings, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run the part of a replica beside its calls until the test has seen what it wants."""
    monkeypatch.setattr(lifecycle, "STATS_S", 0.001)
    installation = Installation(settings, client)

    async def run(kind: type[Model], scene: Callable[[Model, Callable[[], str], ReplicaSpec], None]) -> None:
        servable = Servable(kind, (), {})
        await servable.construct()
        spec = ReplicaSpec("One-1", RECORD, "One", settings)
        life = Lifecycle(spec, servable, installation, stop=print, pause=print)

        def reported() -> str:
            return "".join(one.stats for one in installation.reports("app").replicas())

        life.begin(asyncio.get_running_loop())
        try:
            await asyncio.to_thread(scene, servable.instance, reported, spec)
        finally:
            await life.end()
            asyncio.get_running_loop().remove_signal_handler(lifecycle.signal.SIGHUP)

    return lambda kind, scene: asyncio.run(run(kind, scene))


@pytest.mark.parametrize("kind", [Model, Waiting])
def test_it_reports_what_the_method_returns_and_nothing_once_that_fails(
    watch: Callable[..., None], kind: type[Model], caplog: pytest.LogCaptureFixture
) -> None:
    def scene(model: Model, reported: Callable[[], str], spec: ReplicaSpec) -> None:
        wait_until(lambda: reported() == '{"queued": 3.0}', description="the first numbers")
        model.found = {"queued": 4.5, "busy": True}
        wait_until(lambda: reported() == '{"queued": 4.5, "busy": 1.0}', description="the next ones")
        model.found = fails
        wait_until(lambda: reported() == "", description="none are reported any more")
        seen = model.calls
        wait_until(lambda: model.calls > seen + 2, description="it is called again")

    watch(kind, scene)

    assert caplog.text.count("record_autoscaling_stats failed: RuntimeError") == 1


def test_it_is_not_called_where_no_policy_asks(watch: Callable[..., None]) -> None:
    def scene(model: Model, reported: Callable[[], str], spec: ReplicaSpec) -> None:
        wait_until(reported, description="the first numbers")
        spec.adopt(replace(SCALED, scaling=Scaling()))
        wait_until(lambda: reported() == "", description="they are gone")
        seen = model.calls
        spec.adopt(SCALED)
        wait_until(reported, description="they are there again")
        assert seen < model.calls

    watch(Model, scene)


@pytest.mark.parametrize("found", [None, [], 3, {"a": "3"}, {"a": None}, {1: 2}, {"a": float("nan")}, {"a" * 5000: 1}])
def test_anything_else_than_numbers_by_name_is_refused(found: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="record_autoscaling_stats|Out of range float"):
        encode_stats(found)


def test_numbers_come_back_as_they_were() -> None:
    assert decode_stats(encode_stats({"ä": 1, "b": 2.5})) == {"ä": 1.0, "b": 2.5}
    assert decode_stats("") == {}
