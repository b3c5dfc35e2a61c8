"""A replica's process from fork to exit: boot, heartbeat, health.

It may import qserve, qserve_workers.replica and qserve_workers.celery.
Open first: boot.py.
"""
