"""One replica: it takes calls, runs user code and commits what follows.

It may import qserve.
Open first: replica.py.
"""
