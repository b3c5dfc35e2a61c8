"""The parts of a replica that are Celery's: application, worker with its boot steps, remote control and transport.

It may import qserve.exceptions, qserve.base, qserve.wire, qserve.broker, qserve.engine and qserve_workers.replica.
Open first: worker.py.
"""
