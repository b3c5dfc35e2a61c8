"""Graphs as pure data: nodes, their order, the compiled plan, and how a request advances through it.

It may import qserve.exceptions and qserve.base; no input or output.
Open first: nodes.py, then plan.py and advance.py.
"""
