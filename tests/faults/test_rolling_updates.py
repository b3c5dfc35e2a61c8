"""Rolling updates step by step, under load: where there is a limit, or no room for both versions."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ledger import DIAMOND
from load import Call, Load, new_job
from processes import Process, new_site, wait_until
from rows import row
from stacks import SEAL, Stack, kill

from qserve.deploy.installation import ReplicaReports
from qserve.wire.status import FAILED, RUNNING, ReplicaStatus


@dataclass(frozen=True)
class Sample:
    """What there was at one moment.

    Parameters:
      active, staged, share: The version that serves, the one that is deployed, and its part of the requests.
      there, running: How many replicas there were by version and deployment, and how many of them took calls.
    """

    active: str
    staged: str
    share: float
    there: Counter[tuple[str, str]]
    running: Counter[tuple[str, str]]

    def serving(self, name: str) -> float:
        """How many replicas would do as much of the work as those of both versions do with their parts of it."""
        parts = [(self.running[self.active, name], 1 - self.share), (self.running[self.staged, name], self.share)]
        return min(count / part for count, part in parts if part)


NODES = ("Left", "Right", "Join")
BROKEN = """class Join:
    def __init__(self):
        with open("COUNTED", "a") as counted:
            counted.write(".")
        if os.path.getsize("COUNTED") > WHOLE:
            raise ValueError('half a release')

