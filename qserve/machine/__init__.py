"""The processes of one machine: the embedded broker, the workers and the gateway, and how they are kept running.

It may import qserve.exceptions, qserve.base, qserve.broker and qserve.payloads.
Open first: local_cluster.py, then children.py.
"""
