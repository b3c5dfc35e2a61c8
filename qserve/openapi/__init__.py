"""The HTTP interface of an application, described in OpenAPI's terms where its code is: when it is deployed.

It may import qserve.exceptions, qserve.base, qserve.graph, qserve.wire, qserve.http, qserve.define
and qserve.web.
Open first: application.py, document.py.
"""
