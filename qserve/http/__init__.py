"""HTTP as values: messages, requests, adapters, and how results become responses.

It may import qserve.exceptions, qserve.base and qserve.wire.
Open first: message.py, then adapter.py and render.py.
"""
