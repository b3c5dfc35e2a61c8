"""An HTTP request on its way in: reading it, deciding whether it is allowed, and waiting for its result.

It may import qserve.exceptions, qserve.base, qserve.graph, qserve.wire, qserve.payloads, qserve.calls and qserve.http.
Open first: environ.py, then body.py.
"""
