"""The API for programs that deploy: Ray Serve's REST paths and bodies, on a port and with a token of their own.

It may import qserve, qserve.exceptions, qserve.base, qserve.wire, qserve.broker, qserve.http, qserve.appfile,
qserve.deploy, qserve.cli, qserve_gateway, qserve_gateway.request and qserve_gateway.response.
Open first: application.py, then details.py.
"""
