"""The live page ``/-/ui``: who may see it and act, its events, and what it shows and changes.

It may import qserve.exceptions, qserve.base, qserve.drawing, qserve.wire, qserve.http, qserve.deploy, qserve.overview,
qserve_gateway.request and qserve_gateway.response.
Open first: page.py, then feed.py.
"""
