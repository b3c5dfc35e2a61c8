"""ASGI and WSGI applications (FastAPI, Flask) inside deployments.

It may import the rooms below, from define down.
Open first: ingress.py.
"""
