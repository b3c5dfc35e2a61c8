"""What a replica's watchdog takes for a loop that stands still."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from processes import wait_until
from qserve_workers.replica.watchdog import Watchdog

from qserve.base.settings import Settings
from qserve.wire.application import DeploymentRecord


def test_a_loop_that_has_ended_does_not_stand_still_while_celery_ends_its_worker() -> None:
    """Which takes a second while events are sent: the last of them were lost when the watchdog ended the process."""
    looked, ends = [], []
    with asyncio.Runner() as runner:
        replica: Any = SimpleNamespace(
            loop=runner.get_loop(), has_calls=False, invoker=SimpleNamespace(running=list),
            give_back=lambda client: looked.append(client) or 0, call_at_next_call=lambda notice: None,
            spec=SimpleNamespace(
                settings=Settings(stall_limit_s=0.05), options=DeploymentRecord("Model"), end_process=ends.append
            ),
        )  # fmt: skip
        client: Any = None
        watchdog = Watchdog(replica, client)

        async def begin() -> None:
            watchdog.start()

        runner.run(begin())
        before = len(looked)
        wait_until(lambda: ends or len(looked) > before + 20, description="it has looked for longer than the limit")
        watchdog.stop()
        assert watchdog.is_loop_alive()
    assert not ends
