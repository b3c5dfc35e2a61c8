"""The only Celery configuration of the project.

``celery -A qserve_workers.app inspect ping`` reaches the replicas of the broker that the environment names.
"""

from __future__ import annotations

from celery import Celery
from kombu import Queue

from qserve.base.settings import Settings
from qserve.broker.address import concealed
from qserve_workers.celery.remote_control import RemoteControl
from qserve_workers.celery.task import CallTask
from qserve_workers.celery.transport import ALIAS


def make_celery(settings: Settings, stream: str = "", consumer: str = "") -> Celery:
    """A Celery application over the stream transport.

    Parameters:
      settings: Names the broker.
      stream: The deployment's queue; "" for an application that only inspects and controls.
      consumer: The replica's name in the consumer group.
    """
    app = Celery("qserve", broker=f"{ALIAS}://localhost//", backend=None, set_as_current=False)
    queues = [Queue(stream, routing_key=stream)] if stream else []
    app.conf.update(
        broker_transport_options={
            # Celery shows its options to whoever asks: `inspect stats`, `report`
            "url": concealed(settings.broker_url or "redis://localhost:6379/0"),
            "namespace": settings.namespace,
            "consumer": consumer,
        },
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        task_queues=queues,
        task_default_queue=stream or "qserve",
        worker_consumer="qserve_workers.celery.consumer:AsyncConsumer",
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_detect_quorum_queues=False,
        worker_send_task_events=False,
        worker_enable_remote_control=bool(not stream),
    )
    if stream:
        app.steps["consumer"].add(RemoteControl)
    app.register_task(CallTask())
    return app


app = make_celery(Settings.from_env())
