"""A replica's process from fork to exit: boot, heartbeat, health.

It may import qserve, qserve.exceptions, qserve.base, qserve.wire, qserve.metrics, qserve.broker, qserve.tracing,
qserve.calls, qserve.http, qserve.fleet, qserve.define, qserve.engine, qserve.deploy, qserve_workers.replica and
qserve_workers.celery.
Open first: boot.py.
"""
