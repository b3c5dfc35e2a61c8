"""Stacks of containers for an application: what they consist of, and its text for docker compose and Kubernetes.

It may import qserve.exceptions and qserve.wire.
Open first: plan.py, then compose.py.
"""
