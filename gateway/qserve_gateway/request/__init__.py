"""An HTTP request on its way in: reading it, checking it, limiting clients.

It may import qserve.
Open first: incoming.py.
"""
