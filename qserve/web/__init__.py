"""ASGI and WSGI applications (FastAPI, Flask) inside deployments.

It may import qserve.exceptions, qserve.base, qserve.wire, qserve.calls, qserve.http and qserve.define.
Open first: ingress.py.
"""
