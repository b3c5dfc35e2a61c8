"""Celery's parts: its task, boot steps, remote control and the transport.

It may import qserve and qserve_workers.replica.
Open first: consumer.py.
"""
