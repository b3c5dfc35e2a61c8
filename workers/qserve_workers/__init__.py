"""The worker package: Celery replicas, and the supervisor that keeps them alive.

It may import qserve and its own rooms in qserve_workers.
Open first: command.py, then app.py.
"""