"""
"""Replicas of Join cannot be constructed, except for the first ones."""
GRACE_S = 30
OPTIONS = f"@qserve.deployment(num_replicas=REPLICAS, graceful_shutdown_timeout_s={GRACE_S})\nclass "
SCALED = """@qserve.deployment(graceful_shutdown_timeout_s=5, autoscaling_config=dict(
    min_replicas=1, max_replicas=3, target_ongoing_requests=1, upscale_delay_s=0.0, downscale_delay_s=600.0
))
class """
ON_GPU = """@qserve.deployment(num_replicas=2, graceful_shutdown_timeout_s=5, ray_actor_options=dict(num_gpus=1))
class Left:
    def __init__(self):
        import fcntl
        self.gpu = open("FOLDER/gpu-" + os.environ["CUDA_VISIBLE_DEVICES"], "w")
        fcntl.flock(self.gpu, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with open("FOLDER/seen", "a") as seen:
            seen.write(os.environ["CUDA_VISIBLE_DEVICES"] + str(VERSION) + " ")

"""
"""A replica that cannot be constructed while another one has its GPU."""
ONE_MORE = """@qserve.deployment
class More:
    async def __call__(self, left):
        return left

"""


class Host(Stack):
    """A stack whose workers all find the code in one folder, where the next version is put in place."""

    version = 0
    folder: Path
    workers: Process
    count: int
    other_options = False
    """Whether Left needs a GPU, and Right scales by load."""

    def put(self, version: int, whole: int | None = None) -> None:
        """Put a version in place of which only so many replicas of Join can be constructed; None for any number."""
        text = DIAMOND.replace("REPLICAS", str(self.count)).replace("VERSION = 1", f"VERSION = {version}")
        # on a busy machine, requests of 0.5 s take longer
        text = text.replace("graceful_shutdown_timeout_s=5", f"graceful_shutdown_timeout_s={GRACE_S}")
        if self.other_options:
            text = text.replace(OPTIONS.replace("REPLICAS", str(self.count)) + "Right", SCALED + "Right")
            gpus = ON_GPU.replace("FOLDER", str(self.site.folder))
            text = text.replace(OPTIONS.replace("REPLICAS", str(self.count)) + "Left:\n", gpus)
        if whole is not None:
            counted = self.site.folder / f"constructed-{version}-{whole}"
            broken = BROKEN.replace("WHOLE", str(whole)).replace("COUNTED", str(counted))
            text = text.replace("class Join:\n", broken)
        (self.folder / "diamond.py").write_text(text)

    def start_deploy(self, *options: str, failpoint: str = "") -> Process:
        env = {"QSERVE_FAILPOINT": f"{failpoint}:kill9"} if failpoint else None
        return self.command("deploy", "diamond:app", "--app-dir", str(self.folder), *options, env=env)

    def release(self, *options: str) -> Process:
        """Deploy the next version, and wait for the end of that."""
        self.version += 1
        self.put(self.version)
        deploy = self.start_deploy(*options)
        assert deploy.wait() == 0, deploy.output
        return deploy

    def hosting(self, count: int, places: int, *more: str) -> None:
        """Go on with so many replicas of each deployment on workers with so many places, and other options."""
        self.count = count
        if self.version:
            self.workers.signal(signal.SIGTERM)
            assert self.workers.wait() == 0, self.workers.output
        options = ("--name", "default", "--app-dir", str(self.folder), "--places", str(places), *more)
        self.workers = self.worker(*options)
        self.release("--restart")
        wait_until(lambda: self.is_whole(), description="all replicas of one version run")
        wait_until(self.is_serving, description="the gateway is healthy")

    def shares(self) -> tuple[str, str, float]:
        """The version that serves, the one that is deployed and gets a part of the requests, and that part."""
        active = self.record()
        assert self._looking is not None
        staged = next((one for one in self._looking.registry.versions("default")[1:] if one.share), None)
        return (active.version, "", 0.0) if staged is None else (active.version, staged.version, staged.share)

    def there(self) -> list[ReplicaStatus]:
        found = ReplicaReports(self.broker.client, self.keys, SEAL, "default").replicas()
        return [one for one in found if one.state != FAILED and one.deployment in NODES]

    def is_whole(self) -> bool:
        """Whether all replicas of the version that serves run, and no other."""
        there, version = self.there(), self.record().version
        if {one.version for one in there} != {version} or len(self.replicas()) != len(there):
            return False
        counts = Counter(one.deployment for one in there)
        return counts["Left"] == counts["Join"] == self.count and (counts["Right"] == self.count or self.other_options)


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with new_site() as site:
        stack = Host(site, guarded=True)
        stack.folder = site.folder / "code"
        stack.folder.mkdir()
        stack.front = stack.gateway()
        yield stack
        stack.close()


def slow_job() -> dict[str, Any]:
    """A request that is half-way for a while."""
    return new_job(sleep_s={"left": 0.5, "right": 0.3})


@contextmanager
def watching(stack: Host) -> Iterator[list[Sample]]:
    """Note again and again which replicas there are."""
    samples: list[Sample] = []
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.02):
            before, there = stack.shares(), stack.there()
            if stack.shares() == before:
                running = [one for one in there if one.state == RUNNING]
                found = (Counter((one.version, one.deployment) for one in some) for some in (there, running))
                samples.append(Sample(*before, *found))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        is_over.set()
        thread.join()


@contextmanager
def under_load(stack: Host) -> Iterator[Callable[[], list[Call]]]:
    """Send requests by handle and by HTTP; what is yielded ends that, and returns them."""
    by_handle, by_http = stack.load(rate=25, make=slow_job), Load(stack.http(), rate=25, make=slow_job).start()
    by_handle.more(20)

    def stop() -> list[Call]:
        by_handle.more(40)
        return [*by_handle.stop(), *by_http.stop()]

    yield stop


def serving(samples: list[Sample]) -> float:
    """The fewest replicas that a deployment had for the requests that came."""
    return min(sample.serving(name) for sample in samples for name in NODES)


def most(samples: list[Sample]) -> int:
    """The most replicas that a deployment had, of both versions."""
    return max(
        sum(count for (_, one), count in sample.there.items() if one == name) for sample in samples for name in NODES
    )


def update(host: Host, *options: str) -> tuple[Process, list[Sample]]:
    """Release the next version under load, and see that no request fails and none is mixed."""
    before = host.version
    with watching(host) as samples, under_load(host) as stop:
        deploy = host.release(*options)
        wait_until(host.is_whole, description="only the new version runs, wholly")
        calls = stop()
    assert [call for call in calls if not call.is_right] == []
    assert {tuple(call.answer["versions"]) for call in calls} == {(before,) * 3, (before + 1,) * 3}
    return deploy, samples


@row("F50", priority=True)
# tests/deploy/test_steps.py has the steps of both
@pytest.mark.parametrize(("count", "least"), [(2, 1), (1, 0)])
@pytest.mark.long
def test_no_request_fails_and_none_is_mixed_where_there_is_no_room_for_both_versions(
    host: Host, count: int, least: int
) -> None:
    host.hosting(count, places=3 * count)

    deploy, samples = update(host)

    assert "one by one, as there is no other place" in deploy.output
    assert serving(samples) >= least and most(samples) <= count


@row("F50")
@pytest.mark.parametrize(
    ("options", "least", "limit"), [(("--max-surge", "1"), 2, 3), (("--max-surge", "0"), 1, 2), ((), 2, 4)]
)
def test_there_are_as_many_replicas_during_a_release_as_its_surge_says(
    host: Host, options: tuple[str, ...], least: int, limit: int
) -> None:
    host.hosting(2, places=12)

    _, samples = update(host, *options)

    assert serving(samples) >= least and most(samples) == limit


@row("F50", priority=True)
@pytest.mark.long  # tests/deploy/test_steps.py has a version of which any replica fails
def test_code_that_fails_half_way_leaves_the_old_version_with_all_of_its_replicas(host: Host) -> None:
    """All replicas but the last one can be constructed."""
    host.hosting(2, 6)
    with watching(host) as samples, under_load(host) as stop:
        host.put(host.version + 1, whole=1)
        deploy = host.start_deploy()
        assert deploy.wait() == 1 and "ValueError: half a release" in deploy.output
        wait_until(host.is_whole, description="the old version has all of its replicas")
        calls = stop()
    host.put(host.version)

    assert any(len({version for version, _ in sample.there}) == 2 for sample in samples), "some new ones ran"
    assert [call for call in calls if not call.is_right] == []
    answered = {tuple(call.answer["versions"]) for call in calls}
    assert answered == {(host.version,) * 3, (host.version + 1,) * 3}
    assert serving(samples) >= 1


@row("F55")
@pytest.mark.parametrize("point", ["rollout.before_promote", "rollout.after_promote"])
def test_a_deployer_that_dies_between_its_steps_leaves_one_version_with_all_of_its_replicas(
    host: Host, point: str
) -> None:
    host.hosting(2, 6)
    before, is_promoted = host.version, point == "rollout.after_promote"
    with watching(host) as samples, under_load(host) as stop:
        host.put(before + 1)
        dying = host.start_deploy("--max-surge", "0", failpoint=point)
        assert dying.wait() == -signal.SIGKILL, dying.output
        wait_until(host.is_whole, description="one version has all of its replicas")
        calls = stop()
    host.version += is_promoted
    host.put(host.version)

    assert [call for call in calls if not call.is_right] == []
    assert {tuple(call.answer["versions"]) for call in calls} == {(before,) * 3, (before + 1,) * 3}
    # otherwise old replicas have five seconds to start before the share ends, which may be too few on a busy machine
    assert not is_promoted or serving(samples) >= 1


@row("F50")
def test_replicas_with_gpus_and_those_that_scale_by_load_are_replaced_step_by_step_as_well(host: Host) -> None:
    host.other_options = True
    host.hosting(2, 20, "--devices", "a,b")
    seen = host.site.folder / "seen"
    with under_load(host) as stop:
        wait_until(lambda: len(host.replicas("Right")) == 3, description="the load has brought more replicas")
        stop()

    deploy, samples = update(host)
    host.other_options = False

    assert (
        "one by one, as there is no other place: Left: 2 of 2 replicas have no place: each takes 1 GPU" in deploy.output
    )
    assert {one for one in seen.read_text().split() if one.endswith(str(host.version))} == {
        f"{gpu}{host.version}" for gpu in "ab"
    }
    assert serving(samples) >= 1
    assert max(sum(n for (_, one), n in sample.there.items() if one == "Left") for sample in samples) == 2
    assert len(host.replicas("Right")) == 3  # the new version goes on where the old one was


@row("F50")
def test_a_version_that_adds_a_deployment_without_room_says_what_is_missing_and_changes_nothing(host: Host) -> None:
    host.hosting(2, 6)
    before = {one.name for one in host.replicas()}
    file = host.folder / "diamond.py"
    text = file.read_text()
    bound = text.replace("output = Join", "left = More.bind().__call__.bind(left)\n    output = Join")
    file.write_text(bound.replace("VERSION = ", ONE_MORE + "VERSION = ", 1))

    deploy = host.start_deploy("--timeout-s", "6")
    assert deploy.wait() == 1
    file.write_text(text)

    why = "1 of 1 replicas have no place: each takes 1 place; free: 0 of 6 on"
    assert f"deployment 'More' of application 'default' waits: {why}" in deploy.output
    assert f"More: {why}" in deploy.output
    assert {one.name for one in host.replicas()} == before


@row("F50")
def test_replicas_that_are_killed_while_both_versions_serve_cost_no_request(host: Host) -> None:
    host.hosting(3, 9)
    before = host.version
    with under_load(host) as stop:
        host.put(before + 1)
        deploy = host.start_deploy("--max-surge", "0")
        wait_until(lambda: host.shares()[2] > 0, description="requests go to both versions")
        active, staged, _ = host.shares()
        for version in (active, staged):
            kill(next(one.pid for one in host.there() if (one.version, one.state) == (version, RUNNING)))
        assert deploy.wait() == 0, deploy.output
        wait_until(host.is_whole, description="only the new version runs, wholly")
        calls = stop()
    host.version += 1

    assert [call for call in calls if not call.is_right] == []
    assert {tuple(call.answer["versions"]) for call in calls} == {(before,) * 3, (before + 1,) * 3}
