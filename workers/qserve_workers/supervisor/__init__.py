"""The supervisor of a host: it starts replicas, watches them and hands over the calls of dead ones.

It may import qserve and the other rooms of qserve_workers.
Open first: supervisor.py.
"""
