"""An HTTP response on its way out: results, errors and streams.

It may import qserve and qserve_gateway.request.
Open first: reply.py.
"""
