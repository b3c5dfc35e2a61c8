"""The gateway package: HTTP in front of every registered application.

It may import qserve and its own rooms in qserve_gateway.
Open first: application.py, then handler.py.
"""
