"""The wire format: values and messages as bytes, their signatures, and the records of applications.

It may import qserve.exceptions, qserve.base and qserve.graph.
Open first: envelope.py, then codec.py and sealing.py.
"""
