"""Graphs as pure data: nodes, their order, the compiled plan, and how a request advances through it.

It may import nothing of ours.
Open first: nodes.py, then plan.py and advance.py.
"""
