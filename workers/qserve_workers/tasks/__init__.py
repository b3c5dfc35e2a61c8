"""A stock Celery worker whose tasks are the deployments: what Celery's producers send, it calls and waits for.

It may import qserve.exceptions, qserve.base, qserve.wire, qserve.broker, qserve.tracing, qserve.calls and
qserve.cli.
Open first: worker.py.
"""
