"""An HTTP response on its way out: results, errors and streams.

It may import qserve.exceptions, qserve.base, qserve.wire, qserve.payloads, qserve.calls, qserve.http and
qserve_gateway.request.
Open first: reply.py.
"""
