"""The gateway package: HTTP in front of every registered application.

It may import qserve, qserve.exceptions, qserve.base, qserve.graph, qserve.wire, qserve.metrics, qserve.broker,
qserve.tracing, qserve.calls, qserve.fleet, qserve.http, qserve.openapi, qserve.cli, qserve_gateway.request,
qserve_gateway.response and qserve_gateway.ui.
Open first: application.py, then handler.py.
"""
