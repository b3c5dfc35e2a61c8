"""Replicas over time: configured, checked, replaced, drained, deleted."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from http_client import Client
from processes import Started, wait_until
from serving import ask

import qserve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.exceptions import AppNotFound, QserveException, ReplicaLost, TimeLimitExceeded

pytestmark = pytest.mark.usefixtures("started")


@qserve.deployment
class Configured:
    def __init__(self) -> None:
        self.config: Any = None
        self.ill = False

    def reconfigure(self, config: Any) -> None:
        self.config = config

    def __call__(self) -> tuple[int, Any]:
        return os.getpid(), self.config

    def fall_ill(self) -> None:
        self.ill = True

    def check_health(self) -> None:
        if self.ill:
            raise RuntimeError("ill")


def test_another_user_config_reaches_every_replica_without_a_restart() -> None:
    two = Configured.options(num_replicas=2)
    handle = qserve.run(two.options(user_config={"level": 1}).bind())
    answers = [ask(handle) for _ in range(50)]
    before = {pid for pid, _ in answers}
    assert {config["level"] for _, config in answers} == {1}

    qserve.run(two.options(user_config={"level": 2}).bind())

    answers = [ask(handle) for _ in range(50)]
    assert {config["level"] for _, config in answers} == {2}
    assert {pid for pid, _ in answers} == before


def test_a_user_config_without_reconfigure_is_an_error_that_names_the_deployment() -> None:
    @qserve.deployment(user_config={"level": 1})
    class Stubborn:
        pass

    with pytest.raises(RuntimeError, match=r"'Stubborn'.*`reconfigure\(self, user_config\)`"):
        qserve.run(Stubborn.bind())


def test_after_a_user_config_that_was_refused_the_one_before_holds_although_it_was_taken_in_part() -> None:
    @qserve.deployment(user_config={"level": 1})
    class Model:
        def reconfigure(self, config: dict[str, int]) -> None:
            self.level = config["level"]
            assert self.level < 5

        def seen(self) -> int:
            return self.level

    handle = qserve.run(Model.bind())
    with pytest.raises(RuntimeError, match="'Model' has refused its user_config"):
        qserve.run(Model.options(user_config={"level": 7}).bind())

    wait_until(lambda: qserve.get(handle.seen.remote()) == 1, description="the former one is taken again")
    qserve.run(Model.options(user_config={"level": 2}).bind())
    assert qserve.get(handle.seen.remote()) == 2


def test_reconfigure_may_be_async_and_runs_after_the_constructor() -> None:
    @qserve.deployment(user_config={"threshold": 3})
    class Model:
        def __init__(self) -> None:
            self.seen = ["init"]

        async def reconfigure(self, config: dict[str, Any]) -> None:
            self.seen.append(config["threshold"])

        def __call__(self) -> list[Any]:
            return [*self.seen, os.getpid()]

    handle = qserve.run(Model.bind())
    first = ask(handle)
    qserve.run(Model.options(user_config={"threshold": 4}).bind())

    assert first[:-1] == ["init", 3]
    assert ask(handle) == ["init", 3, 4, first[-1]]


def test_another_number_of_replicas_keeps_those_that_run() -> None:
    handle = qserve.run(Configured.bind())
    first, _ = ask(handle)

    qserve.run(Configured.options(num_replicas=3).bind())
    three = {ask(handle)[0] for _ in range(100)}
    qserve.run(Configured.options(num_replicas=2).bind())

    assert len(three) == 3
    assert first in three
    assert os.getpid() not in three
    wait_until(lambda: len({ask(handle)[0] for _ in range(40)}) == 2, description="two replicas are left")
    qserve.run(Configured.options(num_replicas=1).bind())
    wait_until(lambda: len({ask(handle)[0] for _ in range(20)}) == 1, description="one replica is left")


def test_each_deployment_of_a_graph_has_its_own_number_of_replicas() -> None:
    @qserve.deployment
    def pid(*ignored: Any) -> int:
        return os.getpid()

    @qserve.deployment
    def both(one: int, two: int) -> tuple[int, int]:
        return one, two

    with InputNode() as value:
        one = pid.options(name="one", num_replicas=1).bind(value)
        two = pid.options(name="two", num_replicas=2).bind(value)
        handle = qserve.run(DAGDriver.bind(both.bind(one, two)))

    def seen() -> bool:
        pairs = qserve.get([handle.predict.remote(0) for _ in range(50)], timeout=20)
        return (len({one for one, _ in pairs}), len({two for _, two in pairs})) == (1, 2)

    wait_until(seen, description="one and two replicas")


def test_replicas_of_a_deployment_start_side_by_side(tmp_path: Path) -> None:
    @qserve.deployment(num_replicas=2)
    class Meets:
        async def __init__(self) -> None:
            (tmp_path / str(os.getpid())).touch()
            while len(list(tmp_path.iterdir())) < 2:  # the one waits for the other
                await asyncio.sleep(0.005)

        def __call__(self) -> str:
            return "met"

    assert ask(qserve.run(Meets.bind())) == "met"


def test_the_same_version_keeps_the_replicas_and_no_version_replaces_them() -> None:
    handle = qserve.run(Configured.options(version="one").bind())
    first = ask(handle)[0]
    qserve.run(Configured.options(version="one").bind())
    assert ask(handle)[0] == first

    qserve.run(Configured.options(version="two").bind())
    second = ask(handle)[0]
    qserve.run(Configured.bind())
    third = ask(handle)[0]
    qserve.run(Configured.bind())

    assert len({first, second, third, ask(handle)[0]}) == 4


def test_a_replica_that_is_ill_three_times_is_replaced() -> None:
    handle = qserve.run(Configured.options(health_check_period_s=0.05).bind())
    pid = ask(handle)[0]

    ask(handle.fall_ill)

    wait_until(lambda: ask(handle)[0] != pid, description="another replica answers")


def test_a_replica_that_dies_while_it_starts_is_reported_with_the_way_it_died() -> None:
    @qserve.deployment
    class Suicidal:
        def __init__(self) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(
        RuntimeError, match="'Suicidal'.*\n?.*its process ended while it was starting: killed: SIGKILL, perhaps"
    ):
        qserve.run(Suicidal.bind())


@pytest.mark.parametrize("method", ["block", "block_the_loop", "wait"])
def test_a_call_over_its_time_limit_is_stopped_and_its_neighbours_are_not_lost(method: str) -> None:
    @qserve.deployment(max_execution_s=0.5)
    class Slow:
        def block(self) -> None:
            threading.Event().wait()

        async def block_the_loop(self) -> None:
            threading.Event().wait()

        async def wait(self) -> None:
            await asyncio.Event().wait()

        async def quick(self, number: int) -> int:
            return number

    handle = qserve.run(Slow.bind())
    stuck = getattr(handle, method).remote()
    others = [handle.quick.remote(number) for number in range(10)]

    with pytest.raises(TimeLimitExceeded, match=rf"Slow.{method} ran longer than max_execution_s=0.5"):
        qserve.get(stuck, timeout=60)
    assert qserve.get(others, timeout=60) == list(range(10))


def test_a_call_that_raises_is_tried_again_as_often_as_its_deployment_says(tmp_path: Path) -> None:
    @qserve.deployment(max_retries=3, retry_on=(ConnectionError,), retry_backoff_s=0.05)
    class Flaky:
        def __init__(self, ledger: Path) -> None:
            self.ledger = ledger

        def _note(self) -> int:
            with self.ledger.open("a") as file:
                file.write("x")
            return len(self.ledger.read_text())

        def third_time(self) -> int:
            if self._note() < 3:
                raise ConnectionResetError("not yet")
            return self._note()

        async def never(self) -> None:
            self._note()
            raise ConnectionResetError("never")

        def other_error(self) -> None:
            self._note()
            raise ValueError("not worth it")

    handle = qserve.run(Flaky.bind(tmp_path / "a"))
    assert ask(handle.third_time) == 4

    handle = qserve.run(Flaky.bind(tmp_path / "b"))
    with pytest.raises(ConnectionResetError, match="never"):
        ask(handle.never)
    assert (tmp_path / "b").read_text() == "xxxx"

    handle = qserve.run(Flaky.bind(tmp_path / "c"))
    with pytest.raises(ValueError, match="not worth it"):
        ask(handle.other_error)
    assert (tmp_path / "c").read_text() == "x"


def test_accepted_calls_finish_when_their_application_is_deleted(tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    @qserve.deployment
    async def wait(number: int) -> int:
        while not gate.exists():
            await asyncio.sleep(0.01)
        return number

    handle = qserve.run(wait.bind())
    refs = [handle.remote(number) for number in range(20)]
    deleting = threading.Thread(target=qserve.delete, args=("default",))
    deleting.start()
    gate.touch()

    assert qserve.get(refs, timeout=20) == list(range(20))
    deleting.join(20)
    with pytest.raises(AppNotFound):
        qserve.get_app_handle()


def test_what_does_not_finish_within_the_grace_period_of_a_deletion_fails(tmp_path: Path) -> None:
    began = tmp_path / "began"

    @qserve.deployment(graceful_shutdown_timeout_s=0.1)
    async def endless() -> None:
        began.touch()
        await asyncio.Event().wait()

    handle = qserve.run(endless.bind())
    ref = handle.remote()
    wait_until(began.exists, description="the call runs")

    qserve.delete("default")

    with pytest.raises(QserveException, match="deleted before this call was finished"):
        qserve.get(ref, timeout=20)
    with pytest.raises(AppNotFound):
        qserve.get_app_handle()


def test_an_object_says_goodbye_when_its_replica_ends(tmp_path: Path) -> None:
    mark = tmp_path / "deleted"

    @qserve.deployment
    class Polite:
        def __del__(self) -> None:
            mark.touch()
            raise RuntimeError("and this goes no further")

    qserve.run(Polite.bind())
    qserve.delete("default")

    wait_until(mark.exists, description="__del__ has run")


def test_a_call_that_kills_its_replica_fails_alone() -> None:
    @qserve.deployment
    class Fragile:
        def die(self) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        async def think(self, number: int) -> int:
            await asyncio.sleep(0.05)
            return number

    handle = qserve.run(Fragile.bind())
    before = [handle.think.remote(number) for number in range(30)]
    poison = handle.die.remote()
    after = [handle.think.remote(number) for number in range(30)]

    with pytest.raises(ReplicaLost, match="died 3 times"):
        qserve.get(poison, timeout=20)
    assert qserve.get(before + after, timeout=20) == [*range(30), *range(30)]


@pytest.mark.parametrize(
    ("how", "code", "logged"),
    [
        ("os._exit(3)", "replica_lost", "of Inner died (exit code 3: its user code"),
        ("os.kill(os.getpid(), 9)", "replica_lost", "of Inner died (killed: SIGKILL"),
        ("time.sleep(60)", "time_limit_exceeded", "of Inner died (a call over its max_execution_s"),
    ],
)
def test_the_end_of_an_inner_step_is_told_with_its_own_cause_and_name(
    started: Started, how: str, code: str, logged: str
) -> None:
    @qserve.deployment(max_execution_s=2.0)
    class Inner:
        def end(self, how: str) -> None:
            exec(f"import os, time\n{how}")

    @qserve.deployment
    class Front:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        async def __call__(self, request: Any) -> Any:
            how = request if isinstance(request, str) else await request.json()
            return await (await self.inner.end.remote(how))

    handle = qserve.run(Front.bind(Inner.bind()), name="ends", route_prefix="/ends")

    with pytest.raises((ReplicaLost, TimeLimitExceeded), match="Inner") as caught:
        qserve.get(handle.remote(how), timeout=30)
    answer = Client(started.url).post("/ends", how)

    assert (caught.value.code, caught.value.deployment) == (code, "Inner")
    assert (answer.status, answer.code, answer.error["deployment"]) == (500, code, "Inner")
    wait_until(lambda: logged in started.log.read_text(), description="its end is in the log")
    qserve.delete("ends")


def test_status_shows_deployments_and_their_replicas() -> None:
    qserve.run(Configured.options(num_replicas=2).bind(), name="shown", route_prefix="/shown")

    status = qserve.status().applications["shown"]

    assert (status.status, status.route_prefix) == ("RUNNING", "/shown")
    assert status.deployments["Configured"].status == "HEALTHY"
    assert status.deployments["Configured"].replica_states == {"RUNNING": 2}
    qserve.delete("shown")


def test_twenty_concurrent_calls_run_in_fewer_batches() -> None:
    @qserve.deployment
    class Model:
        def __init__(self) -> None:
            self.sizes: list[int] = []

        @qserve.batch(max_batch_size=5, batch_wait_timeout_s=0.2)
        async def handle_batch(self, values: list[int], factors: list[int]) -> list[int]:
            self.sizes.append(len(values))
            return [value * factor for value, factor in zip(values, factors, strict=True)]

        async def __call__(self, value: int, factor: int = 2) -> int:
            return int(await self.handle_batch(value, factors=factor))

        def seen(self) -> list[int]:
            return self.sizes

    handle = qserve.run(Model.bind())

    assert qserve.get([handle.remote(number) for number in range(20)], timeout=20) == list(range(0, 40, 2))
    sizes = ask(handle.seen)
    assert sum(sizes) == 20
    assert len(sizes) < 20
    assert max(sizes) <= 5
