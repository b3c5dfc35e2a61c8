"""Which worker runs how many replicas of what: what workers offer, what is wanted, and who decides.

It may import qserve.exceptions, qserve.base, qserve.wire and qserve.broker.
Open first: values.py, place.py, wanted.py and decide.py, then store.py, lead.py, leader.py and autoscale.py.
"""
