"""The supervisor of a host: it starts replicas, watches them and hands over the calls of dead ones.

It may import qserve, qserve_workers.replica and qserve_workers.process.
Open first: supervisor.py.
"""
