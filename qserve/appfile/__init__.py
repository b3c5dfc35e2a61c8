"""Config files: every value is read with its line and column, and checked as the same option in code would be.

It may import qserve.exceptions, qserve.base, qserve.wire and qserve.define.
Open first: read.py, then model.py.
"""
