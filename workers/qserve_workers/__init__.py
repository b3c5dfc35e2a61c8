"""The worker package: Celery replicas, and the supervisor that keeps them alive.

It may import qserve, qserve.exceptions, qserve.base, qserve.broker, qserve.tracing, qserve.define, qserve.cli,
qserve_workers.celery, qserve_workers.process and qserve_workers.supervisor.
Open first: command.py, then app.py.
"""
