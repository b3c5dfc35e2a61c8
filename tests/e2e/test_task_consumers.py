"""The task consumer of docs/celery.md, which is a program for Ray Serve after renaming, run by `qserve run`."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from http_client import Client
from processes import PATIENCE_S, Serving, free_port, new_site, wait_until

from qserve.broker.connection import connect

pytestmark = pytest.mark.slow
DOCUMENT = (Path(__file__).parents[2] / "docs" / "celery.md").read_text()
MORE = """

@serve.deployment
@task_consumer(task_processor_config=config.model_copy(update={"queue_name": "others"}))
class Other:
    tries = 0

    @task_handler
    async def recover(self):
        self.tries += 1
        if self.tries < 2:
            raise ConnectionError("try again")
        return self.tries

    @task_handler
    def give_up(self, reason):
        raise ValueError(reason)

both = Front.bind(Shouter.bind(), Other.bind())
"""


class Consumers:
    """The program of the document, with one more consumer, and Celery's broker beside it."""

    def __init__(self, serving: Serving, url: str) -> None:
        self.http = Client(serving.url)
        self.producer = Celery(broker=url, backend=url, set_as_current=False)
        self.redis = connect(url)
        self.serving = serving

    def taken_from(self, queue: str) -> list[Any]:
        """Wait for the next task of a queue; answers its arguments."""
        _, message = self.redis.blpop([queue], timeout=PATIENCE_S)
        found = json.loads(message)
        return json.loads(base64.b64decode(found["body"]))[0]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def consumers() -> Iterator[Consumers]:
    with new_site() as site:
        port = free_port()
        url = f"redis://127.0.0.1:{port}/0"
        site.start_broker(port)
        (program,) = re.findall(r"^```python\n(# shout\.py\n.*?)^```", DOCUMENT, re.S | re.M)
        more = MORE.replace("Front.bind(", "Front.options(name='Front').bind(")
        source = program.replace("redis://localhost:6379/0", url).replace("self, consumer", "self, *consumers")
        site.write("shout.py", source + more)
        started = Consumers(site.run("shout:both"), url)
        yield started
        started.producer.close()
        started.redis.close()


def test_a_task_that_a_replica_sends_is_run_and_its_result_is_found(consumers: Consumers) -> None:
    sent = consumers.http.post("/texts?text=hello")
    assert sent.status == 200, sent
    shown = wait_until(
        lambda: state if (state := consumers.http.get(f"/texts/{sent.json}").json)["status"] != "PENDING" else None,
        description="the task has ended",
    )
    assert shown == {"status": "SUCCESS", "result": "HELLO"}


def test_any_celery_program_may_send_to_the_queue(consumers: Consumers) -> None:
    assert consumers.producer.send_task("shout", ["hello"], queue="texts").get(timeout=PATIENCE_S) == "HELLO"


def test_a_handler_that_raises_is_tried_again_and_then_its_task_is_kept(consumers: Consumers) -> None:
    recovering = consumers.producer.send_task("recover", queue="others")
    failing = consumers.producer.send_task("give_up", ["no luck"], queue="others", task_id="of-a-test")
    assert recovering.get(timeout=PATIENCE_S) == 2
    with pytest.raises(ValueError, match="no luck"):
        failing.get(timeout=PATIENCE_S)
    task_id, error, args, kwargs, trace = consumers.taken_from("failed_texts")
    assert (task_id, error, args, kwargs) == ("of-a-test", "no luck", ["no luck"], {})
    assert "in give_up" in trace


def test_a_task_without_a_handler_fails_and_is_kept(consumers: Consumers) -> None:
    unknown = consumers.producer.send_task("whisper", ["hello"], queue="texts")
    with pytest.raises(Exception, match="there are: .*shout"):
        unknown.get(timeout=PATIENCE_S)
    name, task_id, *_ = consumers.taken_from("strange_texts")
    assert (name, task_id) == ("whisper", unknown.id)
