"""Graphs as pure data: nodes, the compiled plan, and how a request moves through it.

It may import qserve.base.
Open first: nodes.py, then plan.py and advance.py.
"""
