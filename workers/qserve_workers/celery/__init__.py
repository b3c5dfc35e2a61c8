"""What is Celery's in a replica: the application, the worker with its boot steps, remote control and its transport.

It may import qserve and qserve_workers.replica.
Open first: worker.py.
"""
