"""The only Celery configuration of the project."""

from __future__ import annotations

from functools import cache

from celery import Celery

from qserve.base.settings import Settings
from qserve.broker.address import concealed
from qserve_workers.celery.transport import ALIAS, refuse_task, register_seal


def make_celery(settings: Settings) -> Celery:
    """Create a Celery application that inspects and controls the replicas of one broker."""
    app = Celery("qserve", broker=f"{ALIAS}://localhost//", backend=None, set_as_current=False)
    app.conf.update(
        broker_transport_options={
            # Celery prints its options: `inspect stats`, `report`
            "url": concealed(settings.broker_url or "redis://localhost:6379/0"),
            "namespace": settings.namespace,
            "key": register_seal(settings.keyring),
        },
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        task_default_queue="qserve",
        worker_consumer="qserve_workers.celery.worker:ReplicaConsumer",
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_detect_quorum_queues=False,
        worker_send_task_events=False,
    )
    # what `celery inspect registered` shows: replicas run calls of deployments, and nothing else
    app.task(refuse_task, name="qserve.call", ignore_result=True)
    return app


@cache
def prepared_celery(settings: Settings) -> Celery:
    """Return the Celery application of this process, with all that it would make when it is used first.

    A process that forks replicas calls this before, because to make it again costs each of them 1 MB.
    """
    app = make_celery(settings)
    app.loader.import_default_modules()
    app.finalize()
    app.amqp.queues  # noqa: B018 - it is kept
    return app
