"""One replica: it takes calls, runs user code and commits the effects.

It may import qserve.
Open first: replica.py.
"""
