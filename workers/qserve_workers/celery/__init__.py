"""Celery's parts: the application, its task, boot steps, remote control and the transport.

It may import qserve and qserve_workers.replica.
Open first: app.py.
"""
