"""Placement of replicas: worker capacity, the desired counts, and the leader that decides.

It may import qserve.exceptions, qserve.base, qserve.wire, qserve.metrics and qserve.broker.
Open first: values.py, place.py, wanted.py and decide.py, then store.py, lead.py, leader.py and autoscale.py.
"""
