"""An HTTP request on its way in: reading it, deciding whether it is allowed, and waiting for its result.

It may import qserve.
Open first: environ.py.
"""
